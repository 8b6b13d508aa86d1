"""``python -m service``: serve a bundle over HTTP. Flags override the environment (``REPORT_…``)."""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from pydantic import ValidationError

from model.command_line import CommandParser
from service.app import create_app
from service.inference.runtime import Runtime, ignore_hangup
from service.settings import EXIT_SETTINGS, Settings, explain
from service.web.protocol import LimitedHttpProtocol
from service.web.shutdown import ExitWatchdog, end_process

EXIT_BUNDLE, EXIT_ADDRESS, EXIT_DEVICE = 3, 4, 5
_BACKLOG = 2048  # uvicorn's default
_FAILED_TIMEOUT_S = 25.0  # from the failure of the model to the exit
_EXIT_TIMEOUT_S = 5.0  # from the last response to the exit


class _Server(uvicorn.Server):
    """Stops if the model cannot be served, so that a supervisor restarts it; ends within a deadline."""

    def __init__(self, runtime: Runtime, config: uvicorn.Config, watchdog: ExitWatchdog) -> None:
        super().__init__(config)
        self._runtime, self._watchdog = runtime, watchdog

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # the signal handler
        self._watchdog.end_within(self._runtime.settings.drain_timeout_s)
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._runtime.state == "failed"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain_timeout_s = self._runtime.settings.drain_timeout_s
        failed = self._runtime.state == "failed"
        self._watchdog.end_within(min(drain_timeout_s, _FAILED_TIMEOUT_S) if failed else drain_timeout_s)
        self._runtime.drain()
        await super().shutdown(sockets)
        self._watchdog.end_within(_EXIT_TIMEOUT_S)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        0 after a stop; 2: a setting is wrong; 3: no bundle could be loaded; 4: the address cannot be used;
        5: the device was lost.
    """
    parser = CommandParser(prog="python -m service", description=__doc__)
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
    ignore_hangup()  # until the runtime starts
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        log_level="info",
        log_config=None,  # create_app configures logging
        http=LimitedHttpProtocol,
        ws="none",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    runtime: Runtime = app.state.runtime

    def status() -> int:
        if runtime.device_lost:
            return EXIT_DEVICE
        return EXIT_BUNDLE if runtime.state == "failed" else 0

    with ExitWatchdog(status) as watchdog:
        _Server(runtime, config, watchdog).run(sockets=[server_socket])
    return status()


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


def main_and_exit() -> NoReturn:
    """Run ``main`` and end the process with its status, whatever its threads do."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # uvicorn raises the signal again after its shutdown
    status = 1
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    end_process(status)


if __name__ == "__main__":
    main_and_exit()
