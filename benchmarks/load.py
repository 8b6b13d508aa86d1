"""What a load is made of: drawn studies with the findings each gets alone, and what became of each request."""

from __future__ import annotations

import asyncio
import collections
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.raw_http import form
from training.phantoms import PHANTOM_FINDINGS, make_phantom

CONTENT_TYPE = "multipart/form-data; boundary=b0undary"
SIZES = (96, 160, 256, 384, 512, 768)  # pixels a side
BUSY = "busy"


@dataclass(frozen=True)
class Study:
    """A multipart body; ``expected`` is the ``essence`` of the answer it gets alone, empty until known."""

    body: bytes = field(repr=False)
    expected: str = ""


def essence(answer: dict[str, Any]) -> str:
    """What must be the same whoever else is served: the findings, and the reference cases in their order.

    An untrained model may write the same words for all images; the cases then tell a mixed-up answer.
    """
    return " | ".join([answer["findings"], *(case["case_id"] for case in answer["reference_cases"])])


def drawn_studies(count: int, *, seed: int = 0, sizes: Sequence[int] = SIZES, both_views: bool = False) -> list[Study]:
    """Bodies of drawn chests of different sizes and findings, PNG and JPEG, one view or two."""
    rng = np.random.default_rng([seed, 21])
    studies = []
    for number in range(count):
        findings = frozenset(name for name in PHANTOM_FINDINGS if rng.random() < 0.25)
        phantom = make_phantom(seed * 1000 + number, findings, size=sizes[number % len(sizes)])
        kind = "PNG" if both_views or rng.random() < 0.6 else "JPEG"
        fields = {"frontal": _file(phantom.frontal, kind)}
        if both_views or rng.random() < 0.6:
            fields["lateral"] = _file(phantom.lateral, kind)
        studies.append(Study(form(fields)))
    return studies


def _file(pixels: Any, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@dataclass
class Record:
    """One request of a load.

    Attributes:
        due: when it should have been sent, seconds since the start; its time counts from here, so that a client that
            falls behind does not hide a wait.
        client: ``normal``, or how it misbehaves.
        outcome: ``answered``, ``refused``, ``own fault``, or what went wrong: ``wrong``, ``unexpected``, ``lost``,
            ``hung``.
        status: of the answer, 0 without one.
        code: of the problem, where it was one.
        seconds: from ``due`` to the end of the answer.
        note: what went wrong, in words.
    """

    due: float
    client: str
    outcome: str = ""
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    note: str = ""


GOOD = ("answered", "refused", "own fault")


async def post(session: aiohttp.ClientSession, url: str, study: Study, record: Record) -> None:
    """Send one study and say in ``record`` what came of it; raises nothing but a cancellation."""
    try:
        async with session.post(url + "/report", data=study.body, headers={"Content-Type": CONTENT_TYPE}) as response:
            settle(record, study, response.status, response.headers.get("Retry-After", ""), await response.read())
    except TimeoutError:
        record.outcome, record.note = "hung", "no answer within the deadline"
    except (aiohttp.ClientError, OSError) as error:
        record.outcome, record.note = "lost", f"{type(error).__name__}: {error}"


def settle(record: Record, study: Study, status: int, retry_after: str, body: bytes) -> None:
    """Judge a whole answer to a right request."""
    record.status = status
    try:
        answer = json.loads(body)
    except ValueError:
        record.outcome, record.note = "unexpected", f"a body that is no JSON: {body[:80]!r}"
        return
    record.code = str(answer.get("code", "")) if status >= 400 else ""
    if status == 200:
        right = not study.expected or essence(answer) == study.expected
        record.outcome = "answered" if right else "wrong"
        if not right:
            record.note = f"{essence(answer)!r} instead of {study.expected!r}"
    elif status == 503 and record.code == BUSY and retry_after.isdecimal():
        record.outcome = "refused"
    else:
        record.outcome, record.note = "unexpected", f"{status} {record.code}, Retry-After {retry_after!r}"


async def closed_loop(
    session: aiohttp.ClientSession, url: str, studies: Sequence[Study], *, clients: int, seconds: float
) -> list[Record]:
    """``clients`` that each send their next study when they have the answer to the one before; all their records."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    records: list[Record] = []

    async def client(number: int) -> None:
        turn = number
        while loop.time() - began < seconds:
            record = Record(loop.time() - began, "normal")
            await post(session, url, studies[turn % len(studies)], record)
            record.seconds = loop.time() - began - record.due
            records.append(record)
            turn += clients

    await asyncio.gather(*(client(number) for number in range(clients)))
    return records


def rate(records: Sequence[Record]) -> float:
    """Answers a second, from the first request to the last answer."""
    answered = [record for record in records if record.outcome == "answered"]
    return len(answered) / max(record.due + record.seconds for record in records) if answered else 0.0


def percentiles(seconds: Iterable[float]) -> dict[str, float] | None:
    """p50, p95, p99 and the largest, in seconds; None of nothing."""
    values = np.array(list(seconds), dtype=np.float64)
    if not len(values):
        return None
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(values.max())}


def counted(records: Iterable[Record]) -> dict[str, int]:
    """Outcomes and how often."""
    return dict(collections.Counter(record.outcome for record in records).most_common())
