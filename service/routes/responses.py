"""Convert drafts and cases to response models: redactions, rounding, model, disclaimer."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from model.types import Draft, Grid, ReferenceCase, Sentence
from retrieval_index.cases import Case
from service.cases.store import FoundCase
from service.formats.redaction import mark_redactions
from service.schemas.annotations import read_annotations
from service.schemas.examples import DISCLAIMER
from service.schemas.models import (
    AttentionOut,
    CaseResponse,
    EvidenceOut,
    ModelInfo,
    ReferenceCaseOut,
    ReportResponse,
    SentenceOut,
)


def to_response(draft: Draft, model: ModelInfo, timings_ms: Mapping[str, float]) -> ReportResponse:
    """The response of ``POST /report``; ``timings_ms``: the caller's measurements, with ``total``."""
    total = timings_ms["total"]
    findings = mark_redactions(draft.findings)
    before = {name: value for name, value in timings_ms.items() if name != "total"}
    return ReportResponse.model_validate(
        {
            "report_id": str(uuid.uuid4()),
            "findings": findings,
            "sentences": [_sentence_out(sentence) for sentence in draft.sentences],
            "labels": draft.labels,
            "annotations": read_annotations(findings),
            "finding_probabilities": None
            if draft.calibrated_findings is None
            else {name: round(value, 4) for name, value in draft.calibrated_findings.items()},
            "not_assessed": list(draft.not_assessed),
            "reference_cases": [case_out(case) for case in draft.reference_cases],
            "image_checks": [
                {"view": check.view.value, "frontal": round(check.frontal, 4), "unusual": round(check.unusual, 4)}
                for check in draft.image_checks
            ],
            "refined": None,
            "warnings": [{"code": warning.code, "message": warning.message} for warning in draft.warnings],
            "model": model,
            "timings_ms": {name: round(ms, 1) for name, ms in {**before, **draft.timings_ms, "total": total}.items()},
            "disclaimer": DISCLAIMER,
        }
    )


def _sentence_out(sentence: Sentence) -> SentenceOut:
    """One sentence of the response."""
    attention, evidence = sentence.attention, sentence.evidence
    return SentenceOut(
        text=mark_redactions(sentence.text),
        confidence=round(sentence.confidence, 4),
        labels=dict(sentence.labels),
        supported=sentence.supported,
        attention=None
        if attention is None
        else AttentionOut(patches=_grids(attention.patches), cases=[round(weight, 5) for weight in attention.cases]),
        evidence=None if evidence is None else EvidenceOut(finding=evidence.finding, patches=_grids(evidence.patches)),
        show_confidence=sentence.show_confidence,
    )


def case_response(found: FoundCase) -> CaseResponse:
    """The response of ``/cases``."""
    return CaseResponse.model_validate({**_fields_of(found.case), "added": found.added})


def _fields_of(case: Case | ReferenceCase) -> dict[str, object]:
    """The fields of a case in a draft and under ``/cases``."""
    findings = None if case.findings is None else mark_redactions(case.findings)
    return {
        "case_id": case.case_id,
        "findings": findings,
        "labels": case.labels,
        "annotations": read_annotations(findings),
        "source_url": case.source_url,
        "images": {view: f"cases/{case.case_id}/{view}" for view in case.images},
    }


def _grids(patches: Mapping[str, Grid]) -> dict[str, list[list[float]]]:
    return {view: [[round(value, 5) for value in row] for row in grid] for view, grid in patches.items()}


def case_out(case: ReferenceCase) -> ReferenceCaseOut:
    """One reference case of the response."""
    similarity = round(case.similarity, 4)
    return ReferenceCaseOut.model_validate({**_fields_of(case), "rank": case.rank, "similarity": similarity})
