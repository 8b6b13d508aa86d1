"""Changes of ``python -m service`` that make it fail, for ``tests.support.processes.fork_service``."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from model.drafter import Drafter
from service.inference.runtime import Runtime

FOREVER_S = 3600.0


def device_that_fails() -> None:
    """The device fails once, when the file that ``FAULT`` names appears: ``lost`` or ``hang``.

    A thread that never ends is left behind in both cases: the process must end nevertheless.
    """
    fault, draft = Path(os.environ["FAULT"]), Drafter.draft

    def draft_or_fail(self: Drafter, *arguments: Any, **options: Any) -> Any:
        if not fault.exists():
            return draft(self, *arguments, **options)
        kind = fault.read_text()
        fault.unlink()
        threading.Thread(target=time.sleep, args=(FOREVER_S,), daemon=False).start()
        if kind == "hang":
            time.sleep(FOREVER_S)
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    Drafter.draft = draft_or_fail  # type: ignore[method-assign]


def endless_threads() -> None:
    """Two threads never end."""
    threading.Thread(target=threading.Event().wait, name="endless").start()
    ThreadPoolExecutor(1).submit(threading.Event().wait)


def endless_stop() -> None:
    """The stop of the service never ends either."""

    async def stop(self: Runtime) -> None:
        await asyncio.sleep(FOREVER_S)  # the loop holds this task; without that it could be collected, which ends it

    endless_threads()
    Runtime.stop = stop  # type: ignore[method-assign]


def blocked_loop() -> None:
    """The event loop is blocked from the start of the drain."""

    def drain(self: Runtime) -> None:
        time.sleep(FOREVER_S)

    endless_threads()
    Runtime.drain = drain  # type: ignore[method-assign]
