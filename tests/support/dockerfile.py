"""Reads the Dockerfile and .dockerignore as far as this project uses them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pathspec


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, flags (``--from=build`` is ``{"from": "build"}``), the rest as written."""

    name: str
    flags: dict[str, str]
    rest: str

    def words(self) -> list[str]:
        """The items of a JSON array, or else the words that a shell would see."""
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


@dataclass
class Stage:
    """The instructions after one ``FROM``."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> Instruction:
        """The instruction of that name that counts: the last."""
        return [instruction for instruction in self.instructions if instruction.name == name][-1]


def parse_dockerfile(text: str) -> list[Stage]:
    """The stages of a Dockerfile; comments are dropped, continued lines joined, global ``ARG`` ignored."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        flags = dict(re.findall(r"--([\w-]+)=(\S+)", re.match(r"(--\S+\s+)*", rest)[0]))  # type: ignore[index]
        rest = re.sub(r"^(--\S+\s+)*", "", rest)
        if name.upper() == "FROM":
            stages.append(Stage(rest.partition(" AS ")[2] or str(len(stages))))
        elif stages:
            stages[-1].instructions.append(Instruction(name.upper(), flags, rest))
    return stages


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}``; an unknown name is empty, as in Docker."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def dockerignore(context: Path) -> pathspec.PathSpec:
    """The rules of a build context; ``match_file`` is true for what stays out of it."""
    path = context / ".dockerignore"
    return pathspec.PathSpec.from_lines("gitignore", path.read_text().splitlines() if path.exists() else [])


def context_files(context: Path, source: str) -> list[Path]:
    """The files that ``COPY source`` finds, relative to the build context."""
    start, rules = context / source, dockerignore(context)
    below = sorted(start.rglob("*")) if start.is_dir() else [start]
    files = [path.relative_to(context) for path in below if path.is_file() and not path.is_symlink()]
    return [path for path in files if not rules.match_file(path.as_posix())]
