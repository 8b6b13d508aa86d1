"""Targets of pretraining: soft scores of another network, findings, MeSH terms, report text.

The columns form groups, each with its own weight in the loss:

- ``soft``: probabilities of a network trained elsewhere, by image;
- ``report``: the labeler's 14 findings, by study;
- ``mesh``: MeSH terms of the archive, by study ("Opacity/lung/base/left" gives opacity,
  opacity/lung, … and itself);
- ``text``: words and whole sentences of the report, by study;
- ``external``: findings of images of another source that come without reports.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.text.labeler import FINDINGS, label_report
from model.text.tokenizer import clean_report
from training.data.studies import Study

Floats = npt.NDArray[np.float32]

MIN_STUDIES = 12  # a term in fewer studies identifies those studies
MAX_SHARE = 0.9  # a term in nearly all reports is no target either


@dataclass(frozen=True)
class FindingTargets:
    """Targets of N images: ``values`` (N, C) in 0..1, ``mask`` (N, C) 1 where known, and C columns
    ``group/name``; those of one group stand together.
    """

    values: Floats
    mask: Floats
    columns: tuple[str, ...]

    def group(self, name: str) -> slice:
        """The columns of a group; an empty slice where there is none."""
        columns = [number for number, column in enumerate(self.columns) if column.startswith(f"{name}/")]
        return slice(columns[0], columns[-1] + 1) if columns else slice(0, 0)


@dataclass(frozen=True)
class ExternalLabels:
    """Studies that have findings in place of a report."""

    findings: tuple[str, ...]  # known for each study
    present: Mapping[str, frozenset[str]]  # study id -> findings present


def read_soft_scores(path: Path) -> tuple[tuple[str, ...], dict[str, Floats]]:
    """Read ``image_id, finding, finding, …`` probabilities.

    Raises:
        ValueError: no ``image_id`` column, or a value outside 0 to 1.
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
    """(14,) present = 1, and (14,) mask: uncertain findings and empty reports are unknown."""
    labels = label_report(report)
    values = np.array([labels[name] == "present" for name in FINDINGS], np.float32)
    mask = np.array([labels[name] != "uncertain" for name in FINDINGS], np.float32)
    return values, mask * bool(report.strip())


def mesh_terms(study: Study) -> frozenset[str]:
    """Headings in lower case: whole, first part, and first part with each qualifier."""
    terms: set[str] = set()
    for heading in study.mesh:
        parts = [part.strip().lower() for part in heading.split("/")]
        terms |= {"/".join(parts), parts[0]} | {f"{parts[0]}/{part}" for part in parts[1:]}
    return frozenset(terms)


def text_terms(study: Study) -> frozenset[str]:
    """Words and sentences of a study's report."""
    cleaned = clean_report(study.report)
    sentences = {" ".join(sentence.split()) for sentence in cleaned.split(" .")}
    return frozenset((sentences | set(cleaned.split())) - {"", "."})


def finding_targets(
    images: Sequence[tuple[str, Study]],
    soft: tuple[tuple[str, ...], Mapping[str, Floats]] | None,
    *,
    terms: bool = False,
    external: ExternalLabels | None = None,
) -> FindingTargets:
    """Targets for images.

    Args:
        images: (image key, its study) pairs.
        soft: column names and image key -> probabilities; None for none.
        terms: add the groups ``mesh`` and ``text``, with the terms that enough of these studies
            have.
        external: add the group ``external``, unknown for all other studies.
    """
    studies = {study.study_id: study for _, study in images}
    row_of = {study_id: row for row, study_id in enumerate(studies)}
    labels = [label_vector(study.report) for study in studies.values()]
    names = [f"report/{name}" for name in FINDINGS]
    values, mask = (np.stack([pair[part] for pair in labels]) for part in (0, 1))
    if terms:
        everyone = list(studies.values())
        indexed = [bool(study.mesh) for study in everyone]
        written = [bool(study.report.strip()) for study in everyone]
        for group in (_terms("mesh", everyone, mesh_terms, indexed), _terms("text", everyone, text_terms, written)):
            names += group.columns
            values, mask = np.hstack([values, group.values]), np.hstack([mask, group.mask])
    if external is not None:
        names += [f"external/{name}" for name in external.findings]
        known = [study_id in external.present for study_id in studies]
        there = [_marks(external.present.get(study_id, ()), external.findings) for study_id in studies]
        values = np.hstack([values, np.array(there, np.float32)])
        mask = np.hstack([mask, np.repeat(np.array(known, np.float32)[:, None], len(external.findings), axis=1)])
    rows = np.array([row_of[study.study_id] for _, study in images])
    values, mask = values[rows], mask[rows]
    if soft is not None:
        columns, scores = soft
        absent = np.zeros(len(columns), np.float32)
        names = [f"soft/{name}" for name in columns] + names
        values = np.hstack([np.stack([scores.get(key, absent) for key, _ in images]), values])
        scored = np.array([[key in scores] for key, _ in images], np.float32)
        mask = np.hstack([np.repeat(scored, len(columns), axis=1), mask])
    return FindingTargets(values, mask, tuple(names))


def _terms(
    group: str, studies: Sequence[Study], of: Callable[[Study], frozenset[str]], known: Sequence[bool]
) -> FindingTargets:
    """(studies, terms) of one group, without terms of too few or nearly all studies."""
    found = [of(study) for study in studies]
    counts = Counter(term for terms in found for term in terms)
    most = MAX_SHARE * sum(known)
    columns = sorted(term for term, count in counts.items() if MIN_STUDIES <= count <= most)
    values = np.array([_marks(terms, columns) for terms in found], np.float32).reshape(len(studies), len(columns))
    mask = np.repeat(np.array(known, np.float32)[:, None], len(columns), axis=1)
    return FindingTargets(values, mask, tuple(f"{group}/{column}" for column in columns))


def _marks(terms: Iterable[str], columns: Sequence[str]) -> list[float]:
    present = frozenset(terms)
    return [float(column in present) for column in columns]
