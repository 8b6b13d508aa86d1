"""The refine hook: a language model of the operator's, behind an OpenAI-compatible address, may rewrite a draft.

Off unless configured, asked for one request at a time (``refine=true``), kept apart from the model's own draft, bounded
in time and size, and harmless where it fails: the answer then carries a warning and the draft. It is told the draft,
its labels and the reference cases; no image, no identity, nothing else of the request. Wire format: chat completions,
https://platform.openai.com/docs/api-reference/chat, as llama.cpp, vLLM, Ollama and others speak it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx

from model.labeler import NO_FINDING, label_report
from service.answers import mark_redactions
from service.metrics import Metrics
from service.problems import places
from service.schemas import RefinedOut, ReportResponse, WarningOut
from service.settings import Settings

log = logging.getLogger(__name__)
AT_ONCE = 4  # rewritings under way; others wait their turn within their own time
FAILURES, REST_S = 3, 30.0  # after so many failures in a row nobody is asked for so long
MAX_ANSWER_BYTES, MAX_CHARACTERS = 256 * 1024, 8_000
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # what reasoning models put before their answer
INSTRUCTION = """You edit drafts of the findings section of chest X-ray reports. Rewrite the draft in plain, correct \
radiological English.
Rules:
- Say only what the draft says. Add no finding, no measurement, no comparison, no diagnosis and no advice.
- Keep every statement of the draft, its negations and its uncertainty. Merge repetitions.
- "labels" were read from the draft. "reference_cases" are reports of other patients: use them for wording alone.
- Answer with the rewritten findings only: plain text, no heading, no remark."""


class RefineError(RuntimeError):
    """The language model gave nothing that can be used; the message quotes nothing of its answer."""


class Refiner:
    """Rewrites drafts by the language model that the settings name. Used on one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._timeout_s = settings.refine_timeout_s
        self._model = settings.refine_model or ""
        self._client: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._failures, self._rests_until = 0, 0.0
        if settings.refine_url is not None:
            key = settings.refine_key()
            self._client = httpx.AsyncClient(
                base_url=settings.refine_url.rstrip("/") + "/",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=None,  # bounded as a whole, below
                trust_env=False,  # no proxy of the environment gets to read drafts
                follow_redirects=False,  # nor does another address
            )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def refine(self, report: ReportResponse, within_s: float) -> ReportResponse:
        """The answer with ``refined`` set, or with a warning that says why it is not.

        Args:
            report: with the model's draft.
            within_s: seconds that are left of the request's time.
        """
        if self._client is None:
            self._metrics.refined.labels("off").inc()
            return _warned(report, "refine_off", "No language model is configured (REPORT_REFINE_URL).")
        if not report.findings:
            return report
        began = time.monotonic()
        if began < self._rests_until:
            self._metrics.refined.labels("skipped").inc()
            return _warned(report, "refine_failed", "The language model failed lately and is given a rest.")
        try:
            async with asyncio.timeout(min(self._timeout_s, within_s)), self._turns:
                text = mark_redactions(await self._ask(self._client, report))
        except (TimeoutError, RefineError, httpx.HTTPError) as error:
            self._failed(error)
            return _warned(report, "refine_failed", "The language model gave no usable answer; the draft stands.")
        except Exception as error:  # whatever an answer provoked; never the draft's loss
            log.error("refining failed with %s\n%s", type(error).__name__, places(error))
            self._failed(error)
            return _warned(report, "refine_failed", "The language model gave no usable answer; the draft stands.")
        self._failures = 0
        self._metrics.refined.labels("done").inc()
        taken_ms = round((time.monotonic() - began) * 1000, 1)
        timings = {**report.timings_ms, "refine": taken_ms}
        timings["total"] = round(timings.pop("total") + taken_ms, 1)
        refined = RefinedOut(text=text, model=self._model)
        warnings = [*report.warnings, *_added(report, text)]
        return report.model_copy(update={"refined": refined, "warnings": warnings, "timings_ms": timings})

    def _failed(self, error: Exception) -> None:
        self._metrics.refined.labels("failed").inc()
        reason = str(error) if isinstance(error, RefineError) else type(error).__name__
        log.warning("the language model did not refine a draft: %s", reason)
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures, self._rests_until = 0, time.monotonic() + REST_S

    async def _ask(self, client: httpx.AsyncClient, report: ReportResponse) -> str:
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": json.dumps(_told(report), ensure_ascii=False)},
            ],
            "temperature": 0,
            "stream": False,
        }
        received = bytearray()
        async with client.stream("POST", "chat/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                raise RefineError(f"it answered status {answer.status_code}")
            async for part in answer.aiter_bytes():
                received += part
                if len(received) > MAX_ANSWER_BYTES:
                    raise RefineError(f"its answer is larger than {MAX_ANSWER_BYTES:,} bytes")
        return _text(bytes(received))


def _told(report: ReportResponse) -> dict[str, Any]:
    """What the language model is told: nothing else of the request."""
    return {
        "findings": report.findings,
        "labels": _mentioned(report.labels),
        "reference_cases": [
            {"similarity": case.similarity, "findings": case.findings, "labels": _mentioned(case.labels)}
            for case in report.reference_cases
        ],
    }


def _mentioned(labels: dict[str, Any]) -> dict[str, str]:
    return {name: label for name, label in labels.items() if label is not None}


def _text(data: bytes) -> str:
    """The text of a chat completion.

    Raises:
        RefineError: there is none of a usable length.
    """
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RefineError("its answer is no chat completion") from None
    if not isinstance(content, str):
        raise RefineError("its answer holds no text")
    text = _THOUGHT.sub("", content).strip()
    if not text or len(text) > MAX_CHARACTERS:
        raise RefineError(f"its text has {len(text):,} characters; 1 to {MAX_CHARACTERS:,} are taken")
    return text


def _added(report: ReportResponse, text: str) -> Iterator[WarningOut]:
    """A warning that names the findings which only the rewritten text calls present."""
    labels = label_report(text)
    added = [
        name
        for name, label in labels.items()
        if name != NO_FINDING and label == "present" and report.labels[name] != "present"
    ]
    if added:
        message = f"The rewritten text calls present what the draft does not: {', '.join(added)}."
        yield WarningOut(code="refine_added", message=message)


def _warned(report: ReportResponse, code: str, message: str) -> ReportResponse:
    return report.model_copy(update={"warnings": [*report.warnings, WarningOut(code=code, message=message)]})
