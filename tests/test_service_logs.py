"""Log lines: text and JSON, request id, access fields; exceptions by type and code location."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.config
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn.config

from service.web import logging as logs
from tests.support.service import png, ready_client

CANARY = "Canary-Doe-Jane-1958"


@contextmanager
def fresh_logging() -> Iterator[logging.Logger]:
    """Logging as in a new process, restored afterwards; yields the root logger."""
    names = (None, "service", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "pydicom", "PIL")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(lo, lo.handlers, lo.filters, lo.propagate, lo.disabled, lo.level) for lo in loggers]
    show_warning = warnings.showwarning
    for logger in loggers:
        logger.handlers, logger.filters = [], []
    for logger in loggers[1:]:
        logger.setLevel(logging.NOTSET)
    try:
        yield loggers[0]
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = show_warning
        for logger, handlers, filters, propagate, disabled, level in kept:
            logger.handlers, logger.filters, logger.propagate = handlers, filters, propagate
            logger.disabled = disabled
            logger.setLevel(level)


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Lines on standard error since the last call."""
    return lambda: capsys.readouterr().err.splitlines()


@contextmanager
def stream_of(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """What a handler with this formatter on the root logger writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    with fresh_logging() as root:
        root.addHandler(handler)
        yield stream


def test_json_lines_hold_the_access_fields(bundle: Path) -> None:
    sent = "5b0f1c52-6f0e-4c0b-9a52-0d3f5ad1c8f7"
    with stream_of(logs.JsonLines()) as stream, ready_client(bundle, log_format="json") as client:
        client.post("/report", files={"frontal": ("f", png())}, data={"beam_size": "1"}, headers={"X-Request-ID": sent})
        client.get("/nothing?x=1")
        client.get("/static/page.css?x=1")
        client.get("/health")
    parsed: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all({"time", "level", "logger", "message", "request_id"} <= set(line) for line in parsed)
    assert all(datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0) for line in parsed)
    access = [line for line in parsed if line["logger"] == "service.access"]
    draft, nothing, static = [line for line in access if line["level"] == "INFO" and line["route"] != "/health"]
    assert not [line for line in access if (line["route"], line["status"], line["level"]) == ("/health", 200, "INFO")]
    assert static["route"] == "/static"
    assert {name: draft[name] for name in ("method", "route", "status", "request_id", "level")} == {
        "method": "POST", "route": "/report", "status": 200, "request_id": sent, "level": "INFO",
    }  # fmt: skip
    assert draft["ms"] > 0
    assert draft["bytes"] > len(png())
    assert draft["message"].startswith("POST /report 200 ")
    assert (nothing["route"], nothing["status"], nothing["bytes"]) == ("(no route)", 404, 0)
    assert {line["request_id"] for line in parsed if line["message"].startswith("ready after")} == {None}
    assert not any("status" in line for line in parsed if line["logger"] != "service.access")


BOTH = pytest.mark.parametrize("formatter", [logs.JsonLines(), logs.TextLines()], ids=["json", "text"])


@BOTH
def test_exceptions_are_logged_by_type_and_location(formatter: logging.Formatter) -> None:
    with stream_of(formatter) as stream:
        try:
            raise KeyError(CANARY)
        except KeyError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    text = stream.getvalue()
    assert "Exception in ASGI application" in text
    assert "KeyError" in text
    assert Path(__file__).name in text
    assert CANARY not in text
    assert len(text.splitlines()) == (1 if isinstance(formatter, logs.JsonLines) else 3)


@BOTH
def test_messages_of_upload_reading_libraries_are_withheld(formatter: logging.Formatter) -> None:
    with stream_of(formatter) as stream:
        for name in ("pydicom", "PIL.TiffImagePlugin", "python_multipart.multipart"):
            logging.getLogger(name).warning("Invalid value for VR PN: '%s'", CANARY)
        logging.captureWarnings(True)
        path = "/usr/lib/pydicom/valuerep.py"
        warnings.showwarning(f"Invalid value {CANARY}", UserWarning, path, 7, None, f"warn({CANARY})")
        warnings.showwarning("old driver", UserWarning, "/usr/lib/torch/cuda.py", 8, None, "warn()")
        logging.getLogger("faiss.loader").warning("no AVX")
    text = stream.getvalue()
    assert CANARY not in text
    assert text.count("withheld") == 3
    for expected in ("/usr/lib/pydicom/valuerep.py:7: UserWarning", "cuda.py:8: UserWarning: old driver", "no AVX"):
        assert expected in text


def test_unretrieved_task_exception_is_not_quoted() -> None:
    async def failing() -> None:
        raise ValueError(CANARY)

    async def forget_it() -> None:
        task = asyncio.ensure_future(failing())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    with stream_of(logs.JsonLines()) as stream:
        asyncio.run(forget_it())
    line = json.loads(stream.getvalue())
    assert (line["logger"], line["error"]) == ("asyncio", "ValueError")
    assert "never retrieved" in line["message"]
    assert CANARY not in stream.getvalue()


def test_uvicorn_logs_use_the_same_handler(written: Callable[[], list[str]]) -> None:
    """`uvicorn --factory` installs handlers before it creates the app."""
    with fresh_logging():
        logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
        logs.configure("INFO", "json")
        logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
        logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" 403', "10.0.0.1", f"/{CANARY}")
        logging.getLogger("uvicorn.access").info('%s - "GET %s"', "10.0.0.1", f"/{CANARY}")
        logging.getLogger("uvicorn.asgi").info("headers: %s", CANARY)  # at TRACE it prints headers
        logging.getLogger("service.app").info("a line")
    assert [(line["logger"], line["message"]) for line in map(json.loads, written())] == [
        ("uvicorn.error", "Started server process [7]"),
        ("service.app", "a line"),
    ]


def test_configuring_twice_writes_each_line_once(written: Callable[[], list[str]]) -> None:
    with fresh_logging():
        logs.configure("INFO", "json")
        logs.configure("INFO", "text")
        logging.getLogger("service.app").info("a line")
    (line,) = written()
    assert line.endswith(" INFO service.app [-]: a line")


def test_existing_logging_configuration_is_kept(written: Callable[[], list[str]]) -> None:
    with stream_of(logging.Formatter("mine: %(message)s")) as stream:
        logs.configure("INFO", "json")
        logging.getLogger("service.app").info("a line")
    assert stream.getvalue() == "mine: a line\n"
    assert written() == []
