"""A bundle in Python: one call from two radiographs to a draft, with the code of the service."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from cxr_report.pictures import Picture, read_view
from model.devices import resolve_devices
from model.types import Draft, DraftOptions, Precision, StudyView, View
from service.inference.loader import LoadedBundle, LoadError, open_bundle
from service.routes.responses import to_response


def load_bundle(
    path: str | os.PathLike[str], *, device: str = "auto", precision: Precision = "fp32", prefer_hydrated: bool = True
) -> StudyDrafter:
    """Verify and load a bundle with its index.

    Args:
        path: the directory of the bundle.
        device: auto, cpu, cuda or cuda:N.
        precision: ``bf16`` is faster on a GPU, but a word may differ.
        prefer_hydrated: use the hydrated copy of the bundle (with report texts) if there is one.

    Raises:
        LoadError: the device is not available, or the bundle is missing, damaged or of another
            version; the message names the remedy.
        ValueError: ``precision`` is neither of the two.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision}: use one of {', '.join(get_args(Precision))}")
    try:
        devices = resolve_devices(device, option="device=")
    except ValueError as error:
        raise LoadError(str(error)) from error
    if len(devices) > 1:
        raise LoadError(f"device={device} names {len(devices)} devices; a drafter uses one, such as cuda:0")
    return StudyDrafter(open_bundle(Path(path), devices, precision, prefer_hydrated=prefer_hydrated))


class StudyDrafter:
    """Drafts studies with one bundle. It keeps no state between calls."""

    def __init__(self, loaded: LoadedBundle) -> None:
        self._loaded = loaded
        self.drafter = loaded.drafter

    def draft(
        self, frontal: Picture | None = None, lateral: Picture | None = None, *, top_k: int | None = None,
        beam_size: int | None = None, attention: bool = False, evidence: bool = False,
    ) -> Draft:  # fmt: skip
        """Draft one study; options as those of ``POST /report``.

        Args:
            frontal: the frontal radiograph; None if there is only a lateral one.
            lateral: the lateral radiograph.
            top_k: reference cases to return, 1 to 50; None: as many as the model reads.
            beam_size: 1 to 8; None: that of the bundle.
            attention: add the attention maps of each sentence.
            evidence: add the evidence map of each sentence that names a finding.

        Raises:
            ImageError: an image cannot be read or is refused.
            OSError: a file cannot be opened.
            ValueError: neither view was given, or an option is out of its range.
        """
        (draft,) = self.draft_all(
            [(frontal, lateral)], top_k=top_k, beam_size=beam_size, attention=attention, evidence=evidence
        )
        return draft

    def draft_all(
        self, studies: Iterable[tuple[Picture | None, Picture | None]], *, batch_size: int = 8,
        top_k: int | None = None, beam_size: int | None = None, attention: bool = False, evidence: bool = False,
    ) -> Iterator[Draft]:  # fmt: skip
        """Draft many studies, (frontal, lateral) each, in batches; arguments and errors as ``draft``."""
        options = DraftOptions(top_k, beam_size, attention=attention, evidence=evidence)
        views = (self._study(*_pair(study)) for study in studies)
        while batch := list(islice(views, max(batch_size, 1))):
            yield from self.drafter.draft(batch, options)

    def response(self, draft: Draft) -> dict[str, Any]:
        """The JSON answer of ``POST /report`` for a draft: rounded, redactions marked, with the model's description."""
        timings = {"total": sum(draft.timings_ms.values())}
        return to_response(draft, self._loaded.model_info(), timings).model_dump(mode="json")

    def _study(self, frontal: Picture | None, lateral: Picture | None) -> list[StudyView]:
        given = {View.FRONTAL: frontal, View.LATERAL: lateral}
        if frontal is None and lateral is None:
            raise ValueError("neither a frontal nor a lateral radiograph was given; give at least one")
        size, resample = self.drafter.image_size, self.drafter.resample
        return [read_view(picture, view, size, resample) for view, picture in given.items() if picture is not None]


def _pair(study: object) -> tuple[Picture | None, Picture | None]:
    if not isinstance(study, tuple | list) or len(study) != 2:
        raise TypeError(f"a study is a {type(study).__name__}; give (frontal, lateral), None for a missing view")
    return study[0], study[1]
