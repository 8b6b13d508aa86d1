"""Clients that an open door meets: they leave in the middle, trickle, or send what is no request at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import numpy as np

from benchmarks.load import Record, Study, settle
from benchmarks.raw_http import post_report

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Misbehaviour = Callable[[str, Study, Record, np.random.Generator], Awaitable[None]]
CONTENT_TYPE = "multipart/form-data; boundary=b0undary"
TRICKLE_S = (0.5, 4.0)  # how long a slow upload takes


async def leaves_while_sending(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends a part of the body and breaks the connection off."""
    data = _request(study)
    _, writer = await _connect(url)
    try:
        writer.write(data[: int(rng.integers(100, len(data) - 10))])
        await writer.drain()
    finally:
        writer.transport.abort()
    record.outcome = "own fault"


async def leaves_while_waiting(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends all and breaks the connection off before the answer, at any moment of a second."""
    reader, writer = await _connect(url)
    try:
        writer.write(_request(study))
        await writer.drain()
        try:
            async with asyncio.timeout(float(rng.uniform(0.0, 1.0))):
                await _answer(reader, study, record)
                return
        except TimeoutError:
            record.outcome = "own fault"
    finally:
        writer.transport.abort()


async def trickles(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends the whole request in pieces over seconds: slow, but right, and to be answered."""
    data = _request(study)
    cuts = sorted(int(cut) for cut in rng.integers(0, len(data), 20))
    pause = float(rng.uniform(*TRICKLE_S)) / (len(cuts) + 1)
    reader, writer = await _connect(url)
    answer = asyncio.create_task(_answer(reader, study, record))
    try:
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if answer.done():
                break  # refused before all was sent
            writer.write(data[start:stop])
            await writer.drain()
            await asyncio.wait([answer], timeout=pause)
        await answer
    finally:
        answer.cancel()
        writer.transport.abort()


async def sends_garbage(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends bytes that are no form, or no image, and must be told so: a 4xx, or busy."""
    bodies = (
        rng.bytes(2000),
        study.body[: len(study.body) // 2],
        study.body.replace(b"PNG", b"GNP").replace(b"\xff\xd8\xff", b"\xff\x00\xff"),  # the marks by which both begin
    )
    reader, writer = await _connect(url)
    try:
        writer.write(post_report(bodies[int(rng.integers(len(bodies)))], CONTENT_TYPE))
        await writer.drain()
        await _answer(reader, study, record)
    finally:
        writer.transport.abort()
    if record.outcome == "unexpected" and 400 <= record.status < 500 and record.code:
        record.outcome, record.note = "own fault", ""
    elif record.outcome == "answered":
        record.outcome, record.note = "wrong", "garbage was answered with a draft"


ALL: dict[str, Misbehaviour] = {
    "leaves while sending": leaves_while_sending,
    "leaves while waiting": leaves_while_waiting,
    "trickles": trickles,
    "sends garbage": sends_garbage,
}


async def misbehave(how: str, url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Behave in one of ``ALL`` ways; what came of it stands in ``record``. Only the caller's deadline is raised."""
    try:
        await ALL[how](url, study, record, rng)
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, TimeoutError):
            raise
        record.outcome, record.note = "lost", f"{type(error).__name__}: {error}"


def _request(study: Study) -> bytes:
    return post_report(study.body, CONTENT_TYPE)


async def _connect(url: str) -> Streams:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


async def _answer(reader: asyncio.StreamReader, study: Study, record: Record) -> None:
    """Read one answer to the end of its connection.

    Raises:
        EOFError, OSError, ValueError: it did not come whole.
    """
    whole = await reader.read(-1)
    head, _, body = whole.partition(b"\r\n\r\n")
    if not head:
        raise EOFError("the connection closed without an answer")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if len(body) != int(headers.get("content-length", len(body))):
        raise EOFError(f"{len(body)} of {headers['content-length']} bytes of the answer came")
    settle(record, study, int(lines[0].split()[1]), headers.get("retry-after", ""), body)


def described(record: Record) -> str:
    """A record that went wrong, in a line."""
    return json.dumps({"due": round(record.due, 2), "client": record.client, "outcome": record.outcome,
                       "status": record.status, "code": record.code, "note": record.note})  # fmt: skip
