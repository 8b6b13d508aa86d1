"""A client of a server that speaks OpenAI's chat completions, as llama.cpp, vLLM, Ollama and others do.

Text about a patient goes out, and text that nobody has checked comes in. So a call uses no proxy of the environment,
follows no redirect, keeps neither cookie nor connection for the next one, checks certificates against the system's
authorities, and reads no more than it needs. Wire format: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import json
import re
import ssl

import httpx

MAX_ANSWER_BYTES, MAX_CHARACTERS = 256 * 1024, 8_000
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # what reasoning models put before their answer
_UNFINISHED = "<think>"


class ChatError(RuntimeError):
    """The server gave nothing that can be used; the message quotes nothing of its answer."""


class Chat:
    """One model behind one address."""

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        """Open nothing yet.

        Args:
            url: base address, such as ``http://127.0.0.1:11434/v1``.
            model: as the server knows it.
            key: sent as bearer token.
        """
        self.model = model
        self._url = url.rstrip("/") + "/chat/completions"
        # Not compressed: a few hundred bytes of gzip could become any number before anybody counted them.
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._authorities = ssl.create_default_context()

    async def ask(self, instruction: str, question: str) -> str:
        """The model's answer, as one line of printable characters; never empty. The caller bounds the time.

        Raises:
            ChatError: there is no such answer.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "stream": False}
        try:
            async with httpx.AsyncClient(verify=self._authorities, timeout=None, trust_env=False) as client:
                return _text(await self._post(client, body))
        except httpx.HTTPError as error:
            raise ChatError(type(error).__name__) from None

    async def _post(self, client: httpx.AsyncClient, body: dict[str, object]) -> bytes:
        received = bytearray()
        async with client.stream("POST", self._url, json=body, headers=self._headers, follow_redirects=False) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ChatError(f"it answered status {answer.status_code}")
            async for part in answer.aiter_raw():
                received += part
                if len(received) > MAX_ANSWER_BYTES:
                    raise ChatError(f"its answer is larger than {MAX_ANSWER_BYTES:,} bytes")
        return bytes(received)


def _text(data: bytes) -> str:
    try:
        choice = json.loads(data)["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ChatError("its answer is no chat completion") from None
    if not isinstance(content, str):
        raise ChatError("its answer holds no text")
    text = _printable(_THOUGHT.sub("", content))
    if reason == "length" or text.startswith(_UNFINISHED):
        raise ChatError("its text is cut short")
    if not text or len(text) > MAX_CHARACTERS:
        raise ChatError(f"its text has {len(text):,} characters; 1 to {MAX_CHARACTERS:,} are taken")
    return text


def _printable(text: str) -> str:
    """On one line, without control characters and halves of surrogate pairs, which no format could hold."""
    kept = "".join(character for character in text if character.isprintable() or character.isspace())
    return " ".join(kept.split())
