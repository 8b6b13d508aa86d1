"""News of a draft on their way from the thread that writes it to the event loop that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from model.drafter import Listener, News
from service.web.problems import places

log = logging.getLogger(__name__)


def on_this_loop(listener: Listener) -> Listener:
    """The same listener, to be called from any thread; it runs on the present event loop.

    Its failures stay its own. What comes after the loop has ended is dropped.
    """
    loop = asyncio.get_running_loop()

    def hear(news: News) -> None:
        try:
            listener(news)
        except Exception as error:
            log.error("a listener failed with %s\n%s", type(error).__name__, places(error))

    def hop(news: News) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(hear, news)

    return hop
