"""Radiographs of another source whose findings are known: how far the findings of drafts agree with them.

The table is a CSV with a row an image: ``image_id``, a column of 1 and 0 for each finding, and maybe
``view_position``; or as NIH ChestX-ray14 is published: ``Image Index``, ``Finding Labels`` (names joined by ``|``) and
``View Position``. Only frontal images are used, each as a study of one view.

Names are those of CheXpert or of NIH. An NIH name stands for the finding that this project's labeler reads where a
report uses the word, ``NIH_FINDINGS``; a name that the labeler gives no finding for is left out, and said so. Labels
that were read from images or from other reports are not what a report has to say, so this is agreement, not accuracy.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.bundle import Bundle
from model.drafter import Drafter, DraftOptions, Precision
from model.protocols import CaseIndex
from model.text.labeler import NO_FINDING
from model.views import View
from training.data.image_store import ChainedImages, LooseImages, Prefixed, images_by_id
from training.data.pixel_cache import build_pixel_cache
from training.data.studies import ImageRef, Source, Study
from training.data.targets import ExternalLabels
from training.evaluation import inference as drafting
from training.scoring.bootstrap import DRAWS, Bootstrap, PerStudyStatistics, Resampled
from training.scoring.metrics import SCORED_FINDINGS, label_scores, present_findings
from training.scoring.protocol import comparable_prediction, full_prediction

NIH_FINDINGS: Mapping[str, str] = {
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
_FINDINGS = {**{name: name for name in SCORED_FINDINGS}, **NIH_FINDINGS}
_ID, _VIEW, _JOINED = ("image_id", "Image Index"), ("view_position", "View Position", "view"), "Finding Labels"
_FRONTAL = ("PA", "AP", "FRONTAL")
_OTHERS = "external/"  # before the ids of another set
_NO_NAMES = {NO_FINDING, "No_Finding", ""}


@dataclass(frozen=True)
class ExternalSet:
    """Images with known findings, each a study of one frontal view.

    Attributes:
        source: holds the images.
        studies: one an image, the table's order.
        truth: findings present in each, among ``SCORED_FINDINGS``.
        mapped: name in the table -> finding.
        unmapped: names in the table that stand for no finding.
        skipped: images left out: lateral ones, and those without a file.
    """

    source: Source
    studies: tuple[Study, ...]
    truth: tuple[frozenset[str], ...]
    mapped: Mapping[str, str]
    unmapped: tuple[str, ...]
    skipped: Mapping[str, int]


def for_pretraining(source: Source, external: ExternalSet) -> tuple[Source, ExternalLabels]:
    """A source with the images of another set among its studies for pretraining, and what is known of these.

    Args:
        source: of the run.
        external: its images get a prefix, so that no id is taken for one of ``source``.
    """
    own = [replace(study, study_id=_OTHERS + study.study_id, uid=_OTHERS + study.uid,
                   images=tuple(replace(ref, key=_OTHERS + ref.key) for ref in study.images))
           for study in external.studies]  # fmt: skip
    known = ExternalLabels(
        tuple(sorted(set(external.mapped.values()))),
        {study.study_id: truth for study, truth in zip(own, external.truth, strict=True)},
    )
    images = ChainedImages((source.images, Prefixed(_OTHERS, external.source.images)))
    note = f"{external.source.name}: {len(own)} images for pretraining, labels {', '.join(known.findings)}"
    return replace(source, extra=(*source.extra, *own), images=images, notes=(*source.notes, note)), known


def read_external(table: Path, images: Path, *, limit: int | None = None) -> ExternalSet:
    """Read a table of findings and find its images by file name.

    Args:
        table: the CSV.
        images: the folder; files of ``training.data.image_store.EXTENSIONS`` anywhere below it.
        limit: at most so many images, evenly spaced over the table.

    Raises:
        ValueError: no such file, a column is missing, no name in it stands for a finding, or no image is left.
    """
    for option, path, there in (("labels", table, table.is_file()), ("images", images, images.is_dir())):
        if not there:
            raise ValueError(f"--external-{option} {path}: no such {'file' if option == 'labels' else 'folder'}")
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
        raise ValueError(
            f"{table} names no finding that is known here; use columns of 1 and 0 named like {', '.join(_FINDINGS)}"
        )
    paths = images_by_id(images)
    frontal = [row for row in rows if view is None or row[view].strip().upper().startswith(_FRONTAL)]
    found = [row for row in frontal if Path(row[key]).stem in paths]
    if not found:
        raise ValueError(
            f"{images} holds no frontal image of {table}: {len(rows)} rows, {len(frontal)} frontal, none with a file "
            "named by its id; check --external-images"
        )
    if limit is not None and limit < len(found):
        found = [found[place * len(found) // limit] for place in range(limit)]
    studies = tuple(_study(Path(row[key]).stem) for row in found)
    return ExternalSet(
        source=Source(table.name, (), (), LooseImages(paths, images), ()),
        studies=studies,
        truth=tuple(frozenset(mapped[name] for name in _present(row) if name in mapped) for row in found),
        mapped=mapped,
        unmapped=tuple(name for name in names if name not in mapped and name not in _NO_NAMES),
        skipped={"not frontal": len(rows) - len(frontal), "no file": sum(
            Path(row[key]).stem not in paths for row in frontal)},
    )  # fmt: skip


def _names(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[str]:
    """What the table calls findings: the names in its joined column, else its columns of numbers."""
    if _JOINED in columns:
        return sorted({name.strip() for row in rows for name in row[_JOINED].split("|")})
    numbers = {"", "0", "1", "-1", "0.0", "1.0", "-1.0"}
    return [name for name in columns if all((row[name] or "").strip() in numbers for row in rows)]


def _present(row: Mapping[str, str]) -> list[str]:
    if _JOINED in row:
        return [name.strip() for name in row[_JOINED].split("|")]
    return [name for name, value in row.items() if (value or "").strip() in ("1", "1.0")]


def _study(image: str) -> Study:
    return Study(image, image, None, "", (ImageRef(image, View.FRONTAL),))


def score_external(
    bundle: Bundle,
    index: CaseIndex | None,
    external: ExternalSet,
    *,
    work_dir: Path,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    batch_size: int = 16,
    draws: int = DRAWS,
    seed: int = 1,
    progress: bool = True,
) -> tuple[dict[str, Any], Resampled]:
    """Write a draft for each image and compare the findings that it names with the table's.

    Args:
        bundle, index: what writes.
        external: the images.
        work_dir: holds the decoded images.
        device, precision: where and in what the bundle runs.
        batch_size: images drafted together.
        draws: of images with replacement, for the intervals.
        seed: of the draws.
        progress: show a bar.

    Returns:
        What ``agreement`` says of them, with counts, and the figures on each draw.
    """
    drafter = Drafter(bundle, index, device=device, precision=precision)
    cache = build_pixel_cache(external.source, external.studies, drafter.image_size, work_dir,
                              resample=drafter.resample)  # fmt: skip
    kept = [row for row, study in enumerate(external.studies) if cache.usable(study)]
    studies = [external.studies[row] for row in kept]
    drafts = drafting.write_drafts(drafter, DraftOptions(), cache, studies, batch_size, progress)
    texts = [draft.findings for draft in drafts]
    result, drawn = agreement([external.truth[row] for row in kept], texts, frozenset(external.mapped.values()),
                              draws=draws, seed=seed)  # fmt: skip
    skipped = {**external.skipped, "unreadable": len(external.studies) - len(kept)}
    return {**result, "map": dict(external.mapped), "unmapped": list(external.unmapped), "skipped": skipped}, drawn


def agreement(
    truth: Sequence[frozenset[str]], texts: Sequence[str], names: frozenset[str], *, draws: int, seed: int
) -> tuple[dict[str, Any], Resampled]:
    """How far the findings named in drafts are those of a table.

    Args:
        truth: findings present in each image.
        texts: drafts, in the same order.
        names: the findings that the table speaks of; others that a draft names are not counted.
        draws, seed: of the bootstrap.

    Returns:
        ``figures``: label F1, pooled over ``names`` and averaged over those present in some image, share of different
        drafts and words a draft; ``confidence_95`` of the two F1; ``findings``: for each name the images that have it,
        drafts that name it, and both; ``every_finding_named``: F1 of naming them all for every image, for comparison.
        And the figures on each draw.
    """
    guess = [present_findings(full_prediction(text)) & names for text in texts]
    resampled = Bootstrap(len(texts), draws=draws, seed=seed).of_statistics(
        PerStudyStatistics.of_findings(truth, guess)
    )
    f1 = ("label_f1_micro", "label_f1_macro")
    figures = _f1(truth, guess) | {
        "distinct": len({comparable_prediction(text) for text in texts}) / len(texts),
        "mean_length": sum(len(full_prediction(text).replace(".", " ").split()) for text in texts) / len(texts),
    }
    intervals = resampled.intervals()
    return {
        "n": len(texts),
        "figures": figures,
        "confidence_95": {name: intervals[name] for name in f1},
        "every_finding_named": _f1(truth, [names] * len(truth)),
        "findings": {
            name: {
                "images": sum(name in found for found in truth),
                "named": sum(name in found for found in guess),
                "both": sum(name in a & b for a, b in zip(truth, guess, strict=True)),
            }
            for name in sorted(names)
        },
    }, Resampled({name: resampled.whole[name] for name in f1}, {name: resampled.drawn[name] for name in f1})


def _f1(truth: Sequence[frozenset[str]], guess: Sequence[frozenset[str]]) -> dict[str, float]:
    scores = label_scores(truth, guess)
    return {name: scores[name] for name in ("label_f1_micro", "label_f1_macro")}
