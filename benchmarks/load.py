"""Load on the service: drawn studies with their expected answers, a record of every request.

Requests are sent by Locust in a process of its own (``benchmarks.generator``), because Locust
replaces parts of the standard library when it is imported.
"""

from __future__ import annotations

import base64
import collections
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.raw_http import CONTENT_TYPE, form
from benchmarks.server import idle

SIZES = (96, 160, 256, 384, 512, 768)  # pixels a side
BAD_CLIENTS = ("leaves while sending", "leaves while waiting", "sends garbage", "uploads slowly")
GOOD, BAD = ("answered", "refused", "own fault"), ("wrong", "unexpected", "lost", "hung")


@dataclass(frozen=True)
class Study:
    """A multipart body; ``expected`` is the ``answer_key`` of the answer it gets alone, empty until measured."""

    body: bytes = field(repr=False)
    expected: str = ""


@dataclass
class Record:
    """One request of a load."""

    due: float  # when it should have been sent, seconds since the start
    client: str = "normal"  # or one of ``BAD_CLIENTS``
    outcome: str = ""  # one of ``GOOD`` or ``BAD``
    status: int = 0  # of the answer, 0 without one
    code: str = ""  # of the problem document, if it was one
    late: float = 0.0  # seconds from ``due`` until it was sent
    seconds: float = 0.0  # from ``due`` to the end of the answer, so that a slow generator does not hide a wait
    note: str = ""  # what went wrong


@dataclass(frozen=True)
class Load:
    """What the generator sends to ``url`` for ``seconds``."""

    url: str
    seconds: float
    clients: int = 0  # closed loop: they send their next study when the answer to the last one has arrived
    per_second: float = 0.0  # open loop: arrivals of a Poisson process, whether or not answers arrive
    misbehaving: float = 0.0  # share of the arrivals of ``BAD_CLIENTS``
    deadline_s: float = 60.0  # after which a request counts as hung
    seed: int = 0  # of arrivals, studies and misbehaviour
    quiet: bool = False  # show no progress


def generate(load: Load, studies: Sequence[Study]) -> list[Record]:
    """Send the load and return one record per request."""
    bodies = [(base64.b64encode(study.body).decode(), study.expected) for study in studies]
    plan = json.dumps({"load": asdict(load), "studies": bodies}).encode()
    done = subprocess.run([sys.executable, "-m", "benchmarks.generator"], input=plan, stdout=subprocess.PIPE)
    if done.returncode:
        raise RuntimeError(f"the load generator ended with status {done.returncode}; see its output above")
    return [Record(**json.loads(line)) for line in done.stdout.splitlines()]


def drawn_studies(count: int, *, seed: int = 0, sizes: Sequence[int] = SIZES, both_views: bool = False) -> list[Study]:
    """Drawn chests of different sizes and findings, PNG and JPEG, one view or two."""
    from training.phantoms import PHANTOM_FINDINGS, make_phantom  # not needed by the generator

    rng = np.random.default_rng([seed, 21])
    studies = []
    for number in range(count):
        findings = frozenset(name for name in PHANTOM_FINDINGS if rng.random() < 0.25)
        phantom = make_phantom(seed * 1000 + number, findings, size=sizes[number % len(sizes)])
        kind = "PNG" if both_views or rng.random() < 0.6 else "JPEG"
        views = {"frontal": phantom.frontal}
        if both_views or rng.random() < 0.6:
            views["lateral"] = phantom.lateral
        files = []
        for name, pixels in views.items():
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, kind)
            files.append((name, out.getvalue()))
        studies.append(Study(form(files)))
    return studies


def with_answers(url: str, studies: Sequence[Study], *, timeout_s: float = 60.0) -> list[Study]:
    """The same studies with the answer each gets while nothing else is sent; raises RuntimeError without one."""
    known = []
    with httpx.Client(timeout=timeout_s, headers={"Content-Type": CONTENT_TYPE}) as client:
        for study in studies:
            answer = client.post(url + "/report", content=study.body)
            if answer.status_code != 200:
                raise RuntimeError(
                    f"a drawn study is answered {answer.status_code}; is {url} ready? {answer.text[:200]}"
                )
            known.append(replace(study, expected=answer_key(answer.json())))
    return known


def faults_afterwards(url: str, known: Sequence[Study]) -> list[str]:
    """What is wrong after a run: the service must be healthy and idle, and must answer every study as before."""
    faults = []
    try:
        health = idle(url)
        if health["status_code"] != 200 or health["queue"]["depth"] != 0:
            faults.append(f"afterwards /health answers {health['status_code']}, queue {health.get('queue')}")
        for number, (study, before) in enumerate(zip(with_answers(url, known), known, strict=True)):
            if study != before:
                faults.append(f"afterwards study {number} gets {study.expected!r}, not {before.expected!r}")
    except (httpx.HTTPError, RuntimeError) as error:
        faults.append(f"afterwards the service does not answer: {error}")
    return faults


def answer_key(answer: Mapping[str, Any]) -> str:
    """What must not depend on other requests: the findings, and the reference cases in their order.

    An untrained model may write the same words for all images; the cases then reveal a mixed-up answer.
    """
    return " | ".join([answer["findings"], *(case["case_id"] for case in answer["reference_cases"])])


def judge(record: Record, study: Study, status: int, retry_after: str, body: bytes) -> None:
    """Set the outcome of a request that got a complete answer."""
    record.status = status
    try:
        answer = json.loads(body)
    except ValueError:
        record.outcome, record.note = "unexpected", f"{status} with a body that is not JSON: {body[:80]!r}"
        return
    record.code = str(answer.get("code", "")) if status >= 400 else ""
    if status == 200:
        found = answer_key(answer)
        record.outcome = "answered" if found == (study.expected or found) else "wrong"
        record.note = "" if record.outcome == "answered" else f"{found!r} instead of {study.expected!r}"
    elif status == 503 and record.code == "busy" and retry_after.isdecimal():
        record.outcome = "refused"
    else:
        record.outcome, record.note = "unexpected", f"{status} {record.code}, Retry-After {retry_after!r}"


def rate(records: Sequence[Record]) -> float:
    """Answers a second, from the first request to the last answer."""
    answered = [record for record in records if record.outcome == "answered"]
    return len(answered) / max(record.due + record.seconds for record in records) if answered else 0.0


def percentiles(seconds: Iterable[float]) -> dict[str, float] | None:
    """p50, p95, p99 and the largest, in seconds; None without values."""
    values, names = list(seconds), ("p50", "p95", "p99", "max")
    return dict(zip(names, np.percentile(values, (50, 95, 99, 100)).tolist(), strict=True)) if values else None


def count_outcomes(records: Iterable[Record]) -> dict[str, int]:
    """Number of records by outcome."""
    return dict(collections.Counter(record.outcome for record in records).most_common())
