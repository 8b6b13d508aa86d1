"""One input of the fuzzing, and hypothesis as a generator of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from benchmarks.raw_http import Answer, RawRequest

T = TypeVar("T")
ROUND = 100  # examples per hypothesis run; each round has its own seed and can be drawn again alone


@dataclass(frozen=True)
class Input:
    """A request and its origin.

    Attributes:
        kind: ``schema``, ``bodies`` or ``files``.
        origin: what draws the same request again: seed and number of the example, and what was done.
        request: the bytes to send.
        check: further rules for the answer; returns what is wrong.
    """

    kind: str
    origin: str
    request: RawRequest
    check: Callable[[Answer], list[str]] | None = None


def endlessly(strategy: SearchStrategy[T], start: int) -> Iterator[tuple[str, T]]:
    """Examples with their origin, round after round; the same ones for the same ``start``."""
    number = start
    while True:
        for position, example in enumerate(_drawn(strategy, number)):
            yield f"hypothesis seed {number}, example {position}", example
        number += 1


def _drawn(strategy: SearchStrategy[T], number: int) -> list[T]:
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
