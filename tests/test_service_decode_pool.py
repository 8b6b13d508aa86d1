"""The decode pool: same pixels as in the process, and no image harms the service or the next image."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.images import ImageError, ImageLimits, read_image
from model.types import View
from service.inference.admission import BusyError
from service.inference.decode_pool import DecodePool
from service.web.problems import Problem
from tests.support.dicom import dicom
from tests.support.service import WAIT_S, encode, png, scene
from tests.support.tiny import soft_limit

pytestmark = pytest.mark.anyio
SIZE = 64
HEAVY = encode(Image.new("RGBA", (6000, 6000)))  # 140 kB; its decoding takes 700 MB and most of a second


@asynccontextmanager
async def opened(workers: int = 1, memory_mib: int = 1024, cpu_s: float = 20.0) -> AsyncIterator[DecodePool]:
    pool = DecodePool(workers, memory_bytes=memory_mib * 2**20, cpu_s=cpu_s, limits=ImageLimits(min_side=40))
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.pids == []


async def readable(pool: DecodePool) -> bool:
    """Whether the pool decodes an ordinary image to the same pixels as this process."""
    view = await pool.read(png(), View.FRONTAL, SIZE, "bicubic")
    return bool((view.pixels == read_image(png(), SIZE).pixels).all())


def children() -> set[int]:
    """Processes that this thread started."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


async def started_child(before: set[int]) -> int:
    """The next child, as soon as it exists."""
    async with asyncio.timeout(WAIT_S):
        while not (new := children() - before):
            await asyncio.sleep(0.001)
    return new.pop()


async def killed_while_decoding(pool: DecodePool, number: signal.Signals, times: int) -> bytes:
    """Decode an image whose first ``times`` workers get a signal, each when it has the image."""
    task = asyncio.create_task(pool.thumbnail(HEAVY, 100))
    for _ in range(times):
        async with asyncio.timeout(WAIT_S):
            await asyncio.sleep(0)  # the task takes or starts a worker
            while pool._waiting or not pool.pids:  # a worker that ends before it is ready is only replaced
                await asyncio.sleep(0.01)
        (pid,) = pool.pids
        os.kill(pid, number)
        async with asyncio.timeout(WAIT_S):
            while pid in pool.pids:
                await asyncio.sleep(0.01)
    return await task


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
async def test_view_equals_that_of_the_process(resample: str) -> None:
    files = [
        encode(Image.fromarray(scene())), encode(Image.fromarray(scene()), "JPEG"), png(),
        dicom(scene(), ViewPosition="LL"), dicom(scene().astype(np.uint16) * 16, stored=12, ViewPosition="PA"),
    ]  # fmt: skip
    async with opened(workers=2) as pool:
        await pool.start()
        assert len(pool.pids) == 2
        views = await asyncio.gather(*(pool.read(file, View.FRONTAL, SIZE, resample) for file in files))
        assert len(pool.pids) == 2
    for file, view in zip(files, views, strict=True):
        image = read_image(file, SIZE, resample=resample)
        assert (view.pixels == image.pixels).all()
        assert (view.view, view.header_view) == (View.FRONTAL, image.view)
        assert view.warnings == image.warnings(View.FRONTAL)


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "empty"), (b"no image", "not_an_image"), (encode(Image.new("L", (39, 99))), "too_small")]
)
async def test_error_of_an_image_keeps_its_code(data: bytes, code: str) -> None:
    async with opened() as pool:
        with pytest.raises(ImageError) as caught:
            await pool.read(data, View.LATERAL, SIZE, "bicubic")
        (pid,) = pool.pids
        assert await readable(pool)
        assert pool.pids == [pid], "an unreadable image costs no process"
    assert caught.value.code == code


@pytest.mark.parametrize(("memory_mib", "cpu_s", "limit"), [(128, 20.0, "bytes of memory"), (1024, 0.1, "0.1 s")])
async def test_refuses_image_that_takes_too_much(memory_mib: int, cpu_s: float, limit: str) -> None:
    async with opened(1, memory_mib, cpu_s) as pool:
        assert await readable(pool)
        with pytest.raises(ImageError, match=limit) as caught:
            await pool.read(HEAVY, View.FRONTAL, SIZE, "bicubic")
        assert caught.value.code == "too_complex"
        assert await readable(pool)


async def test_cancelled_decoding_is_killed() -> None:
    async with opened() as pool:
        assert await readable(pool)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)  # a decoder that never ends
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await pool.read(png(), View.FRONTAL, SIZE, "bicubic")
        assert not Path(f"/proc/{pid}").exists()
        assert await readable(pool)


