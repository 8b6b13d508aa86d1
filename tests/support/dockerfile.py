"""Reads a Dockerfile and a .dockerignore as far as this project uses them; anything else is refused by name.

The replay of the image (``tests.support.replay_image``) and the checks of the container files
(``test_project_containers``) read the steps from here, so that none of them stands anywhere a second time.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {
    "FROM", "ARG", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "LABEL", "HEALTHCHECK", "STOPSIGNAL", "CMD",
}  # fmt: skip


class DockerfileError(ValueError):
    """The file cannot be read, or holds what nobody here knows how to replay."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, flags (``--from=build`` is ``{"from": "build"}``), the rest as written."""

    name: str
    flags: dict[str, str]
    rest: str
    line: int

    def words(self) -> list[str]:
        """The rest as a list: of a JSON array its items, else split as a shell would."""
        if self.rest.startswith("["):
            try:
                items = json.loads(self.rest)
            except json.JSONDecodeError as error:
                raise DockerfileError(f"line {self.line}: {self.name} {self.rest!r} is no JSON array") from error
            return [str(item) for item in items]
        return shlex.split(self.rest)


@dataclass
class Stage:
    """What one ``FROM`` begins."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> Instruction:
        """The instruction of that name that counts, the last.

        Raises:
            DockerfileError: there is none.
        """
        found = [instruction for instruction in self.instructions if instruction.name == name]
        if not found:
            raise DockerfileError(f"the stage from {self.base} has no {name}")
        return found[-1]


@dataclass(frozen=True)
class HealthCheck:
    """A command, and the seconds it is given."""

    command: list[str]
    interval_s: float
    timeout_s: float
    start_period_s: float
    retries: int


def parse_dockerfile(text: str, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """The stages of a Dockerfile, in their order.

    Args:
        text: the file.
        arguments: build arguments, before the defaults of ``ARG``.

    Raises:
        DockerfileError: an unknown instruction, or one before the first ``FROM``.
    """
    given = dict(arguments or {})
    stages: list[Stage] = []
    for number, line in _logical_lines(text):
        name, _, rest = line.partition(" ")
        name, (flags, rest) = name.upper(), _flags(rest.strip())
        if name not in KNOWN:
            raise DockerfileError(f"line {number}: {name} is not known here; known are {', '.join(sorted(KNOWN))}")
        if name == "FROM":
            words = expand(rest, given).split()
            stages.append(Stage(words[0], words[2] if len(words) == 3 and words[1].upper() == "AS" else None))
        elif stages:
            stages[-1].instructions.append(Instruction(name, flags, rest, number))
        elif name == "ARG":
            key, _, default = rest.partition("=")
            given.setdefault(key, default)
        else:
            raise DockerfileError(f"line {number}: {name} before the first FROM")
    if not stages:
        raise DockerfileError("no FROM")
    return stages


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Fill in ``$NAME`` and ``${NAME}``; an unknown name is empty, as in Docker."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def environment(instruction: Instruction, before: Mapping[str, str]) -> dict[str, str]:
    """What an ``ENV`` instruction sets, given the environment ``before`` it."""
    pairs = [word.partition("=") for word in instruction.words()]
    if any(not equals for _, equals, _ in pairs):
        raise DockerfileError(f"line {instruction.line}: ENV takes NAME=value, not {instruction.rest!r}")
    return {name: expand(value, before) for name, _, value in pairs}


def healthcheck(instruction: Instruction) -> HealthCheck:
    """A ``HEALTHCHECK … CMD [...]``, with Docker's defaults where it says nothing."""
    keyword, _, command = instruction.rest.partition(" ")
    if keyword != "CMD":
        raise DockerfileError(f"line {instruction.line}: HEALTHCHECK without CMD")
    words = Instruction("CMD", {}, command.strip(), instruction.line).words()
    flags = instruction.flags
    return HealthCheck(
        command=words,
        interval_s=_seconds(flags.get("interval", "30s")),
        timeout_s=_seconds(flags.get("timeout", "30s")),
        start_period_s=_seconds(flags.get("start-period", "0s")),
        retries=int(flags.get("retries", "3")),
    )


def ignored(path: str, rules: Sequence[str]) -> bool:
    """Whether a .dockerignore keeps ``path``, relative and with slashes, out of the build context.

    The last matching rule wins, as in Docker; a rule for a folder holds for all below it.
    """
    parts = path.split("/")
    prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    verdict = False
    for rule in (line.strip() for line in rules):
        if rule and not rule.startswith("#"):
            pattern = _pattern(rule.lstrip("!").strip("/"))
            if any(pattern.fullmatch(prefix) for prefix in prefixes):
                verdict = not rule.startswith("!")
    return verdict


def context_files(root: Path, source: str, rules: Sequence[str]) -> list[Path]:
    """The files below ``root`` that ``COPY source`` finds, relative to ``root``, sorted.

    Raises:
        DockerfileError: it finds none.
    """
    start = root / source
    below = sorted(start.rglob("*")) if start.is_dir() else [start]
    found = [path.relative_to(root) for path in below if path.is_file() and not path.is_symlink()]
    kept = [path for path in found if not ignored(path.as_posix(), rules)]
    if not kept:
        raise DockerfileError(f"COPY {source}: nothing of it is in the build context; see .dockerignore")
    return kept


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Instructions with the number of their first line: comments dropped, continued lines joined."""
    lines: list[tuple[int, str]] = []
    held: str | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        whole = line if held is None else f"{held} {line}"
        if held is None:
            began = number
        held = whole.removesuffix("\\").rstrip() if whole.endswith("\\") else None
        if held is None:
            lines.append((began, whole))
    if held is not None:
        raise DockerfileError(f"line {began}: continued, but the file ends")
    return lines


def _flags(rest: str) -> tuple[dict[str, str], str]:
    flags = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    return flags, rest


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    if match is None:
        raise DockerfileError(f"{duration!r} is no duration such as 30s")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2]]


def _pattern(rule: str) -> re.Pattern[str]:
    """``*`` and ``?`` stop at a slash, ``**`` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", rule)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))
