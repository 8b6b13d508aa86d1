"""The library: draft findings, see the evidence, label reports, retrieve vectors.

    from cxr_report import load_bundle

    drafter = load_bundle("bundles/iu-xray")
    draft = drafter.draft("frontal.png", "lateral.png")
    print(draft.findings)

``docs/extend.md`` has the entry points for additions of other packages. Importing this package
loads nothing; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_report.library import StudyDrafter, load_bundle
    from cxr_report.maps import heatmap, overlay
    from cxr_report.pictures import Picture
    from model.images import ImageError
    from model.text.annotations import Annotation, annotate_report
    from model.text.labeler import FINDINGS, label_report
    from model.types import Draft
    from retrieval_index.retriever import Match, Retriever
    from service.inference.loader import LoadError

    __version__: str

__all__ = [
    "FINDINGS",
    "Annotation",
    "Draft",
    "ImageError",
    "LoadError",
    "Match",
    "Picture",
    "Retriever",
    "StudyDrafter",
    "__version__",
    "annotate_report",
    "heatmap",
    "label_report",
    "load_bundle",
    "overlay",
]

_HOMES = {
    "FINDINGS": "model.text.labeler",
    "Annotation": "model.text.annotations",
    "Draft": "model.types",
    "ImageError": "model.images",
    "LoadError": "service.inference.loader",
    "Match": "retrieval_index.retriever",
    "Picture": "cxr_report.pictures",
    "Retriever": "retrieval_index.retriever",
    "StudyDrafter": "cxr_report.library",
    "annotate_report": "model.text.annotations",
    "heatmap": "cxr_report.maps",
    "label_report": "model.text.labeler",
    "load_bundle": "cxr_report.library",
    "overlay": "cxr_report.maps",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _version() -> str:
    """Of the installed package; in a source tree that is not installed, of its pyproject.toml."""
    import tomllib
    from importlib import metadata
    from pathlib import Path

    try:
        return metadata.version("cxr-report")
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
