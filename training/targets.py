"""Finding targets for pretraining the backbone: soft scores of another network, and labels read from reports."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.labeler import FINDINGS, label_report
from training.studies import Study

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FindingTargets:
    """Targets of a list of images: ``values`` (N, C) in 0..1, ``mask`` (N, C) 1 where known, C column names."""

    values: Floats
    mask: Floats
    columns: tuple[str, ...]


def read_soft_scores(path: Path) -> tuple[tuple[str, ...], dict[str, Floats]]:
    """Read ``image_id, finding, finding, …`` probabilities.

    Raises:
        ValueError: no ``image_id`` column, or a value that is no probability.
    """
    with path.open(newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if not header or header[0] != "image_id":
            raise ValueError(f"{path.name}: the first column must be image_id, found {header[:1]}")
        scores = {row[0]: np.asarray(row[1:], dtype=np.float32) for row in rows if row}
    for key, values in scores.items():
        if len(values) != len(header) - 1 or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{path.name}: {key} needs {len(header) - 1} probabilities between 0 and 1")
    return tuple(header[1:]), scores


def label_vector(report: str) -> tuple[Floats, Floats]:
    """(14,) present = 1, and (14,) mask: uncertain findings and an empty report count as unknown."""
    if not report.strip():
        return np.zeros(len(FINDINGS), np.float32), np.zeros(len(FINDINGS), np.float32)
    labels = label_report(report)
    values = np.array([labels[name] == "present" for name in FINDINGS], np.float32)
    mask = np.array([labels[name] != "uncertain" for name in FINDINGS], np.float32)
    return values, mask


def finding_targets(
    images: Sequence[tuple[str, Study]], soft: tuple[tuple[str, ...], Mapping[str, Floats]] | None
) -> FindingTargets:
    """Targets for (image key, its study) pairs: soft scores where given, then the labeler's 14 findings."""
    soft_columns, scores = soft if soft is not None else ((), {})
    labels = {study.study_id: label_vector(study.report) for _, study in images}
    values = np.zeros((len(images), len(soft_columns) + len(FINDINGS)), np.float32)
    mask = np.zeros_like(values)
    width = len(soft_columns)
    for row, (key, study) in enumerate(images):
        if key in scores:
            values[row, :width], mask[row, :width] = scores[key], 1
        values[row, width:], mask[row, width:] = labels[study.study_id]
    columns = (*(f"soft/{name}" for name in soft_columns), *(f"report/{name}" for name in FINDINGS))
    return FindingTargets(values, mask, columns)
