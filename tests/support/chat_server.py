"""A local server for OpenAI's chat completions, with configurable responses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Completions:
    """A chat-completions server in a thread: `answer` handles a request."""

    answer: Any = None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""


def completion(text: object, reason: str = "stop") -> bytes:
    """The body of a response."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode()


@contextmanager
def completions_server() -> Iterator[Completions]:
    """Run the server until the block ends."""
    state = Completions()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            with suppress(OSError):  # the service closed the connection
                state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    server.shutdown()
    server.server_close()


def respond_with(data: bytes, status: int = 200, reason: str | None = None, **headers: str) -> Any:
    """A handler for ``Completions.answer`` that sends ``data``."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status, reason)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer
