"""A local server of OpenAI's chat completions with configurable responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.http import Request, Respond, http_server


@dataclass
class Completions:
    """A chat-completions server in a thread: `answer` handles a request."""

    answer: Respond | None = None
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

    def respond(request: Request) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        state.seen.append((request.path, headers, json.loads(request.body)))
        assert state.answer is not None
        state.answer(request)

    with http_server(respond) as url:
        state.url = f"{url}/v1"
        yield state
