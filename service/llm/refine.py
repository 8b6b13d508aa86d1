"""The refine hook: a language model behind an OpenAI-compatible address may rewrite a draft.

- Off unless configured, and used only by requests with ``refine=true``.
- Its text is returned separately from the model's draft.
- It receives the draft, its labels and the nearest reference cases: no image, no identity.
- Calls are limited in time and number, and a circuit breaker stops them after repeated failures. Any failure leaves
  the draft unchanged and adds a warning.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from model.text.labeler import NO_FINDING, label_report
from model.types import Label
from service.formats.redaction import mark_redactions
from service.llm.client import Chat, ChatError
from service.metrics import Metrics
from service.schemas.annotations import AnnotationOut, read_annotations
from service.schemas.models import RefinedOut, ReportResponse, WarningOut
from service.settings import Settings
from service.web.problems import format_traceback_locations

log = logging.getLogger(__name__)
MAX_CONCURRENCY, MAX_QUEUE = 4, 16  # calls that run; calls that wait
BREAKER_THRESHOLD, BREAKER_COOLDOWN_S = 3, 30.0  # see CircuitBreaker
MIN_BUDGET_FRACTION = 0.1  # of REPORT_REFINE_TIMEOUT_S: the least remaining time for a call
TIMEOUT_FAILURE_FRACTION = 0.9  # of REPORT_REFINE_TIMEOUT_S: an earlier timeout does not count as a failure
MAX_CONTEXT_CASES = 5  # nearest reference cases in the prompt; a model's context is bounded
INSTRUCTION = """You edit drafts of the findings section of chest X-ray reports. Rewrite the draft in plain, correct \
radiological English.
Rules:
- Say only what the draft says. Add no finding, no measurement, no comparison, no diagnosis and no advice.
- Keep every statement of the draft, its negations and its uncertainty. Merge repetitions.
- "labels" were read from the draft. "reference_cases" are reports of other patients: use them for wording alone.
- Answer with the rewritten findings only: plain text, no heading, no remark."""

_STRENGTH: dict[Label | None, int] = {None: 0, "absent": 0, "uncertain": 1, "present": 2}  # of a stated finding
Unrefined = Literal["failed", "skipped", "off"]
_WARNINGS: dict[Unrefined, tuple[str, str]] = {
    "off": ("refine_off", "No language model is configured (REPORT_REFINE_URL)."),
    "skipped": ("refine_failed", "The language model is overloaded or failed recently; the draft is unchanged."),
    "failed": ("refine_failed", "The language model gave no usable answer; the draft is unchanged."),
}


class CircuitBreaker:
    """Opens for ``BREAKER_COOLDOWN_S`` after ``BREAKER_THRESHOLD`` failures in a row; then one probe decides."""

    def __init__(self) -> None:
        self._failures, self._open_until = 0, 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are refused now."""
        return time.monotonic() < self._open_until

    def record_success(self) -> None:
        """Close the breaker."""
        self._failures = 0

    def record_failure(self) -> None:
        """Count a failure; a failed probe opens the breaker again."""
        self._failures += 1
        if self._failures >= BREAKER_THRESHOLD:
            self._open_until = time.monotonic() + BREAKER_COOLDOWN_S


