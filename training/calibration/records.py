"""Drafted sentences of validation studies, the evidence for each, and whether the true report supports them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter

from model.bundle import Bundle
from model.calibration.sentence_confidence import Evidence
from model.drafter import Drafter
from model.protocols import CaseIndex
from model.text.labeler import label_report
from model.text.tokenizer import clean_report, split_sentences
from model.types import Label
from training.data.pixel_cache import PixelCache
from training.data.resumable_lines import ResumableLines
from training.data.studies import Study
from training.evaluation.inference import images_digest, study_views

WORD_F1_THRESHOLD = 0.5  # from this word F1 on, a report contains a sentence without findings
POSITIVE = ("present", "uncertain")


@dataclass(frozen=True)
class ScoredSentence:
    """A sentence: geometric mean of its word probabilities, findings that it names, whether it is correct."""

    words: float
    labels: Mapping[str, Label]
    correct: bool


@dataclass(frozen=True)
class Record:
    """A study: its sentences, their evidence, and the findings that its report calls present or uncertain."""

    study_id: str
    evidence: Evidence
    positive: frozenset[str]
    sentences: tuple[ScoredSentence, ...]


_RECORD = TypeAdapter(Record)


def is_supported_by_report(text: str, labels: Mapping[str, Label], report: str) -> bool:
    """Whether a report supports a sentence.

    It supports a sentence with findings if it agrees on each of them: present or uncertain, or else neither (a report
    that does not mention a finding does not have it). It supports a sentence without findings if one of the
    report's sentences has a word F1 of ``WORD_F1_THRESHOLD`` or more.
    """
    if labels:
        truth = label_report(report)
        return all((truth[name] in POSITIVE) == (label in POSITIVE) for name, label in labels.items())
    drafted = Counter(clean_report(text).split()) - Counter(".")
    words = clean_report(report).split()
    return any(
        _overlap(drafted, Counter(words[start:end]) - Counter(".")) >= WORD_F1_THRESHOLD
        for start, end in split_sentences(words)
    )


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    return 2 * (a & b).total() / max((a + b).total(), 1)


@torch.inference_mode()
def draft_records(
    bundle: Bundle, index: CaseIndex | None, studies: Sequence[Study], cache: PixelCache, kept: ResumableLines, *,
    device: torch.device,
) -> list[Record]:  # fmt: skip
    """Draft each study as a service would; ``kept`` takes the records, which hold no text."""
    drafter = Drafter(replace(bundle, calibration=None), index, device=device)

    def key(rows: slice) -> str:
        (study,) = studies[rows]
        text = json.dumps([study.study_id, study.report, images_digest([[study_views(study, cache)]])])
        return hashlib.sha256(text.encode()).hexdigest()

    def record(rows: slice) -> list[Any]:
        (study,) = studies[rows]
        return [_RECORD.dump_python(_record(drafter, study, cache))]

    rows = kept.fill(len(studies), key, record, batch=1, description="draft val")
    return [_RECORD.validate_python(row) for row in rows]


def _record(drafter: Drafter, study: Study, cache: PixelCache) -> Record:
    views = study_views(study, cache)
    (draft,) = drafter.draft([views])
    (evidence,) = drafter.evidence([views])
    truth = label_report(study.report)
    positive = frozenset(name for name, label in truth.items() if label in POSITIVE)
    sentences = tuple(
        ScoredSentence(one.confidence, one.labels, is_supported_by_report(one.text, one.labels, study.report))
        for one in draft.sentences
    )
    return Record(study.study_id, evidence, positive, sentences)
