"""Every attack: the requests of one round, how a client sends them, and the answers that the service may give."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.attacking import bodies
from benchmarks.attacking.bodies import MIB, Scale
from benchmarks.raw_http import CONTENT_TYPE, form, request

ANSWER_WITHIN_S = 90.0
EVIL = "attacker.example"  # a host that no answer may repeat
UNFINISHED = "unfinished"  # when the attack was stopped
_PIECE = b"X-Filler: " + b"a" * 16_000 + b"\r\n"
_DRIP_S = 0.5
_CONNECT_WITHIN_S = 3.0
_CODE = re.compile(rb'"code": ?"(\w+)"')


@dataclass(frozen=True)
class Target:
    """The attacked service."""

    host: str
    port: int
    key: str

    def post(self, path: str, body: bytes, kind: str = CONTENT_TYPE) -> bytes:
        """A correct request with the API key."""
        return request("POST", path, body, {"Content-Type": kind, "Authorization": f"Bearer {self.key}"})

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is reset at the end."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


Sender = Callable[[Target, Scale, bytes], Awaitable[str]]


async def ask(target: Target, _: Scale, data: bytes) -> str:
    """Send a request and read its answer: the status, and the code of a problem."""
    async with target.connection() as (reader, writer):
        writer.write(data)
        return _outcome(await reader.read())


async def leave(target: Target, _: Scale, data: bytes) -> str:
    """Send a request and leave while the service works on it."""
    async with target.connection() as (_reader, writer):
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.3)
    return "left"


async def read_nothing(target: Target, scale: Scale, data: bytes) -> str:
    """Send requests and read no answer, until the service closes the connection."""
    loop, client = asyncio.get_running_loop(), socket.socket()
    with client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (target.host, target.port))
        await loop.sock_sendall(client, data)
        for _ in range(int(scale.hold_s / _DRIP_S)):
            await asyncio.sleep(_DRIP_S)
            with contextlib.suppress(BlockingIOError):
                client.send(b"\r\n")  # allowed between requests; fails once the connection is closed
    return "held"


async def endless_trailer(target: Target, scale: Scale, data: bytes) -> str:
    """Send a request whose trailer does not end."""
    async with target.connection() as (reader, writer):
        answer = asyncio.ensure_future(_read(reader))
        writer.write(data)
        for _ in range(scale.trailer_bytes // len(_PIECE)):
            writer.write(_PIECE)
            await writer.drain()
            await asyncio.sleep(0)
            if answer.done():
                return _outcome(await answer, otherwise="cut")
        answer.cancel()
    return f"read {scale.trailer_bytes // MIB} MiB"


async def drip(target: Target, scale: Scale, data: bytes) -> str:
    """Send a request at two bytes a second, its first half at once."""
    async with target.connection() as (reader, writer):
        answer, half = asyncio.ensure_future(_read(reader)), len(data) // 2
        writer.write(data[:half])
        for at in range(half, half + int(scale.hold_s / _DRIP_S)):
            writer.write(data[at : at + 1])
            await asyncio.sleep(_DRIP_S)
            if answer.done():
                return _outcome(await answer, otherwise="cut")
        answer.cancel()
    return "held"


async def hold(target: Target, scale: Scale, _: bytes) -> str:
    """Connect within a few seconds and send nothing."""
    await asyncio.sleep(random.uniform(0, _CONNECT_WITHIN_S))
    async with target.connection() as (reader, _writer):
        try:
            async with asyncio.timeout(scale.idle_s):
                return _outcome(await reader.read(), otherwise="cut")
        except TimeoutError:
            return "held"


async def _read(reader: asyncio.StreamReader) -> bytes:
    """All that arrives until the connection is closed or reset."""
    try:
        return await reader.read()
    except OSError:
        return b""


def _outcome(answer: bytes, otherwise: str = "closed") -> str:
    """Status and code of an answer; ``otherwise`` without one."""
    if not answer.startswith(b"HTTP/1.1 "):
        return otherwise
    head, _, body = answer.partition(b"\r\n\r\n")
    code = _CODE.search(body) if not head.startswith(b"HTTP/1.1 2") else None
    status = answer[9:12].decode() + (f" {code[1].decode()}" if code else "")
    return f"{EVIL} in {status}" if EVIL.encode() in answer else status


# --- the attacks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: for ``--only``.
        what: for the documentation.
        requests: of one round; all are sent at the same time, each on a connection of its own.
        allowed: outcomes with which the service keeps its promises: a status, with or without the code.
        send: what a client does with one of the requests.
        pause_s: between rounds.
    """

    name: str
    what: str
    requests: Callable[[Target, Scale], Sequence[bytes]]
    allowed: tuple[str, ...]
    send: Sender = ask
    pause_s: float = 1.0

    def allows(self, outcome: str) -> bool:
        """Whether an outcome breaks no promise; to be refused as busy never does."""
        return outcome in ("503 busy", UNFINISHED, *self.allowed) or outcome.partition(" ")[0] in self.allowed

    async def once(self, target: Target, scale: Scale, requests: Sequence[bytes], outcomes: Counter[str]) -> None:
        """Send all requests of a round and count their outcomes."""

        async def one(data: bytes) -> None:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    outcome = await self.send(target, scale, data)
            except TimeoutError:
                outcome = "silent"
            except ConnectionRefusedError:
                outcome = "no connection"
            except OSError:
                outcome = "cut"
            except asyncio.CancelledError:
                outcomes[UNFINISHED] += 1
                raise
            outcomes[outcome] += 1

        await asyncio.gather(*map(one, requests))