class Refiner:
    """Rewrites drafts with the configured language model. Used on one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._timeout_s = settings.refine_timeout_s
        self._chat = None
        if settings.refine_url is not None and settings.refine_model is not None:
            self._chat = Chat(settings.refine_url, settings.refine_model, settings.refine_key())
        self._slots, self._pending = asyncio.Semaphore(MAX_CONCURRENCY), 0
        self._breaker = CircuitBreaker()

    @property
    def configured(self) -> bool:
        """Whether a language model is configured."""
        return self._chat is not None

    async def refine(self, report: ReportResponse, within_s: float) -> ReportResponse:
        """Return the report with ``refined`` set, or with a warning that gives the reason.

        Args:
            report: with the model's draft.
            within_s: seconds until the request's deadline.
        """
        if self._chat is None:
            return self._unrefined(report, "off")
        if not report.findings:
            return report
        if within_s <= 0 or self._breaker.is_open or self._pending >= MAX_CONCURRENCY + MAX_QUEUE:
            return self._unrefined(report, "skipped")
        started = time.monotonic()
        self._pending += 1
        try:
            text = await self._rewrite(self._chat, report, min(self._timeout_s, within_s))
        except _UnrefinedError as error:
            return self._unrefined(with_timing(report, started), error.result)
        finally:
            self._pending -= 1
        self._metrics.refined.labels("done").inc()
        refined = RefinedOut(text=text, model=self._chat.model)
        warnings = [*report.warnings, *await asyncio.to_thread(differences, report, text)]
        return with_timing(report, started).model_copy(update={"refined": refined, "warnings": warnings})

    async def _rewrite(self, chat: Chat, report: ReportResponse, within_s: float) -> str:
        call_started, deadline = None, time.monotonic() + within_s
        try:
            async with asyncio.timeout(within_s), self._slots:
                call_started = time.monotonic()
                if self._breaker.is_open or deadline - call_started < MIN_BUDGET_FRACTION * self._timeout_s:
                    raise _UnrefinedError("skipped")
                text = await chat.ask(INSTRUCTION, json.dumps(_build_prompt_payload(report), ensure_ascii=False))
        except _UnrefinedError:
            raise
        except TimeoutError:
            if call_started is None or time.monotonic() - call_started < TIMEOUT_FAILURE_FRACTION * self._timeout_s:
                raise _UnrefinedError("skipped") from None  # drafting or queueing used the time, not the server
            reason = f"it took longer than {within_s:.1f} s"
        except ChatError as error:
            reason = str(error)
        except Exception as error:  # an unexpected error must not cost the draft
            log.error("refining failed with %s\n%s", type(error).__name__, format_traceback_locations(error))
            reason = type(error).__name__
        else:
            self._breaker.record_success()
            return mark_redactions(text)
        log.warning("the language model did not refine a draft: %s", reason)
        self._breaker.record_failure()
        raise _UnrefinedError("failed")

    def _unrefined(self, report: ReportResponse, result: Unrefined) -> ReportResponse:
        self._metrics.refined.labels(result).inc()
        code, message = _WARNINGS[result]
        return report.model_copy(update={"warnings": [*report.warnings, WarningOut(code=code, message=message)]})


class _UnrefinedError(Exception):
    def __init__(self, result: Unrefined) -> None:
        super().__init__(result)
        self.result: Unrefined = result


def with_timing(report: ReportResponse, started: float, stage: str = "refine") -> ReportResponse:
    """The report with the time since ``started`` (``time.monotonic``) added to its timings."""
    taken_ms = round((time.monotonic() - started) * 1000, 1)
    stages = {name: ms for name, ms in report.timings_ms.items() if name != "total"}
    total = round(report.timings_ms["total"] + taken_ms, 1)
    return report.model_copy(update={"timings_ms": {**stages, stage: taken_ms, "total": total}})


def _build_prompt_payload(report: ReportResponse) -> dict[str, Any]:
    return {
        "findings": report.findings,
        "labels": _mentioned(report.labels),
        "reference_cases": [
            {"similarity": case.similarity, "findings": case.findings, "labels": _mentioned(case.labels)}
            for case in report.reference_cases[:MAX_CONTEXT_CASES]
        ],
    }


def _mentioned(labels: dict[str, Any]) -> dict[str, str]:
    return {name: label for name, label in labels.items() if label is not None}


def differences(report: ReportResponse, text: str) -> list[WarningOut]:
    """Warnings about findings that the rewritten text states more or less strongly, or on other sides."""
    labels = label_report(text, use_cache=False)
    change = {
        name: _STRENGTH[label] - _STRENGTH[report.labels[name]] for name, label in labels.items() if name != NO_FINDING
    }
    added = (name for name, difference in change.items() if difference > 0)
    dropped = (name for name, difference in change.items() if difference < 0)
    before, after = (_sides(found) for found in (report.annotations, read_annotations(text, use_cache=False)))
    moved = (name for name in labels if name in before and name in after and before[name] != after[name])
    return [
        *_warning("refine_added", "Present or possible in the rewritten text, but not in the draft", added),
        *_warning("refine_dropped", "Present or possible in the draft, but not in the rewritten text", dropped),
        *_warning("refine_moved", "On other sides in the rewritten text than in the draft", moved),
    ]


def _sides(annotations: Iterable[AnnotationOut]) -> dict[str, set[str]]:
    """Finding -> sides of its mentions that are not absent; findings without a side are left out."""
    sides: dict[str, set[str]] = {}
    for each in annotations:
        if each.side is not None and each.presence != "absent":
            sides.setdefault(each.finding, set()).update(("left", "right") if each.side == "both" else (each.side,))
    return sides


def _warning(code: str, message: str, names: Iterable[str]) -> Iterator[WarningOut]:
    if listed := ", ".join(names):
        yield WarningOut(code=code, message=f"{message}: {listed}.")
