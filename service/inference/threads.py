"""Work that computes outside of the engine, in threads that do not stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_a_passing_thread(call: Callable[[], T]) -> T:
    """Run ``call`` in a thread that ends with it; on cancellation it is left behind, and nobody waits for it.

    Every thread that computes keeps a team of OpenMP threads for as long as it lives. Where these outnumber the
    cores, OpenMP puts them to sleep between two operators instead of letting them spin, and each operator waits for
    them to wake.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="passing")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, call)
    finally:
        thread.shutdown(wait=False)  # to wait here would hold the event loop
