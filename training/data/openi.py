"""The R2Gen studies of the Indiana University collection (Open-i), from the official archive.

A study belongs to the R2Gen set if it has at least two images and a non-empty FINDINGS section; its
split comes from a table of study ids, and its images are the first two `parentImage`s of its XML
file. Studies that the split table does not name are `extra`, for pretraining; so no validation or
test study reaches a training stage that way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from model.types import View
from retrieval_index.download import IMAGES_URL, REPORTS_URL, download, text_progress
from retrieval_index.openi import REPORTS_ARCHIVE, REPORTS_FOLDER, OpeniReport, read_reports
from training.data.image_store import ChainedImages, ImageStore, LooseImages, TarImages, images_by_id
from training.data.studies import SPLITS, DatasetOptions, ImageRef, Source, Split, Study, named, view_note
from training.data.tables import builtin_split, builtin_views, read_split, read_views
from training.protocols import IU_XRAY

IMAGES_ARCHIVE = "NLMCXR_png.tgz"
IMAGE_FOLDERS = ("images", "NLMCXR_png")
IMAGES_PER_STUDY = 2  # R2Gen's choice for this collection


def from_options(options: DatasetOptions) -> Source:
    """``--dataset openi``; raises as ``open_openi``, and ValueError without ``--root`` or for another protocol."""
    if options.root is None:
        raise ValueError("--dataset openi needs --root DIR; other data needs --annotation FILE and --images DIR")
    if options.protocol != IU_XRAY:
        raise ValueError(f"--dataset openi has protocol {IU_XRAY.name}, not {options.protocol.name}; add --protocol "
                         f"{IU_XRAY.name}, or give --annotation FILE and --images DIR")  # fmt: skip
    return open_openi(options.root, download=options.download)


def open_openi(root: Path, *, download: bool = False) -> Source:
    """Open a copy of the collection; studies ascend by study number.

    Args:
        root: holds `NLMCXR_reports.tgz` or `ecgen-radiology/`; `images/`, `NLMCXR_png/` or
            `NLMCXR_png.tgz`; and maybe `r2gen_split.csv` (`study_id,split`) and `views.csv`
            (`image_id,view`), in place of the built-in tables.
        download: fetch the official archives that `root` lacks.

    Raises:
        ArchiveError: `root` holds no readable report archive.
        DownloadError: an archive could not be fetched.
        ValueError: a table, or the image archive, is malformed.
    """
    if download:
        download_archives(root)
    archive = read_reports(root)
    split_table, view_table = root / "r2gen_split.csv", root / "views.csv"
    splits = read_split(split_table) if split_table.exists() else builtin_split()
    views = read_views(view_table) if view_table.exists() else builtin_views()
    studies: list[Study] = []
    extra: list[Study] = []
    unfit: list[str] = []
    for report in archive.reports:
        split = splits.get(report.uid)
        fit = len(report.image_ids) >= IMAGES_PER_STUDY and bool(report.findings)
        if split is None:
            extra.append(_study(report, None, views))
        elif fit:
            studies.append(_study(report, split, views))
        else:
            unfit.append(report.uid)
    images, image_note = _images(root, [image.key for study in (*studies, *extra) for image in study.images])
    notes = (
        f"reports: {len(archive.reports)} read, {named(archive.broken, 'broken and skipped')}",
        f"split table {_origin(split_table)}: {len(splits)} studies, {_found(splits, studies)}",
        f"in the table, but without two images and FINDINGS: {named(unfit, 'studies skipped')}",
        f"outside the table: {len(extra)} studies, for pretraining only",
        f"view table {_origin(view_table)}: {len(views)} images",
        view_note(tuple(studies)),
        image_note,
    )
    return Source("openi", tuple(studies), tuple(extra), images, notes)


def download_archives(root: Path) -> None:
    """Fetch the official archives that `root` lacks, resuming; progress goes to stderr."""
    if not any((root / name).exists() for name in (REPORTS_ARCHIVE, REPORTS_FOLDER)):
        download(REPORTS_URL, root / REPORTS_ARCHIVE, progress=text_progress(REPORTS_ARCHIVE))
    if not any((root / name).exists() for name in (IMAGES_ARCHIVE, *IMAGE_FOLDERS)):
        download(IMAGES_URL, root / IMAGES_ARCHIVE, progress=text_progress(IMAGES_ARCHIVE))


def _study(report: OpeniReport, split: Split | None, views: Mapping[str, View | None]) -> Study:
    image_ids = report.image_ids if split is None else report.image_ids[:IMAGES_PER_STUDY]
    images = tuple(ImageRef(image, views.get(image)) for image in image_ids)
    return Study(report.study_id, report.uid, split, report.findings, images, report.mesh)


def _origin(table: Path) -> str:
    return str(table) if table.exists() else "(built in)"


def _images(root: Path, wanted: Sequence[str]) -> tuple[ImageStore, str]:
    """The store over everything `root` has, loose files before the archive, and its note."""
    stores: list[ImageStore] = []
    loose: dict[str, Path] = {}
    for folder in (root / name for name in IMAGE_FOLDERS):
        if folder.is_dir():
            found = images_by_id(folder)
            stores.append(LooseImages(found, folder))
            loose |= found
    archive = root / IMAGES_ARCHIVE
    if archive.exists():
        stores.append(TarImages(archive))
    store = ChainedImages(stores)
    absent = [key for key in wanted if key not in loose]
    rest = f"{len(absent)} to be read from the archive" if archive.exists() else named(absent, "missing")
    return store, f"images: {store.description()}; of {len(wanted)} images {rest}"


def _found(splits: Mapping[str, Split], studies: Collection[Study]) -> str:
    """`2365 found (train 2069, …), 590 missing (test 590)`; a withheld split is no error."""
    found = {study.uid for study in studies}

    def count(there: bool) -> str:
        counts = Counter(split for uid, split in splits.items() if (uid in found) == there)
        return f"({', '.join(f'{split} {counts[split]}' for split in SPLITS if counts[split]) or 'none'})"

    present = sum(uid in found for uid in splits)
    return f"{present} found {count(True)}, {len(splits) - present} missing {count(False)}"
