"""One input of the fuzzing, and the running of hypothesis as a generator of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from benchmarks.raw_http import Answer, RawRequest

T = TypeVar("T")
ROUND = 250  # examples that hypothesis draws at a time; each round has a seed of its own and can be drawn again alone


@dataclass(frozen=True)
class Input:
    """A request with where it came from.

    Attributes:
        kind: ``schema``, ``bodies`` or ``files``.
        origin: what draws the same request again: seed, round or number, and what was done to it.
        request: the bytes to send.
        check: further demands on its answer; returns what is wrong.
    """

    kind: str
    origin: str
    request: RawRequest
    check: Callable[[Answer], list[str]] | None = None


def drawn(strategy: SearchStrategy[T], number: int) -> list[T]:
    """Up to ``ROUND`` examples of ``strategy``, the same for the same seed."""
    examples: list[T] = []

    @seed(number)
    @settings(
        max_examples=ROUND, phases=[Phase.generate], database=None, deadline=None, verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def gather(example: T) -> None:
        examples.append(example)

    gather()
    return examples


def endlessly(strategy: SearchStrategy[T], start: int) -> Iterator[tuple[str, T]]:
    """Examples of one round after the other, each with its origin."""
    number = start
    while True:
        for place, example in enumerate(drawn(strategy, number)):
            yield f"hypothesis seed {number}, example {place}", example
        number += 1
