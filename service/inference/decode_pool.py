"""Decodes images in worker processes, so that no file can stop, slow down or crash the service.

Each worker decodes one image at a time. A worker is killed when its request is cancelled (deadline,
disconnected client, shutdown), and the system kills it when an image takes too much processor time;
another one starts at once. The memory of all decoding is at most the number of workers times
the limit of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from model.images import DEFAULT_LIMITS, ImageError, ImageLimits
from model.types import DraftWarning, Resample, StudyView, View
from service.inference.admission import BusyError
from service.inference.decode_worker import LENGTHS, READ, THUMBNAIL
from service.web.problems import Problem, stopping

START_TIMEOUT_S = 60.0
RETRY_AFTER_S = 5  # if no worker can be started
_MODULE = "service.inference.decode_worker"
_KEPT_MEMORY = 64 * 1024 * 1024  # free bytes that a worker does not return to the system
_MAX_HEADER, _MAX_RESULT = 64 * 1024, 64 * 1024 * 1024  # bytes of a response
log = logging.getLogger(__name__)


class DecodeError(RuntimeError):
    """The decoder failed unexpectedly, or a worker did not start; the log has the cause."""


class _WorkerLostError(Exception):
    """The worker ended before its response."""


class DecodePool:
    """The worker processes of one service. Used on one event loop; workers start when they are needed."""

    def __init__(self, workers: int, *, memory_bytes: int, cpu_s: float, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        """Create a pool without processes.

        Args:
            workers: largest number of processes, and of images that are decoded at a time.
            memory_bytes: memory of one process, in addition to its libraries.
            cpu_s: processor time of one image, in seconds.
            limits: bounds on the size of an image.
        """
        self._memory_bytes, self._cpu_s = memory_bytes, cpu_s
        self._limits = dataclasses.asdict(limits)
        self._size = workers
        self._workers: set[_Worker] = set()
        self._starting: set[asyncio.Task[DecodeError | None]] = set()
        self._idle: asyncio.Queue[_Worker | Problem] = asyncio.Queue()  # a problem: there will be no worker
        self._waiting = 0  # calls that wait for a worker
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    async def start(self) -> None:
        """Start all workers, so that the first requests need not wait for them.

        Raises:
            DecodeError: a worker does not start.
        """
        while self._spawn():
            pass
        for failure in await asyncio.gather(*self._starting):
            if failure is not None:
                raise failure

    async def read(self, data: bytes, view: View, size: int, resample: Resample) -> StudyView:
        """Decode an image that was sent as ``view`` to (``size``, ``size``).

        Raises:
            ImageError: see ``model.images.read_image``; ``too_complex`` if it takes too much memory or time.
            DecodeError: the decoder failed.
            Problem: 503; no worker could be started, or the service is stopping.
        """
        answer, pixels = await self._call({"operation": READ, "view": view, "size": size, "resample": resample}, data)
        warnings = tuple(DraftWarning(code, message) for code, message in answer["warnings"])
        header_view = None if answer["view"] is None else View(answer["view"])
        return StudyView(np.frombuffer(pixels, np.uint8).reshape(size, size), view, warnings, header_view)

    async def thumbnail(self, data: bytes, longest: int) -> bytes:
        """A small JPEG of an image; ``longest`` and errors as of ``model.images.thumbnail`` and ``read``."""
        return (await self._call({"operation": THUMBNAIL, "longest": longest}, data))[1]

    async def close(self) -> None:
        """Kill all workers; requests that wait for one fail with ``Problem``."""
        self._closed = True
        for _ in range(self._waiting):
            self._idle.put_nowait(stopping())
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for worker in self._workers.copy():
            await self._kill(worker)

    async def _call(self, header: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        header = {**header, "limits": self._limits}
        for _ in range(2):  # an earlier image, or the system, may have harmed the first worker
            worker = await self._take()
            try:
                answer, result = await worker.call(header, data)
            except _WorkerLostError:
                await self._kill(worker)
                if worker.process.returncode == -signal.SIGPROF:
                    raise self._too_complex(f"{self._cpu_s:g} s of processor time") from None
                log.warning("a decode worker ended with status %s", worker.process.returncode)
                failure = ImageError("truncated", "The image file is damaged: its decoder crashed. Send another.")
            except BaseException:  # cancelled: the worker is still decoding
                await self._kill(worker)
                raise
            else:
                if "memory" not in answer:
                    self._idle.put_nowait(worker)
                    return _checked(answer), result
                await self._kill(worker)
                failure = self._too_complex(f"{self._memory_bytes:,} bytes of memory")
                if worker.calls == 1:
                    break
        raise failure

    async def _take(self) -> _Worker:
        while True:
            if self._closed:
                raise stopping()
            if self._idle.empty():
                self._spawn()
            self._waiting += 1
            try:
                worker = await self._idle.get()
            finally:
                self._waiting -= 1
            if isinstance(worker, Problem):
                raise worker
            if worker.process.poll() is None:
                return worker
            await self._kill(worker)

    def _spawn(self) -> bool:
        """Start a worker in the background, unless all exist; the call that has waited longest gets it."""
        if self._closed or len(self._workers) + len(self._starting) >= self._size:
            return False
        task = asyncio.create_task(self._start())
        self._starting.add(task)
        task.add_done_callback(lambda _: self._starting.discard(task))
        return True

    async def _start(self) -> DecodeError | None:
        try:
            worker = await _Worker.start(self._memory_bytes, self._cpu_s)
        except Exception as error:
            log.error("a decode worker cannot be started: %s", error)
            self._starting = {task for task in self._starting if task is not asyncio.current_task()}
            if not self._workers and not self._starting:  # no worker will become idle for those that wait
                for _ in range(self._waiting):
                    self._idle.put_nowait(BusyError("no process that decodes images can be started", RETRY_AFTER_S))
            return DecodeError(str(error))
        self._workers.add(worker)
        self._idle.put_nowait(worker)
        return None

    async def _kill(self, worker: _Worker) -> None:
        """End a worker, also if the caller is cancelled, and start another."""

        async def kill() -> None:
            await worker.kill()
            self._workers.discard(worker)
            self._spawn()

        await asyncio.shield(kill())

    def _too_complex(self, limit: str) -> ImageError:
        return ImageError(
            "too_complex", f"Decoding the image takes more than {limit}. Send it uncompressed or smaller."
        )


class _Worker:
    """One process and the connection to it."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process, self._reader, self._writer = process, reader, writer
        self.calls = 0

    @classmethod
    async def start(cls, memory_bytes: int, cpu_s: float) -> _Worker:
        """Start a process and wait until it is ready.

        Raises:
            DecodeError: it ended, or was not ready in time.
        """
        here, there = socket.socketpair()
        with there:
            reader, writer = await asyncio.open_connection(sock=here)
            command = [sys.executable, "-m", _MODULE, str(there.fileno()), str(memory_bytes), str(cpu_s)]
            with _signals_blocked():
                process = subprocess.Popen(command, pass_fds=[there.fileno()], env=_environment())
        worker = cls(process, reader, writer)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker._receive()
        except BaseException as error:
            await asyncio.shield(worker.kill())
            if not isinstance(error, TimeoutError | _WorkerLostError):
                raise
            message = f"a decode worker did not start (status {process.returncode}); its output is in the log"
            raise DecodeError(message) from error
        return worker

    async def call(self, header: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Send a request and receive its response.

        Raises:
            _WorkerLostError: the process ended.
        """
        self.calls += 1
        encoded = json.dumps(header).encode()
        with contextlib.suppress(ConnectionError):  # then the response is missing too
            self._writer.write(LENGTHS.pack(len(encoded), len(data)) + encoded)
            self._writer.write(data)
            await self._writer.drain()
        return await self._receive()

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            header_length, length = LENGTHS.unpack(await self._reader.readexactly(LENGTHS.size))
            if header_length > _MAX_HEADER or length > _MAX_RESULT:
                raise _WorkerLostError
            header = await self._reader.readexactly(header_length)
            return json.loads(header or b"{}"), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _WorkerLostError from error

    async def kill(self) -> None:
        """End the process, whatever it does."""
        self._writer.transport.abort()
        self.process.kill()
        await asyncio.to_thread(self.process.wait)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that start meanwhile never receive signals for the service, which a supervisor may send to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    """Of a worker: one thread per library, this interpreter's modules, and no setting, as some are secret.

    The C library keeps freed memory for the next image; page faults would double the time of some images.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPORT_")}
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    memory = {"MALLOC_MMAP_THRESHOLD_": str(_KEPT_MEMORY // 2), "MALLOC_TRIM_THRESHOLD_": str(_KEPT_MEMORY)}
    return {**kept, **one_thread, **memory, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise ImageError(*answer["error"])
    if "failure" in answer:
        name, locations = answer["failure"]
        log.error("a decoder failed with %s\n%s", name, "\n".join(f"  {location}" for location in locations))
        raise DecodeError(f"a decoder failed with {name}")
    return answer
