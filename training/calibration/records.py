"""Drafted sentences of validation studies, the evidence for each, and whether the true report supports them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from model.bundle import Bundle
from model.calibration.sentence_confidence import Evidence
from model.drafter import Drafter
from model.files import write_atomic
from model.protocols import CaseIndex
from model.text.labeler import label_report
from model.text.tokenizer import clean_report, split_sentences
from model.types import Label
from training.data.pixel_cache import PixelCache
from training.data.studies import Study
from training.evaluation.inference import study_views

WORD_F1_THRESHOLD = 0.5  # from this word F1 on, a report contains a sentence without findings
POSITIVE = ("present", "uncertain")


@dataclass(frozen=True)
class ScoredSentence:
    """A sentence: geometric mean of its word probabilities, findings that it names, whether it is correct."""

    words: float
    labels: Mapping[str, Label]
    correct: Annotated[bool, Field(alias="right")]  # in the file it has the name of version 0.1


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
    bundle: Bundle, index: CaseIndex | None, studies: Sequence[Study], cache: PixelCache, path: Path, *, identity: str,
    device: torch.device,
) -> list[Record]:  # fmt: skip
    """Draft each study as a service would, and append a record without text to ``path``.

    Studies with a record in the file are not drafted again, if the file has the same ``identity``.
    """
    drafter = Drafter(replace(bundle, calibration=None), index, device=device)
    done = {record.study_id: record for record in _read(path, identity)}
    write_atomic(path, b"".join([_head(identity), *map(_line, done.values())]))
    with path.open("ab") as file:
        for study in tqdm([one for one in studies if one.study_id not in done], desc="draft val", unit="study"):
            done[study.study_id] = record = _record(drafter, study, cache)
            file.write(_line(record))
            file.flush()
    return [done[study.study_id] for study in studies]


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


def _read(path: Path, identity: str) -> Iterator[Record]:
    """Records of an earlier run with the same identity, up to a line that its end truncated."""
    head, *lines = path.read_bytes().splitlines(keepends=True) if path.exists() else [b""]
    if head != _head(identity):
        return
    for line in lines:
        try:
            yield _RECORD.validate_json(line)
        except ValidationError:
            return


def _head(identity: str) -> bytes:
    return json.dumps({"drafted_by": identity}).encode() + b"\n"


def _line(record: Record) -> bytes:
    return json.dumps(_RECORD.dump_python(record, by_alias=True), default=sorted).encode() + b"\n"  # sets are sorted
