"""Views of images that no table names: by their DICOM header, then by the view check of a bundle, then by file order.

What is found goes into ``views.csv`` (``image_id,view,how``), which the user can correct and the next command reads.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.bundle import Bundle, load_bundle
from model.calibration.ood import frontal_probability, project
from model.files import write_atomic
from model.images import ImageError, read_image, view_in_header
from model.types import Pixels, View
from training.data.studies import ImageRef, Source, Study
from training.data.tables import read_views

log = logging.getLogger("training")

COLUMNS = ("image_id", "view", "how")
TABLE, HEADER, CHECK, UNSURE, ORDER = "table", "dicom header", "view check", "view check, unsure", "file order"
_BATCH = 16


@dataclass(frozen=True)
class ViewCheck:
    """The view check of a bundle: frontal or lateral, from the pixels alone."""

    bundle: Bundle
    device: torch.device

    @classmethod
    def load(cls, path: Path, device: torch.device) -> ViewCheck:
        """Raises ValueError for a bundle without calibration."""
        bundle = load_bundle(path, device=device)
        if bundle.calibration is None:
            raise ValueError(f"--views-bundle {path} has no calibration, and so no view check; give a bundle of "
                             "training.calibrate, such as bundles/iu-xray")  # fmt: skip
        return cls(bundle, device)

    @torch.inference_mode()
    def views(self, images: Sequence[tuple[str, Pixels]]) -> list[tuple[str, tuple[View, str]]]:
        """By key the more probable view of each image, and how sure the check is."""
        calibration = self.bundle.calibration
        assert calibration is not None  # by ``load``
        pixels = torch.from_numpy(np.stack([one for _, one in images])).unsqueeze(1).to(self.device)  # (N, 1, S, S)
        pooled = self.bundle.model.backbone(pixels.float() / 255.0)[1].float().cpu().numpy()
        frontal = frontal_probability(calibration, project(calibration.features, pooled)[0])
        sure = np.maximum(frontal, 1 - frontal) >= calibration.view.certain
        return [
            (key, (View.FRONTAL if p >= 0.5 else View.LATERAL, CHECK if is_sure else UNSURE))
            for (key, _), p, is_sure in zip(images, frontal.tolist(), sure.tolist(), strict=True)
        ]


def with_views(source: Source, table: Path | None, check: ViewCheck | None = None) -> Source:
    """The source with the views that headers and ``check`` give, and a note with the count of each way.

    Nothing is done for a data set of which some table names images, unless ``check`` is given, or ``table`` was written
    by an earlier command. ``table`` gets all images, an empty view for those by file order: the first counts as
    frontal, those after it as lateral. Rows of an earlier table stay; a table without the column ``how`` is the user's,
    and is not written.
    """
    tabled = read_views(table) if table is not None and table.exists() else {}
    source = _viewed_source(source, tabled)
    studies = (*source.studies, *source.extra)
    views = {ref.key: ref.view for study in studies for ref in study.images}
    unknown = [key for key, view in views.items() if view is None]
    earlier = _earlier(table)
    if not unknown or (check is None and len(unknown) < len(views) and not earlier):
        return source
    found = dict(_determined(source, unknown, check))
    orders = dict(_by_order(studies, found))
    counts = Counter(how for _, how in found.values()) + Counter({ORDER: len(orders)})
    ways = ", ".join(f"{counts[way]} by {way}" for way in (HEADER, CHECK, UNSURE, ORDER) if counts[way])
    note = f"views of {len(unknown)} of {len(views)} images that no table names: {ways}"
    if earlier is None:
        note += f"; {table} has no column how and is not changed: add rows image_id,view to it"
    elif table is not None:
        note += _save(table, views, {**found, **orders}, earlier)
    source = _viewed_source(source, {key: view for key, (view, _) in found.items()})
    return replace(source, notes=(*source.notes, note))


def _determined(
    source: Source, unknown: Collection[str], check: ViewCheck | None
) -> Iterator[tuple[str, tuple[View, str]]]:
    """The views that a header or the check gives, by image; without a check only DICOM files are read."""
    keys = unknown if check else [key for key in unknown if source.images.is_dicom(key)]
    pending: list[tuple[str, Pixels]] = []
    for key, data in tqdm(source.images.iter(keys), total=len(keys), desc="views", unit="img", mininterval=1):
        if data is None:
            continue
        if (view := view_in_header(data)) is not None:
            yield key, (view, HEADER)
        elif check is not None:
            preprocessing = check.bundle.config.preprocessing
            try:
                image = read_image(data, preprocessing.image_size, resample=preprocessing.resample)
            except ImageError:
                continue  # the decoding of the data set names it
            pending.append((key, image.pixels))
            if len(pending) == _BATCH:
                yield from check.views(pending)
                pending.clear()
    if check is not None and pending:
        yield from check.views(pending)


def _by_order(
    studies: Sequence[Study], found: Mapping[str, tuple[View, str]]
) -> Iterator[tuple[str, tuple[None, str]]]:
    """What the order of the file says of the images that are left, for the column ``how``."""
    given = {key: view for key, (view, _) in found.items()}
    for study in studies:
        for position, ref in enumerate(_viewed(study, given).ordered()):
            if ref.view is None:
                yield ref.key, (None, f"{ORDER}: {(View.LATERAL if position else View.FRONTAL).value}")


def _viewed_source(source: Source, views: Mapping[str, View | None]) -> Source:
    studies, extra = (tuple(_viewed(study, views) for study in part) for part in (source.studies, source.extra))
    return replace(source, studies=studies, extra=extra)


def _viewed(study: Study, views: Mapping[str, View | None]) -> Study:
    images = tuple(ImageRef(ref.key, ref.view or views.get(ref.key)) for ref in study.images)
    return replace(study, images=images)


def _earlier(table: Path | None) -> dict[str, dict[str, str]] | None:
    """The rows of a table of an earlier command by image; None for a table of the user's."""
    if table is None or not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "how" not in (reader.fieldnames or ()):
            return None
        return {row["image_id"]: {name: row[name] or "" for name in COLUMNS} for row in reader}


def _save(
    table: Path, views: Mapping[str, View | None], ways: Mapping[str, tuple[View | None, str]],
    earlier: Mapping[str, Mapping[str, str]],
) -> str:  # fmt: skip
    """Write the table, with the views of an earlier one as they are; returns the end of the note."""
    rows = {}
    for key, known in views.items():
        view, how = ways.get(key, (known, TABLE))
        rows[key] = {"image_id": key, "view": view.value if view else "", "how": how}
    kept = {key: row for key, row in earlier.items() if row["view"] or key not in rows}
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**rows, **kept}.values())
    try:
        write_atomic(table, file.getvalue().encode())
    except OSError as error:
        return f"; {table} cannot be written ({error.strerror}), so the next command determines them again"
    return f"; correct them in {table}, whose empty views are those by file order"