async def test_cancelled_request_does_not_stop_the_start_of_its_worker() -> None:
    async with opened() as pool:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await pool.read(png(), View.FRONTAL, SIZE, "bicubic")
        assert len(pool._starting) == 1
        assert await readable(pool)
        assert len(pool.pids) == 1


async def test_signals_for_the_service_do_not_reach_workers() -> None:
    """A supervisor may send them to all processes, also while a worker starts."""
    before = children()
    async with opened() as pool:
        task = asyncio.create_task(pool.read(png(), View.FRONTAL, SIZE, "bicubic"))
        child = await started_child(before)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        await task
        assert pool.pids == [child]


async def test_failed_start_costs_no_later_request() -> None:
    async with opened() as pool:
        os.close(next_descriptor := os.open(os.devnull, os.O_RDONLY))
        with soft_limit(resource.RLIMIT_NOFILE, next_descriptor):
            waiting = [asyncio.create_task(readable(pool)) for _ in range(3)]
            done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT_S)
            assert {type(error) for error in done} == {BusyError}
            await asyncio.gather(*pool._starting, return_exceptions=True)
            pool._spawn()
            await asyncio.gather(*pool._starting)
        assert await readable(pool)


async def test_worker_that_is_killed_as_it_starts_costs_only_the_request_that_waits() -> None:
    async with opened() as pool:
        before = children()
        task = asyncio.create_task(readable(pool))
        os.kill(await started_child(before), signal.SIGKILL)
        with pytest.raises(BusyError, match="no process that decodes images can be started") as caught:
            await task
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
        assert await readable(pool)


async def test_worker_that_ended_is_replaced() -> None:
    async with opened() as pool:
        assert await readable(pool)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        assert await readable(pool)
        assert pool.pids != [pid]


async def test_decoding_reuses_memory() -> None:
    def page_faults(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])

    film = dicom(np.arange(1_000_000, dtype=np.uint16).reshape(1000, 1000) % 4096, stored=12)
    async with opened() as pool:
        for _ in range(5):
            await pool.read(film, View.FRONTAL, SIZE, "bicubic")
        (pid,) = pool.pids
        before = page_faults(pid)
        await pool.read(film, View.FRONTAL, SIZE, "bicubic")
        assert page_faults(pid) - before < 500, "otherwise thousands, which take as long as the decoding"


STRICT = """
import asyncio, resource
from pathlib import Path
from service.inference.decode_pool import DecodePool

async def main():
    pool = DecodePool(1, memory_bytes=2**40, cpu_s=1)
    await pool.start()
    print(Path(f"/proc/{pool.pids[0]}/limits").read_text())
    await pool.close()

for limit, value in ((resource.RLIMIT_AS, 2**34), (resource.RLIMIT_NOFILE, 48)):
    resource.setrlimit(limit, (value, value))
asyncio.run(main())
"""


async def test_worker_keeps_stricter_limits_of_the_service() -> None:
    """Only root may exceed them: elsewhere no worker would start."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", STRICT, stdout=subprocess.PIPE)
    limits = (await process.communicate())[0].decode().splitlines()
    assert {int(line.split()[3]) for line in limits if line.startswith(("Max open", "Max address"))} == {48, 2**34}


async def test_image_whose_worker_ends_is_decoded_once_more() -> None:
    async with opened() as pool:
        assert (await killed_while_decoding(pool, signal.SIGKILL, 1)).startswith(b"\xff\xd8")
        with pytest.raises(ImageError, match="its decoder crashed"):
            await killed_while_decoding(pool, signal.SIGSEGV, 2)
        assert await readable(pool)


async def test_worker_has_no_settings_no_output_and_no_right_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_API_KEY", "a-secret-of-the-service")
    async with opened() as pool:
        assert await readable(pool)
        process = Path(f"/proc/{pool.pids[0]}")
        assert b"REPORT_" not in process.joinpath("environ").read_bytes()
        assert {os.readlink(process / "fd" / number) for number in "012"} == {"/dev/null"}
        limits = process.joinpath("limits").read_text()
        assert [line.split()[3] for line in limits.splitlines() if line.startswith("Max file size")] == ["0"]


async def test_closed_pool_starts_no_worker() -> None:
    async with opened() as pool:
        await pool.close()
        with pytest.raises(Problem, match="stopping"):
            await readable(pool)
