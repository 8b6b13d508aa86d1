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
from collections.abc import Iterable, Mapping, Sequence
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
MIN_TAG_STUDIES = 10  # a heading of fewer training studies is no tag
NO_INDEXING = "no indexing"  # the archive's mark of a study without headings


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
    """Read ``image_id, finding, finding, …`` probabilities; raises ValueError for a value outside 0 to 1."""
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


def tag_names(train: Sequence[Study]) -> tuple[str, ...]:
    """The tags of writers that predict them (``ModelConfig.tags``).

    First parts of the headings, such as "opacity", that enough studies have; without any, the labeler's 14 findings.
    """
    counts = Counter(term for study in train for term in mesh_terms(study) - {NO_INDEXING} if "/" not in term)
    return tuple(sorted(term for term, count in counts.items() if count >= MIN_TAG_STUDIES)) or FINDINGS


def tag_targets(train: Sequence[Study], names: Sequence[str]) -> Floats:
    """(N, tags) 1 where a study has the heading, or where its report states the finding as present."""
    if tuple(names) == FINDINGS:
        return np.stack([label_vector(study.report)[0] for study in train])
    return np.array([_marks(mesh_terms(study), names) for study in train], np.float32)


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
    """Targets for (image key, its study) pairs.

    Args:
        soft: column names and image key -> probabilities; None for none.
        terms: add the groups ``mesh`` and ``text``, with the terms that enough of these studies have.
        external: add the group ``external``, unknown for all other studies.
    """
    studies = list({study.study_id: study for _, study in images}.values())
    labels = [label_vector(study.report) for study in studies]
    groups = [_group("report", FINDINGS, [values for values, _ in labels], np.stack([mask for _, mask in labels]))]
    if terms:
        groups.append(_terms("mesh", [mesh_terms(study) for study in studies], [bool(s.mesh) for s in studies]))
        written = [bool(study.report.strip()) for study in studies]
        groups.append(_terms("text", [text_terms(study) for study in studies], written))
    if external is not None:
        present = [external.present.get(study.study_id) for study in studies]
        marks = [_marks(found or (), external.findings) for found in present]
        groups.append(_group("external", external.findings, marks, [found is not None for found in present]))
    row_of = {study.study_id: row for row, study in enumerate(studies)}
    rows = np.array([row_of[study.study_id] for _, study in images])
    groups = [FindingTargets(group.values[rows], group.mask[rows], group.columns) for group in groups]
    if soft is not None:
        columns, scores = soft
        absent = np.zeros(len(columns), np.float32)
        scored = [scores.get(key, absent) for key, _ in images]
        groups.insert(0, _group("soft", columns, scored, [key in scores for key, _ in images]))
    return FindingTargets(np.hstack([group.values for group in groups]), np.hstack([group.mask for group in groups]),
                          tuple(column for group in groups for column in group.columns))  # fmt: skip


def _terms(group: str, found: Sequence[frozenset[str]], known: Sequence[bool]) -> FindingTargets:
    """(studies, terms) of one group, without terms of too few or nearly all studies."""
    counts = Counter(term for terms in found for term in terms)
    columns = sorted(term for term, count in counts.items() if MIN_STUDIES <= count <= MAX_SHARE * sum(known))
    return _group(group, columns, [_marks(terms, columns) for terms in found], known)


def _group(name: str, columns: Sequence[str], values: Sequence[npt.ArrayLike], known: npt.ArrayLike) -> FindingTargets:
    """N rows of ``values``, all of a row known or not where ``known`` is (N,)."""
    shape = len(values), len(columns)
    mask = np.asarray(known, np.float32)
    mask = mask if mask.ndim == 2 else np.repeat(mask[:, None], len(columns), axis=1)
    return FindingTargets(np.array(values, np.float32).reshape(shape), mask, tuple(f"{name}/{c}" for c in columns))


def _marks(terms: Iterable[str], columns: Sequence[str]) -> list[float]:
    present = frozenset(terms)
    return [float(column in present) for column in columns]
