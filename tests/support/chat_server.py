"""A language model's server for tests: speaks OpenAI's chat completions on 127.0.0.1 and answers what it is told to."""

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
    """A chat-completions server in a thread: `answer` is what it does with a request."""

    answer: Any = None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""


def completion(text: object, reason: str = "stop") -> bytes:
    """The body of an answer."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode()


@contextmanager
def completions_server() -> Iterator[Completions]:
    """The server, as long as the block lasts."""
    told = Completions()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            with suppress(OSError):  # the service did not wait
                told.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield told
    server.shutdown()
    server.server_close()


def says(data: bytes, status: int = 200, words: str | None = None, **headers: str) -> Any:
    """What answers so, as ``Completions.answer``."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status, words)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer
