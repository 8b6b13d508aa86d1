"""Radiographs of another source whose findings are known; frontal ones only.

The table is a CSV with a row an image: ``image_id``, a column of 1 and 0 for each finding, and
maybe ``view_position``; or as NIH ChestX-ray14 is published: ``Image Index``, ``Finding Labels``
(names joined by ``|``) and ``View Position``. Names are those of CheXpert or of NIH. An NIH name
stands for the finding that this project's labeler reads where a report uses the word.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.text.labeler import NO_FINDING, SCORED_FINDINGS
from model.types import View
from training.data.image_store import ChainedImages, LooseImages, images_by_id
from training.data.studies import ImageRef, Source, Study, evenly
from training.data.targets import ExternalLabels

NIH_FINDINGS: dict[str, str] = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Effusion": "Pleural Effusion",
    "Fibrosis": "Pleural Other",
    "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Pleural_Thickening": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
_FINDINGS = {name: name for name in SCORED_FINDINGS} | NIH_FINDINGS
_ID, _VIEW, _JOINED = ("image_id", "Image Index"), ("view_position", "View Position", "view"), "Finding Labels"
_FRONTAL = ("PA", "AP", "FRONTAL")
_OTHERS = "external/"  # before the ids of another set
_NO_NAMES = {NO_FINDING, "No_Finding", ""}


@dataclass(frozen=True)
class ExternalSet:
    """Images with known findings, each a study of one frontal view."""

    source: Source  # of the images
    studies: tuple[Study, ...]  # one an image, in the table's order
    truth: tuple[frozenset[str], ...]  # findings present in each, among ``SCORED_FINDINGS``
    mapped: Mapping[str, str]  # name in the table -> finding
    unmapped: tuple[str, ...]  # names in the table that stand for no finding
    skipped: Mapping[str, int]  # images left out: lateral ones, and those without a file
    paths: Mapping[str, Path]  # image id -> file, for all files below ``folder``
    folder: Path


def for_pretraining(source: Source, external: ExternalSet) -> tuple[Source, ExternalLabels]:
    """The source with the images of another set among its ``extra`` studies, and their labels.

    The ids of those images get a prefix, so that none is taken for one of ``source``.
    """
    prefixed = [replace(study, study_id=_OTHERS + study.study_id, uid=_OTHERS + study.uid,
                   images=tuple(replace(ref, key=_OTHERS + ref.key) for ref in study.images))
           for study in external.studies]  # fmt: skip
    known = ExternalLabels(
        tuple(sorted(set(external.mapped.values()))),
        {study.study_id: truth for study, truth in zip(prefixed, external.truth, strict=True)},
    )
    paths = {_OTHERS + key: path for key, path in external.paths.items()}
    images = ChainedImages((source.images, LooseImages(paths, external.folder)))
    note = f"{external.source.name}: {len(prefixed)} images for pretraining, labels {', '.join(known.findings)}"
    return replace(source, extra=(*source.extra, *prefixed), images=images, notes=(*source.notes, note)), known


def read_external(table: Path, images: Path, *, limit: int | None = None) -> ExternalSet:
    """Read a table of findings and find its images by file name anywhere below the folder ``images``.

    ``limit`` takes at most so many images, evenly spaced over the table.

    Raises:
        ValueError: no such file or folder, no known finding, or no image is left.
    """
    if not table.is_file():
        raise ValueError(f"--external-labels {table}: no such file")
    if not images.is_dir():
        raise ValueError(f"--external-images {images}: no such folder")
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        rows = list(reader)
    key = next((name for name in _ID if name in columns), None)
    if key is None:
        raise ValueError(f"{table} has no column {' or '.join(_ID)}; it has {', '.join(columns) or 'no header'}")
    view = next((name for name in _VIEW if name in columns), None)
    names = _names(rows, [name for name in columns if name not in (key, view)])
    mapped = {name: _FINDINGS[name] for name in names if name in _FINDINGS}
    if not mapped:
        known = ", ".join(_FINDINGS)
        raise ValueError(f"{table} names no finding that is known here; use columns of 1 and 0 named like {known}")
    paths = images_by_id(images)
    frontal = [row for row in rows if view is None or row[view].strip().upper().startswith(_FRONTAL)]
    found = [row for row in frontal if Path(row[key]).stem in paths]
    skipped = {"not frontal": len(rows) - len(frontal), "no file": len(frontal) - len(found)}
    if not found:
        raise ValueError(f"{images} holds no frontal image of {table}: {len(rows)} rows, {len(frontal)} frontal, none "
                         "with a file named by its id; check --external-images")  # fmt: skip
    chosen = evenly(found, limit)
    ids = [Path(row[key]).stem for row in chosen]
    return ExternalSet(
        source=Source(table.name, (), (), LooseImages(paths, images), ()),
        studies=tuple(Study(image, image, None, "", (ImageRef(image, View.FRONTAL),)) for image in ids),
        truth=tuple(frozenset(mapped[name] for name in _present(row) if name in mapped) for row in chosen),
        mapped=mapped,
        unmapped=tuple(name for name in names if name not in mapped and name not in _NO_NAMES),
        skipped=skipped,
        paths=paths,
        folder=images,
    )


def _names(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[str]:
    """The names in the joined column, else those of the columns of numbers."""
    if _JOINED in columns:
        return sorted({name.strip() for row in rows for name in row[_JOINED].split("|")})
    numbers = {"", "0", "1", "-1", "0.0", "1.0", "-1.0"}
    return [name for name in columns if all((row[name] or "").strip() in numbers for row in rows)]


def _present(row: Mapping[str, str]) -> list[str]:
    if _JOINED in row:
        return [name.strip() for name in row[_JOINED].split("|")]
    return [name for name, value in row.items() if (value or "").strip() in ("1", "1.0")]
