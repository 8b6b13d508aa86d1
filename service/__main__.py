"""``python -m service``: serve a bundle over HTTP. Flags go before the environment (``REPORT_…``)."""

from __future__ import annotations

import argparse
import math
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.runtime import Runtime
from service.settings import EXIT_SETTINGS, Settings, explain

EXIT_BUNDLE, EXIT_DEVICE = 3, 5


class _Server(uvicorn.Server):
    """Stops by itself when the model cannot be served: a supervisor must see that, not an idle process."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._runtime = app.state.runtime

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._runtime.state == "failed"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._runtime.drain()
        await super().shutdown(sockets)


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop.

    Returns:
        0 after a stop; 2: a setting is wrong; 3: no bundle could be loaded; 5: the device was lost.
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
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        log_level="info",
        log_config=None,  # create_app has set it up
        ws="none",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has shut down
    _Server(app, config).run()
    runtime: Runtime = app.state.runtime
    if runtime.broken:
        return EXIT_DEVICE
    return EXIT_BUNDLE if runtime.state == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