def _scans(target: Target, scale: Scale) -> list[bytes]:
    image = bodies.jpeg_of_scans(scale)
    return [target.post("/report", form([("frontal", image), ("lateral", image)]))]


def _floods(target: Target, scale: Scale) -> list[bytes]:
    return [target.post("/report", form([("frontal", image)])) for image in bodies.floods(scale)]


def _jpeg_2000(target: Target, scale: Scale) -> list[bytes]:
    return [target.post("/report", form([("frontal", bodies.jpeg_2000(scale))]))]


def _cases(target: Target, scale: Scale) -> list[bytes]:
    case = [("case_id", b"attack"), ("findings", b"The heart is normal."), ("frontal", bodies.damaged_png(scale))]
    return [target.post("/cases", form(case))] * 6


def _previews(target: Target, scale: Scale) -> list[bytes]:
    return [target.post("/preview", form([("image", bodies.damaged_png(scale))]))] * 2


def _export(target: Target, _: Scale) -> list[bytes]:
    return [target.post("/export", bodies.export_of_warnings(31_000), "application/json")]


def _slow(target: Target, _: Scale) -> list[bytes]:
    upload = target.post("/report", form([("frontal", bytes(4000))]))
    return (
        [upload] * 6
        + [b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 400] * 2
        + [_TRAILER + b"X-Slow: " + b"a" * 400] * 2
    )


def _garbage(target: Target, _: Scale) -> list[bytes]:
    upload = target.post("/report", form([("frontal", bytes(range(256)) * 40)]))
    return [
        bytes(range(255, -1, -1)) * 20 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        upload, upload.replace(b"form-data; name", b"form-data; nam"), upload.replace(b"boundary=", b"boundary=x"),
        target.post("/export", b"[" * 900_000, "application/json"),
    ]  # fmt: skip


_TRAILER = b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
_NO_HOST = b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n"
_TWO_HOSTS = b"GET /livez HTTP/1.1\r\nHost: service\r\nHost: attacker.example\r\nConnection: close\r\n\r\n"
_PIPELINE = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200
_CLOSED = ("400", "408", "431", "cut", "closed")
_CUT = ("200", *_CLOSED)  # 200: /livez was answered, then the connection closed before the trailer ended
# A flood may be cut: the rest of a refused body is read for two seconds only.
ATTACKS = (
    Attack("jpeg-scans", "two progressive JPEGs of 8000 × 8000 with 6,000 scans", _scans, ("422",)),
    Attack("endless-trailer", "a chunked request whose trailer does not end", lambda *_: [_TRAILER], _CUT,
           send=endless_trailer),
    Attack("png-cases", "six concurrent POST /cases with an RGBA PNG of 265 KB and 8000 × 8000", _cases,
           ("422", "503 deadline")),
    Attack("previews-left", "previews of that PNG whose client leaves", _previews, ("left",), send=leave),
    Attack("read-nothing", "40 connections that pipeline 200 requests and read no answer",
           lambda _, scale: [_PIPELINE] * scale.sockets, ("cut",), send=read_nothing),
    Attack("floods", "31 MiB of empty APP5 segments, comments and fill bytes in JPEGs, of empty chunks in a PNG",
           _floods, ("422", "cut"), pause_s=5.0),
    Attack("jpeg-2000", "DICOM with a JPEG 2000 frame of 8000 × 8000, less than 2 KB", _jpeg_2000,
           ("200", "422", "503 deadline")),
    Attack("hosts", "no Host, and two", lambda *_: [_NO_HOST, _TWO_HOSTS], ("400",)),
    Attack("redirect", "a path with a slash too many, and a false Host",
           lambda *_: [request("GET", "/health/", headers={"Host": EVIL})], ("307", "404")),
    Attack("export", "POST /export with 31,000 warnings", _export, ("422",)),
    Attack("idle", "700 idle connections, for 512 file descriptors", lambda *_: [b""] * 700, (*_CLOSED, "held"),
           send=hold),
    Attack("slow", "uploads, heads and trailers at two bytes a second", _slow, _CUT, send=drip),
    Attack("garbage", "bytes that are no HTTP, form, JSON or image", _garbage, ("400", "415", "422", "cut", "closed")),
)  # fmt: skip


def prepare(names: Sequence[str], target: Target, scale: Scale) -> None:
    """Build the bodies, which are cached, before the attack begins."""
    for attack in _named(names):
        attack.requests(target, scale)


def attack_by_name(names: Sequence[str], target: Target, scale: Scale, seconds: float) -> dict[str, dict[str, int]]:
    """Repeat the attacks at once for ``seconds``; returns name -> outcome -> count."""
    outcomes = {attack: Counter[str]() for attack in _named(names)}
    asyncio.run(_repeat_all(outcomes, target, scale, seconds))
    return {attack.name: dict(counts) for attack, counts in outcomes.items()}


def _named(names: Sequence[str]) -> list[Attack]:
    return [attack for attack in ATTACKS if attack.name in names]


async def _repeat_all(outcomes: dict[Attack, Counter[str]], target: Target, scale: Scale, seconds: float) -> None:
    async def repeat(attack: Attack) -> None:
        requests = attack.requests(target, scale)
        while True:
            await attack.once(target, scale, requests, outcomes[attack])
            await asyncio.sleep(attack.pause_s)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for attack in outcomes:
                group.create_task(repeat(attack))
