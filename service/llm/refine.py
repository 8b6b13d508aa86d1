"""The refine hook: a language model of the operator's, behind an OpenAI-compatible address, may rewrite a draft.

Off unless configured, asked for one request at a time (``refine=true``), kept apart from the model's own draft, bounded
in time and number, and harmless where it fails: the answer then carries a warning and the draft. It is told the draft,
its labels and the nearest reference cases; no image, no identity, nothing else of the request.
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
from service.schemas.models import RefinedOut, ReportResponse, WarningOut
from service.settings import Settings
from service.web.problems import format_traceback_locations

log = logging.getLogger(__name__)
MAX_CONCURRENCY, MAX_QUEUE = 4, 16  # calls that run; calls that wait
# Circuit breaker: after 3 failures in a row it opens for 30 s; then one probe decides.
BREAKER_THRESHOLD, BREAKER_COOLDOWN_S = 3, 30.0
MIN_BUDGET_FRACTION = 0.1  # of REPORT_REFINE_TIMEOUT_S: with less time left there is no call
TIMEOUT_BLAME_FRACTION = 0.9  # of REPORT_REFINE_TIMEOUT_S: a timeout after less time is not counted as a failure
MAX_CONTEXT_CASES = 5  # nearest reference cases in the prompt; a model's context is bounded
INSTRUCTION = """You edit drafts of the findings section of chest X-ray reports. Rewrite the draft in plain, correct \
radiological English.
Rules:
- Say only what the draft says. Add no finding, no measurement, no comparison, no diagnosis and no advice.
- Keep every statement of the draft, its negations and its uncertainty. Merge repetitions.
- "labels" were read from the draft. "reference_cases" are reports of other patients: use them for wording alone.
- Answer with the rewritten findings only: plain text, no heading, no remark."""

_WEIGHT: dict[Label | None, int] = {None: 0, "absent": 0, "uncertain": 1, "present": 2}  # how much of a finding is said
Unrefined = Literal["failed", "skipped", "off"]
_WARNINGS: dict[Unrefined, tuple[str, str]] = {
    "off": ("refine_off", "No language model is configured (REPORT_REFINE_URL)."),
    "skipped": ("refine_failed", "The language model has too much to do or failed lately; the draft stands."),
    "failed": ("refine_failed", "The language model gave no usable answer; the draft stands."),
}


class Refiner:
    """Rewrites drafts by the language model that the settings name. Used on one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._timeout_s = settings.refine_timeout_s
        self._chat = None
        if settings.refine_url is not None and settings.refine_model is not None:
            self._chat = Chat(settings.refine_url, settings.refine_model, settings.refine_key())
        self._turns, self._inside = asyncio.Semaphore(MAX_CONCURRENCY), 0
        self._failures, self._rests_until = 0, 0.0

    async def refine(self, report: ReportResponse, within_s: float) -> ReportResponse:
        """The answer with ``refined`` set, or with a warning that says why it is not.

        Args:
            report: with the model's draft.
            within_s: seconds that are left of the request's time.
        """
        if self._chat is None:
            return self._unrefined(report, "off")
        if not report.findings:
            return report
        began = time.monotonic()
        if within_s <= 0 or began < self._rests_until or self._inside >= MAX_CONCURRENCY + MAX_QUEUE:
            return self._unrefined(report, "skipped")
        self._inside += 1
        try:
            text = await self._rewritten(self._chat, report, min(self._timeout_s, within_s))
        except _UnrefinedError as error:
            return self._unrefined(_timed(report, began), error.result)
        finally:
            self._inside -= 1
        self._metrics.refined.labels("done").inc()
        refined = RefinedOut(text=text, model=self._chat.model)
        warnings = [*report.warnings, *await asyncio.to_thread(differences, report, text)]
        return _timed(report, began).model_copy(update={"refined": refined, "warnings": warnings})

    async def _rewritten(self, chat: Chat, report: ReportResponse, within_s: float) -> str:
        asked, until = None, time.monotonic() + within_s
        try:
            async with asyncio.timeout(within_s), self._turns:
                asked = time.monotonic()
                if asked < self._rests_until or until - asked < MIN_BUDGET_FRACTION * self._timeout_s:
                    raise _UnrefinedError("skipped")
                text = await chat.ask(INSTRUCTION, json.dumps(_build_prompt_payload(report), ensure_ascii=False))
        except _UnrefinedError:
            raise
        except TimeoutError:
            if asked is None or time.monotonic() - asked < TIMEOUT_BLAME_FRACTION * self._timeout_s:
                raise _UnrefinedError("skipped") from None  # drafting or others took its time: no fault of its own
            reason = f"it took longer than {within_s:.1f} s"
        except ChatError as error:
            reason = str(error)
        except Exception as error:  # whatever an answer provoked; never the draft's loss
            log.error("refining failed with %s\n%s", type(error).__name__, format_traceback_locations(error))
            reason = type(error).__name__
        else:
            self._failures = 0
            return mark_redactions(text)
        log.warning("the language model did not refine a draft: %s", reason)
        self._failures += 1
        if self._failures >= BREAKER_THRESHOLD:
            self._rests_until = time.monotonic() + BREAKER_COOLDOWN_S
        raise _UnrefinedError("failed")

    def _unrefined(self, report: ReportResponse, result: Unrefined) -> ReportResponse:
        self._metrics.refined.labels(result).inc()
        code, message = _WARNINGS[result]
        return report.model_copy(update={"warnings": [*report.warnings, WarningOut(code=code, message=message)]})


class _UnrefinedError(Exception):
    def __init__(self, result: Unrefined) -> None:
        super().__init__(result)
        self.result: Unrefined = result


def _timed(report: ReportResponse, began: float) -> ReportResponse:
    """The answer with the time since ``began``, of ``time.monotonic``, in its timings."""
    taken_ms = round((time.monotonic() - began) * 1000, 1)
    before = {name: ms for name, ms in report.timings_ms.items() if name != "total"}
    total = round(report.timings_ms["total"] + taken_ms, 1)
    return report.model_copy(update={"timings_ms": {**before, "refine": taken_ms, "total": total}})


def _build_prompt_payload(report: ReportResponse) -> dict[str, Any]:
    """What the language model is told: nothing else of the request."""
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
    """Warnings that name the findings of which the rewritten text says more than the draft, and less."""
    labels = label_report(text, use_cache=False)
    pairs = {name: (report.labels[name], label) for name, label in labels.items() if name != NO_FINDING}
    added = [name for name, (ours, theirs) in pairs.items() if _WEIGHT[theirs] > _WEIGHT[ours]]
    dropped = [name for name, (ours, theirs) in pairs.items() if _WEIGHT[theirs] < _WEIGHT[ours]]
    return [
        *_named("refine_added", "The rewritten text calls present, or possible, what the draft does not", added),
        *_named(
            "refine_dropped", "The rewritten text no longer calls present, or possible, what the draft does", dropped
        ),
    ]


def _named(code: str, what: str, names: Iterable[str]) -> Iterator[WarningOut]:
    if listed := ", ".join(names):
        yield WarningOut(code=code, message=f"{what}: {listed}.")
