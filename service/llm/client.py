"""A client for the OpenAI chat completions API of llama.cpp, vLLM, Ollama and others.

Requests contain text about a patient, and responses are untrusted. The client therefore ignores proxy variables,
follows no redirect, keeps no cookie and no connection, verifies certificates, and limits the size of a response.
Wire format: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl

import httpx

from service.inference.threads import background_loop

MAX_ANSWER_BYTES, MAX_CHARACTERS = 256 * 1024, 8_000
_FENCE = "```"  # of a code block in Markdown
# Reasoning models write to themselves before their answer. Servers return it with marks, often without the first one.
_THOUGHTS = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
_END_OF_REASONING = re.compile(
    rf"</{_THOUGHTS}>|\[/THINK\]|◁/think▷|<unused95>|<channel\|>|<\|end_?of_?thought\|>|<\|end_thinking\|>"
    r"|<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|\A\s*analysis.*assistantfinal",
    re.IGNORECASE | re.DOTALL,
)
_ANSWER_MARK = re.compile(
    r"</?(?:answer|final|response|output)>|<\|(?:end|return|im_end|(?:start|end)_response|(?:begin|end)_of_solution)\|>",
    re.IGNORECASE,
)
_OTHER_MARK = re.compile(  # of reasoning without an end, or of another format
    r"</?[a-z][\w:.-]*\s*/?>|<\|\w|\w\|>|<unused\d+>|\[/?think\]|◁|\A\s*analysis(?-i:[A-Z])", re.IGNORECASE
)


class ChatError(RuntimeError):
    """The server returned no usable answer; the message quotes nothing of the response."""


class Chat:
    """One language model at one address."""

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        """Store the address; no connection is opened.

        Args:
            url: base address, such as ``http://127.0.0.1:11434/v1``.
            model: name of the model on the server.
            key: sent as bearer token.
        """
        self.model = model
        self._url = url.rstrip("/") + "/chat/completions"
        # No compression: a few hundred bytes of gzip could expand to any size before the limit applies.
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._ssl_context = ssl.create_default_context()

    async def ask(self, instruction: str, question: str) -> str:
        """Return the answer as one line of printable characters, never empty. The caller limits the time.

        Raises:
            ChatError: there is no usable answer.
        """
        exchange = asyncio.run_coroutine_threadsafe(self._ask(instruction, question), background_loop("language-model"))
        return await asyncio.wrap_future(exchange)

    async def _ask(self, instruction: str, question: str) -> str:
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "stream": False}
        try:
            async with httpx.AsyncClient(verify=self._ssl_context, timeout=None, trust_env=False) as client:
                return _parse(await self._post(client, body))
        except httpx.HTTPError as error:
            raise ChatError(type(error).__name__) from None

    async def _post(self, client: httpx.AsyncClient, body: dict[str, object]) -> bytes:
        received = bytearray()
        request = client.stream("POST", self._url, json=body, headers=self._headers, follow_redirects=False)
        async with request as response:
            if response.status_code != httpx.codes.OK:
                raise ChatError(f"it returned status {response.status_code}")
            async for part in response.aiter_raw():
                received += part
                if len(received) > MAX_ANSWER_BYTES:
                    raise ChatError(f"its answer is larger than {MAX_ANSWER_BYTES:,} bytes")
        return bytes(received)


def _parse(data: bytes) -> str:
    try:
        choice = json.loads(data)["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
        if isinstance(content, list):  # of parts; those of other types hold reasoning
            content = "".join(part["text"] for part in content if part["type"] == "text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ChatError("its answer is not a chat completion") from None
    if not isinstance(content, str):
        raise ChatError("its answer has no text")
    if finish_reason == "length":
        raise ChatError("its text is cut short")
    answer = _ANSWER_MARK.sub("", _END_OF_REASONING.split(content)[-1])
    if _OTHER_MARK.search(answer):
        raise ChatError("its text has reasoning without an end, or other marks")
    text = _printable(_inside_fence(answer))
    if not text or len(text) > MAX_CHARACTERS:
        raise ChatError(f"its text has {len(text):,} characters; 1 to {MAX_CHARACTERS:,} are allowed")
    return text


def _inside_fence(text: str) -> str:
    """The content of the one fenced code block, as what surrounds it is a remark; the text if there is no fence."""
    before, *block = text.split(_FENCE)
    if not block:
        return before
    if len(block) != 2:
        raise ChatError("its text has a code fence without an end, or several code blocks")
    language, newline, content = block[0].partition("\n")
    return content if newline and len(language.split()) < 2 else block[0]


def _printable(text: str) -> str:
    """Join the text to one line without control characters and unpaired surrogates, which no format can encode."""
    kept = "".join(character for character in text if character.isprintable() or character.isspace())
    return " ".join(kept.split())
