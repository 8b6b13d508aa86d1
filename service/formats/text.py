"""The report as plain text, for ``python -m service.report`` and ``Accept: text/plain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.schemas.annotations import AnnotationOut
from service.schemas.models import ImageCheckOut, Labels, ReferenceCaseOut, ReportResponse, SentenceOut

NOTHING_WRITTEN = "(nothing was written)"
NOT_ASSESSED = "Not assessed by this model"
UNSUPPORTED = "[neither a reference case nor the images bear this out]"


def plain_text(report: ReportResponse) -> str:
    """The whole report: findings, sentences, labels, cases, image checks, warnings, model."""
    lines = [report.findings or NOTHING_WRITTEN, ""]
    lines += [_sentence_line(sentence) for sentence in report.sentences]
    if report.refined is not None:
        lines += ["", f"{rewritten_by(report.refined.model)}:", f"  {report.refined.text}"]
    lines += ["", f"Labels: {named_labels(assessed_labels(report), located(report)) or 'none'}"]
    lines += unassessed_lines(report)
    lines += _case_lines(report.reference_cases)
    lines += [_check_line(number, check) for number, check in enumerate(report.image_checks, 1)]
    lines += [f"Warning ({warning.code}): {warning.message}" for warning in report.warnings]
    lines += ["", f"Model: {report.model.name}, {report.model.digest} ({report.model.licence})"]
    lines += [f"Report: {report.report_id}", "", report.disclaimer]
    return "\n".join(lines)


def rewritten_by(model: str) -> str:
    """The heading of a rewritten draft, which separates it from the model's draft."""
    return f"Rewritten by the language model {model}, not the draft"


def named_labels(labels: Labels, places: Mapping[str, Sequence[AnnotationOut]] | None = None) -> str:
    """``Cardiomegaly: absent, Lung Lesion: present (nodule, left)``; only findings that the text mentions."""
    shown = {name: f" ({'; '.join(map(_described, found))})" for name, found in (places or {}).items()}
    return ", ".join(f"{name}: {label}{shown.get(name, '')}" for name, label in labels.items() if label is not None)


def located(report: ReportResponse) -> dict[str, list[AnnotationOut]]:
    """Finding -> its annotations with a side, region or degree that agree with its label; equal ones once.

    Denied findings have none: "no large effusion" does not deny a small one.
    """
    found: dict[str, dict[str, AnnotationOut]] = {}
    for each in report.annotations:
        if each.presence == report.labels.get(each.finding) != "absent" and _place(each):
            found.setdefault(each.finding, {}).setdefault(_described(each), each)
    return {name: list(places.values()) for name, places in found.items()}


def _described(annotation: AnnotationOut) -> str:
    """``nodule, left, upper lobe, small``: the narrower name, side, regions and degree."""
    return ", ".join(filter(None, (annotation.narrower, _place(annotation))))


def _place(annotation: AnnotationOut) -> str:
    side = "both sides" if annotation.side == "both" else annotation.side
    return ", ".join(filter(None, (side, *annotation.regions, annotation.degree_words or annotation.degree)))


def assessed_labels(report: ReportResponse) -> Labels:
    """The labels without denied findings that the model does not assess."""
    unassessed = unassessed_findings(report)
    return {name: label for name, label in report.labels.items() if name not in unassessed}


def unassessed_findings(report: ReportResponse) -> list[str]:
    """Findings that the report denies and that the model does not assess."""
    return [name for name in report.not_assessed if report.labels.get(name) == "absent"]


def unassessed_lines(report: ReportResponse) -> list[str]:
    """One line with these findings; no line without them."""
    names = unassessed_findings(report)
    return [f"{NOT_ASSESSED}: {', '.join(names)}"] if names else []


def _sentence_line(sentence: SentenceOut) -> str:
    share = f"{sentence.confidence:4.0%}" if sentence.show_confidence else "    "
    line = f"  {share}  {sentence.text}"
    return line if sentence.supported is not False else f"{line} {UNSUPPORTED}"


def _check_line(number: int, check: ImageCheckOut) -> str:
    return (
        f"Image {number}: read as {check.view}; frontal with probability {check.frontal:.1%}; "
        f"{check.unusual:.1%} of radiographs look less unusual"
    )


def _case_lines(cases: Sequence[ReferenceCaseOut]) -> list[str]:
    if not cases:
        return []
    lines = ["", "Reference cases:"]
    for case in cases:
        line = f"  {case.rank}. {case.case_id}  similarity {case.similarity:.2f}  {case.source_url or ''}"
        lines.append(line.rstrip())
        if case.findings is not None:
            lines.append(f"     {case.findings}")
        if labels := named_labels(case.labels):
            lines.append(f"     Labels: {labels}")
    return [*lines, ""]
