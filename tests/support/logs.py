"""The lines that the service logs, in both of its formats."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from service.web.logging import JsonLines, TextLines

LOGGERS = (
    *(None, "service", "uvicorn", "uvicorn.error", "PIL", "python_multipart", "asyncio", "httpx", "httpcore"),
    *("dicomweb_client", "requests", "pydicom", "highdicom"),
)


@contextmanager
def all_log_lines(
    caplog: pytest.LogCaptureFixture, keep: Callable[[logging.LogRecord], bool] = lambda record: True
) -> Iterator[Mapping[str, io.StringIO]]:
    """What the service writes in the formats ``json`` and ``text`` while all loggers log at DEBUG."""
    streams = {"json": io.StringIO(), "text": io.StringIO()}
    handlers = []
    for name, formatter in (("json", JsonLines()), ("text", TextLines())):
        handler = logging.StreamHandler(streams[name])
        handler.setFormatter(formatter)
        handler.addFilter(keep)
        handlers.append(handler)
        logging.getLogger().addHandler(handler)
    for logger in LOGGERS:
        caplog.set_level(logging.DEBUG, logger)
    try:
        yield streams
    finally:
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
