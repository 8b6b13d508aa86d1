"""Helpers to run code outside the event loop and to call back into it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from model.types import CasesFound, EventCallback
from service.web.problems import format_traceback_locations

T = TypeVar("T")
log = logging.getLogger(__name__)


async def run_in_temporary_thread(call: Callable[[], T]) -> T:
    """Run ``call`` in a new thread that ends with it; on cancellation the thread is abandoned.

    A pool thread would be slower: each thread that computes keeps a team of OpenMP threads alive. When these
    outnumber the cores, OpenMP suspends them between two operators, and every operator waits until they resume.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="temporary")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, call)
    finally:
        executor.shutdown(wait=False)  # waiting would block the event loop


def threadsafe_callback(on_event: EventCallback) -> EventCallback:
    """Wrap ``on_event`` so that any thread may call it; it runs on the current event loop.

    Its exceptions are logged and not raised. Calls after the loop was closed are dropped.
    """
    loop = asyncio.get_running_loop()

    def notify(event: CasesFound) -> None:
        try:
            on_event(event)
        except Exception as error:
            log.error("an event callback failed with %s\n%s", type(error).__name__, format_traceback_locations(error))

    def schedule(event: CasesFound) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(notify, event)

    return schedule


@functools.cache
def background_loop(name: str) -> asyncio.AbstractEventLoop:
    """An event loop in the daemon thread ``name``.

    Reading a response of tiny pieces from another server would block the loop of the service.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop
