"""Answers of reasoning models: what they write to themselves is no part of the rewritten text."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from service.llm.client import MAX_ANSWER_BYTES, Chat, ChatError
from tests.support.http import http_server, respond_with


def ask(content: object) -> str:
    """The text of a server's answer."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    with http_server(respond_with(json.dumps({"choices": [choice]}, ensure_ascii=False).encode())) as url:
        return asyncio.run(Chat(f"{url}/v1", "m").ask("", ""))


REASON = "The user wants a rewrite. Maybe there is a large <5 cm pneumothorax?"


@pytest.mark.parametrize("marked", [
    "<think>{}</think>\n{}", "{}\n</think>\n\n{}", "<thinking>\n{}\n</thinking>{}", "<seed:think>{}</seed:think>{}",
    "[THINK]{}[/THINK]{}", "{}[/THINK]{}", "◁think▷{}◁/think▷{}", "<unused94>thought\n{}<unused95>{}",
    "<think>{}</think><answer>{}</answer>", "<|channel>thought\n{}<channel|>{}", "analysis{}assistantfinal{}",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final <|constrain|>text<|message|>{}",
    "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<|begin_of_thought|>{}<|end_of_thought|><|begin_of_solution|>{}<|end_of_solution|>",
])  # fmt: skip
def test_reasoning_is_no_part_of_the_text(marked: str) -> None:
    assert ask(marked.format(REASON, "Clear lungs. A nodule < 5 mm.")) == "Clear lungs. A nodule < 5 mm."


@pytest.mark.parametrize("fenced", [
    "```\n{}\n```", "```text\n{}\n```\n", "<think>a</think>\n```markdown\n{}\n```", "```{}```", "```\r\n{}\r\n```",
    "Here is the rewritten draft:\n\n```\n{}\n```\nLet me know if it is right.",
])  # fmt: skip
def test_only_the_content_of_a_code_block_is_the_text(fenced: str) -> None:
    assert ask(fenced.format("Clear lungs.\nNo effusion.")) == "Clear lungs. No effusion."


@pytest.mark.parametrize("wrong", ["``` Clear lungs.", "```\nClear lungs.\n```\n```\nNo effusion.\n```", "```\n```"])
def test_refuses_code_fences_without_one_text(wrong: str) -> None:
    with pytest.raises(ChatError):
        ask(wrong)


def test_text_parts_are_the_answer() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": REASON}]}
    parts = [{"type": "text", "text": "Clear lungs. "}, {"type": "text", "text": "No effusion."}]
    assert ask([thought, *parts]) == "Clear lungs. No effusion."
    for wrong in ([thought], [], [{"type": "text"}], [{"type": "text", "text": 3}], ["text"], [None]):
        with pytest.raises(ChatError):
            ask(wrong)


@pytest.mark.parametrize("start", [
    "<think>", "<thinking>", "[THINK]", "◁think▷", "<|channel|>analysis<|message|>", "<unused94>thought", "analysis",
    "Clear lungs. <think>", "<plan>", "<|START_THINKING|>",
])  # fmt: skip
def test_refuses_reasoning_without_an_end(start: str) -> None:
    with pytest.raises(ChatError, match="reasoning without an end"):
        ask(start + REASON)


@pytest.mark.parametrize("piece", ["<|channel|>final", "<think", "</a:", "analysis", "<|channel|> "])
def test_marks_are_found_in_linear_time(piece: str) -> None:
    answer = piece * (MAX_ANSWER_BYTES // len(piece) - 50)
    began = time.monotonic()
    with pytest.raises(ChatError):
        ask(answer)
    assert time.monotonic() - began < 1
