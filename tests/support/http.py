"""A local HTTP server for tests of clients."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request(BaseHTTPRequestHandler):
    """A GET or POST request with its body; also writes the response."""

    body = b""

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


Respond = Callable[[Request], object]


@contextmanager
def http_server(respond: Respond, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Call `respond` for each GET and POST, in a thread, until the block ends; yields the URL."""

    def handle(request: Request) -> None:
        request.body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with suppress(OSError):  # the client closed the connection
            respond(request)

    handler = type("Handler", (Request,), {"do_GET": handle, "do_POST": handle})

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def respond_with(data: bytes, status: int = 200, reason: str | None = None, **headers: str) -> Respond:
    """A function for `http_server` that always sends ``data``."""

    def respond(request: Request) -> None:
        request.send_response(status, reason)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return respond
