"""Any data set in the layout of R2Gen: an annotation file and a folder of images.

The annotation maps `train`, `val` and `test` to entries `{"id", "report", "image_path": [...]}`, as
published for IU X-ray and MIMIC-CXR. An image is searched in this order:

1. at its `image_path` below the image folder, also with another extension (.png .jpg .jpeg .dcm);
2. anywhere in the folder by its image id, where `<id>/<k>.png` means `image_ids[k]` of the entry.
   IU X-ray annotations without `image_ids` take them from the built-in table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from model.images import EXTENSIONS
from training.data.image_store import LooseImages, images_by_id
from training.data.studies import SPLITS, DatasetOptions, ImageRef, Source, Split, Study, named, view_note
from training.data.tables import builtin_images, builtin_views, read_views
from training.protocols import IU_XRAY, Protocol


class Entry(BaseModel, strict=True):
    """A study of an annotation."""

    id: str
    report: str
    image_path: list[str]
    image_ids: list[str] = []
    subject_id: str | int | None = None  # of MIMIC-CXR: the patient
    study_id: int | str | None = None  # of MIMIC-CXR, where `id` is that of the image


_ANNOTATION = TypeAdapter(dict[Split, list[Entry]])


def from_options(options: DatasetOptions) -> Source:
    """``--dataset r2gen``; raises as ``open_r2gen``, and ValueError without its options."""
    if options.annotation is None or options.images is None:
        raise ValueError("--dataset r2gen needs --annotation FILE and --images DIR")
    if not options.annotation.is_file():
        raise ValueError(f"--annotation {options.annotation}: no such file")
    return open_r2gen(options.annotation, options.images, options.protocol)


def open_r2gen(annotation: Path, images: Path, protocol: Protocol = IU_XRAY) -> Source:
    """Open an annotation with its image folder; a study may have any number of images, unless the protocol limits it.

    `views.csv` (`image_id,view`, by image id or by `image_path`), next to the annotation or in the image folder,
    comes before the built-in table of the Indiana University collection.

    Raises:
        ValueError: the annotation is malformed, or one study id occurs twice (in two splits it would leak).
    """
    entries = read_annotation(annotation)
    tables = [folder / "views.csv" for folder in (annotation.parent, images)]
    table = next((path for path in tables if path.exists()), None)
    tabled = builtin_views() if table is None else read_views(table)
    views = {**builtin_views(), **tabled}
    by_id = cache(lambda: images_by_id(images))  # walks the folder once, where a path does not exist
    studies: list[Study] = []
    paths: dict[str, Path] = {}
    missing: list[str] = []
    empty: list[str] = []
    for split, entry in entries:
        report = entry.report.strip()
        if not report or not entry.image_path:
            empty.append(entry.id)
            continue
        uid = study_uid(entry.id)
        refs: list[ImageRef] = []
        for key in entry.image_path[: protocol.images]:
            image_id = _image_id(entry, uid, key)
            path = images / key
            candidates = (path, *(path.with_suffix(extension) for extension in EXTENSIONS))
            file = next((candidate for candidate in candidates if candidate.is_file()), None)
            if file is None and image_id is not None:
                file = by_id().get(image_id)
            if file is None:
                missing.append(key)
            else:
                paths[key] = file
            refs.append(ImageRef(key, (views.get(image_id) if image_id else None) or views.get(key)))
        studies.append(study_of(entry, split, tuple(refs)))
    counts = ", ".join(f"{split} {sum(study.split == split for study in studies)}" for split in SPLITS)
    notes = (
        f"annotation {annotation}: {len(studies)} studies ({counts}), {named(empty, 'without report or image')}",
        f"view table {table or '(built in)'}: {len(tabled)} images",
        view_note(tuple(studies)),
        f"images in {images}: {len(paths)} found, {named(missing, 'missing')}",
    )
    return Source("r2gen", tuple(studies), (), LooseImages(paths, images), notes, protocol)


def read_annotation(path: Path) -> list[tuple[Split, Entry]]:
    """The entries with their splits; raises ValueError with the position of the first wrong entry."""
    try:
        content = _ANNOTATION.validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]  # without its input, which may hold a report
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise ValueError(f"{path}: {where} is of type {type(problem['input']).__name__}: {problem['msg']}. An R2Gen "
                         f"annotation has {', '.join(SPLITS)}, lists of id, report, image_path") from error  # fmt: skip
    entries = [(split, entry) for split in SPLITS for entry in content.get(split, [])]
    seen: dict[str, Split] = {}
    reports: dict[int | str, Split] = {}
    for split, entry in entries:
        if entry.id in seen:
            raise ValueError(f"{path}: study {entry.id} of {split} is in {seen[entry.id]} already; an id occurs once")
        seen[entry.id] = split
        if entry.study_id is not None and reports.setdefault(entry.study_id, split) != split:
            raise ValueError(f"{path}: study_id {entry.study_id} of entry {entry.id} of {split} is in "
                             f"{reports[entry.study_id]} too; the splits share a report")  # fmt: skip
    return entries


def study_of(entry: Entry, split: Split, images: tuple[ImageRef, ...]) -> Study:
    """The study of an entry."""
    patient = None if entry.subject_id is None else str(entry.subject_id)
    report_id = None if entry.study_id is None else str(entry.study_id)
    return Study(entry.id, study_uid(entry.id), split, entry.report.strip(), images, patient=patient,
                 report_id=report_id)  # fmt: skip


def study_uid(study_id: str) -> str:
    """The id in tables: CXR2384 of CXR2384_IM-0942, else the id itself."""
    collection_id = re.match(r"CXR\d+(?=_)", study_id)
    return collection_id.group() if collection_id else study_id


def _image_id(entry: Entry, uid: str, key: str) -> str | None:
    """The image id: the file's stem; for `<id>/<k>.png` the k-th id of the study."""
    stem = Path(key).stem
    ids: Sequence[str] = entry.image_ids or builtin_images().get(uid, ())
    if stem in ids or not stem.isdecimal():
        return stem
    return ids[int(stem)] if int(stem) < len(ids) else None
