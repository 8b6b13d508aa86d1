"""``python -m service``: serve a bundle over HTTP. Flags override the environment (``REPORT_…``)."""

from __future__ import annotations

import argparse
import errno
import math
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.inference.runtime import Runtime
from service.settings import EXIT_SETTINGS, Settings, explain
from service.web.protocol import HeaderLimitedHttpProtocol

EXIT_BUNDLE, EXIT_ADDRESS, EXIT_DEVICE = 3, 4, 5
_BACKLOG = 2048  # uvicorn's default


class _Server(uvicorn.Server):
    """Exits if the model cannot be served, so that a supervisor restarts it."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._runtime = app.state.runtime

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._runtime.state == "failed"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._runtime.drain()
        await super().shutdown(sockets)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        0 after a stop; 2: a setting is wrong; 3: no bundle could be loaded; 4: the address cannot be used;
        5: the device was lost.
    """
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="directory that training.run wrote (REPORT_BUNDLE)")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for all (REPORT_HOST, 127.0.0.1)")
    parser.add_argument("--port", help="TCP port (REPORT_PORT, 8000)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (REPORT_DEVICE, auto)")
    given: dict[str, Any] = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        return EXIT_SETTINGS
    try:
        server_socket = listen(settings.host, settings.port)
    except OSError as error:
        print(_explain_bind_error(settings, error), file=sys.stderr)
        return EXIT_ADDRESS
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        log_level="info",
        log_config=None,  # create_app configures logging
        http=HeaderLimitedHttpProtocol,
        ws="none",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn re-raises the signal after its shutdown
    _Server(app, config).run(sockets=[server_socket])
    runtime: Runtime = app.state.runtime
    if runtime.device_lost:
        return EXIT_DEVICE
    return EXIT_BUNDLE if runtime.state == "failed" else 0


def listen(host: str, port: int) -> socket.socket:
    """Bind the address before the bundle is loaded, so that an error is reported at once.

    Raises:
        OSError: the port is in use or forbidden, or the host is not an address of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)


def _explain_bind_error(settings: Settings, error: OSError) -> str:
    where = f"{settings.host} port {settings.port}"
    if isinstance(error, socket.gaierror):
        return f"REPORT_HOST={settings.host!r} is not an address: {error.strerror}. Use 127.0.0.1, or 0.0.0.0 for all."
    remedy = {
        errno.EADDRINUSE: "Another program listens there; stop it, or choose another port with --port or REPORT_PORT.",
        errno.EACCES: "Ports below 1024 need privileges; choose another with --port or REPORT_PORT.",
        errno.EADDRNOTAVAIL: "This machine has no such address; use 127.0.0.1, or 0.0.0.0 for all (REPORT_HOST).",
    }.get(error.errno or 0, "Choose another address with --host and --port.")
    return f"cannot listen on {where}: {os.strerror(error.errno or 0)}. {remedy}"


if __name__ == "__main__":
    sys.exit(main())
