"""Replays the image without Docker: the Dockerfile's own steps in a temporary directory, then serve, ask, stop.

    python -m tests.support.replay_image                # minutes and 6 GB, given back at the end (make replay-image)
    python -m tests.support.replay_image --keep --work DIR      # leave the tree there to be looked at
    python -m tests.support.replay_image --env REPORT_DEVICE=cpu

The steps are read from the Dockerfile, what reaches them from .dockerignore. What differs from Docker: the base image
is this machine's Python; absolute paths of the image lie below the temporary directory; ``useradd`` and owners need
root and have stand-ins; the bundle is copied where Compose would mount it; the service listens on 127.0.0.1 and a
free port.

Exit status: 0 all went well; 1 a step or a check failed; 2 refused, for want of disk space or of something to run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.support.dockerfile import (
    DockerfileError,
    Instruction,
    Stage,
    context_files,
    environment,
    expand,
    ignored,
    parse_dockerfile,
)
from tests.support.replay_service import Container, ReplayError, serve_and_ask

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED_BYTES = 8 * 10**9
# Of the caller's environment: how pip finds packages here, no more.
PASSED = re.compile(r"PIP_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|https?_proxy|no_proxy|HOME", re.IGNORECASE)
NO_PART_OF_IT = ("training", "tests", "benchmarks", "bundles", ".git", ".venv")
STAND_INS = {
    "python": 'exec "{python}" "$@"',
    "useradd": "exit 0",
    "install": 'for word; do shift; case "$skip$word" in\n'  # without -o USER -g GROUP
    '  -o|-g) skip=x ;; x*) skip= ;; *) set -- "$@" "$word" ;; esac; done\n'
    'exec "{install}" "$@"',
}  # fmt: skip


@dataclass
class Built:
    """A stage as far as it is replayed: its root directory, environment and working directory (as in the image)."""

    root: Path
    env: dict[str, str]
    workdir: str = "/"
    user: str = "root"


class Replay:
    """Replays the stages of a Dockerfile below ``work``.

    Args:
        context: the build context, with Dockerfile and .dockerignore.
        work: an empty directory.
        python: stands in for that of the base image.
    """

    def __init__(self, context: Path, work: Path, python: Path) -> None:
        self.context, self.work, self.python = context, work, python
        self.stages = parse_dockerfile((context / "Dockerfile").read_text())
        ignore = context / ".dockerignore"
        self.rules = ignore.read_text().splitlines() if ignore.exists() else []
        self.paths = image_paths(self.stages)
        self.built: dict[str, Built] = {}
        self.log = work / "replay.log"
        self.stand_ins = write_stand_ins(work / "stand-ins", python)

    def build(self) -> Built:
        """Replay every stage; the last one is the image.

        Raises:
            ReplayError: a step failed.
        """
        for number, stage in enumerate(self.stages):
            name = stage.name or str(number)
            say(f"FROM {stage.base}, for which {self.python} stands in")
            root = self.work / name
            (root / "tmp").mkdir(parents=True)
            (root / "tmp").chmod(0o1777)
            passed = {key: value for key, value in os.environ.items() if PASSED.fullmatch(key)}
            path = f"{self.stand_ins}:/usr/local/bin:/usr/bin:/bin"
            self.built[name] = last = Built(root, {**passed, "PATH": path, "TMPDIR": str(root / "tmp")})
            for instruction in stage.instructions:
                began = time.monotonic()
                self._step(instruction, last)
                if instruction.name in {"RUN", "COPY"}:
                    say(f"{instruction.name} {shorten(instruction.rest)}", began)
        for name, built in list(self.built.items()):
            if built is not last:  # as Docker does; whatever still needed it fails from now on
                shutil.rmtree(built.root)
                del self.built[name]
        return last

    def map(self, text: str, built: Built) -> str:
        """Absolute paths of the image, wherever they stand in ``text``, to where they lie here."""
        return self.paths.sub(lambda match: f"{built.root}{match[0]}", text)

    def container(self, built: Built) -> Container:
        """The last stage with its CMD, HEALTHCHECK and USER, ready to be started."""
        stage = self.stages[-1]
        command = [self.map(word, built) for word in stage.last("CMD").words()]
        path = built.env["PATH"].replace(f"{self.stand_ins}:", "")  # nothing of the replay's own runs in the image
        return Container(
            root=built.root,
            workdir=Path(self.map(built.workdir, built)),
            env={**built.env, "PATH": path},
            command=command,
            health=stage.last("HEALTHCHECK"),
            user=built.user,
        )

    def _step(self, instruction: Instruction, built: Built) -> None:
        if instruction.name == "ENV":
            built.env |= {key: self.map(value, built) for key, value in environment(instruction, built.env).items()}
        elif instruction.name == "ARG" and "=" in instruction.rest:
            key, _, default = instruction.rest.partition("=")
            built.env.setdefault(key, expand(default, built.env))
        elif instruction.name == "WORKDIR":
            built.workdir = instruction.rest
            Path(self.map(instruction.rest, built)).mkdir(parents=True, exist_ok=True)
        elif instruction.name == "USER":
            built.user = instruction.rest
        elif instruction.name == "RUN":
            self._run(instruction, built)
        elif instruction.name == "COPY":
            self._copy(instruction, built)

    def _run(self, instruction: Instruction, built: Built) -> None:
        if instruction.flags:
            raise DockerfileError(f"line {instruction.line}: RUN with flags {instruction.flags} is not replayed")
        cwd = self.map(built.workdir, built) if built.workdir != "/" else str(built.root)
        with self.log.open("a") as log:
            log.write(f"\n$ {instruction.rest}\n")
            log.flush()
            shell = ["/bin/sh", "-ec", self.map(instruction.rest, built)]
            run = subprocess.run(shell, cwd=cwd, env=built.env, stdout=log, stderr=subprocess.STDOUT, check=False)
        if run.returncode != 0:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise ReplayError(f"line {instruction.line}: RUN ended with status {run.returncode}\n{tail}")

    def _copy(self, instruction: Instruction, built: Built) -> None:
        *sources, target = instruction.words()
        where = PurePosixPath(built.workdir) / target
        to = Path(self.map(str(where), built))
        if origin := instruction.flags.get("from"):
            for source in sources:  # links instead of copies: the same bytes, at once
                shutil.copytree(
                    self.map(source, self.built[origin]), to, symlinks=True, copy_function=os.link, dirs_exist_ok=True
                )
            return
        for source in sources:
            is_folder = (self.context / source).is_dir()
            for file in context_files(self.context, source, self.rules):
                inner = file.relative_to(source) if is_folder else Path(file.name)
                path = to / inner if is_folder or target.endswith("/") or len(sources) > 1 else to
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.context / file, path)


def image_paths(stages: Sequence[Stage]) -> re.Pattern[str]:
    """Matches the absolute paths that the image has of its own: below /tmp and wherever its steps put something."""
    tops = {"tmp"}
    for stage in stages:
        for instruction in stage.instructions:
            words = instruction.words() if instruction.name in {"WORKDIR", "COPY"} else []
            tops |= {PurePosixPath(word).parts[1] for word in words if word.startswith("/")}
    return re.compile(rf"(?<![\w./])/(?:{'|'.join(sorted(map(re.escape, tops)))})(?=[/\s:\"']|$)")


def write_stand_ins(folder: Path, python: Path) -> Path:
    """Small scripts for what a step may call and what cannot be had here: the base image's Python, and root."""
    folder.mkdir(parents=True)
    for name, body in STAND_INS.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{body.format(python=python, install=shutil.which('install'))}\n")
        script.chmod(0o755)
    return folder


def check_contents(image: Built, replay: Replay) -> None:
    """No training code, test, bundle or development tool in the image.

    Raises:
        ReplayError: something is, or the installed packages do not fit one another.
    """
    (packages,) = image.root.rglob("site-packages")
    found = [
        name for name in NO_PART_OF_IT for place in (packages, image.root / "app") if any((place / name).glob("*"))
    ]
    found += [str(path) for pattern in ("*.safetensors", "*.faiss") for path in packages.rglob(pattern)]
    if found:
        raise ReplayError(f"the image holds what it must not: {found}")
    for package in ("model", "retrieval_index", "service"):
        for path in (packages / package).rglob("*.*"):
            name = path.relative_to(packages).as_posix()
            if path.is_file() and path.suffix != ".pyc" and ignored(name, replay.rules):
                raise ReplayError(f"{name} is in the image, though .dockerignore keeps it out")
    unwanted = "training", "tests", "benchmarks", "pytest"
    script = f"import importlib.util as u; print([name for name in {unwanted} if u.find_spec(name)])"
    python = [str(packages.parents[2] / "bin" / "python")]
    asked = subprocess.run(
        [*python, "-c", script], cwd=image.root, env=image.env, capture_output=True, text=True, check=True
    )
    if asked.stdout.strip() != "[]":
        raise ReplayError(f"the image can import {asked.stdout.strip()}")
    fits = subprocess.run([*python, "-m", "pip", "check"], env=image.env, capture_output=True, text=True, check=False)
    if fits.returncode != 0:
        raise ReplayError(f"pip check: {fits.stdout}")


_STARTED = time.monotonic()


def say(what: str, began: float | None = None) -> None:
    """A line with the seconds since the start, and those that this step took."""
    took = "" if began is None else f"  ({time.monotonic() - began:.1f} s)"
    print(f"{time.monotonic() - _STARTED:7.1f}  {what}{took}", flush=True)


def shorten(text: str, width: int = 90) -> str:
    """The text on one line of at most ``width`` characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def tree_bytes(root: Path) -> int:
    """Bytes of all files below ``root``."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def main(arguments: Sequence[str] | None = None) -> int:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.replay_image", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where the directory is made")
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / "bundles" / "iu-xray", help="what is served")
    base = Path(getattr(sys, "_base_executable", None) or sys.executable)
    parser.add_argument("--python", type=Path, default=base, help="stands in for the base image's (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the directory")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="as docker run -e; repeatable")
    given = parser.parse_args(arguments)
    if (free := shutil.disk_usage(given.work).free) < NEEDED_BYTES:
        print(f"{given.work} has {free / 1e9:.1f} GB free; the image takes {NEEDED_BYTES / 1e9:.0f} GB: "
              "make room, or name another place with --work", file=sys.stderr)  # fmt: skip
        return 2
    if not (given.bundle / "MANIFEST.json").is_file():
        print(f"there is no bundle at {given.bundle}: name one with --bundle", file=sys.stderr)
        return 2
    work = Path(tempfile.mkdtemp(prefix="replay-", dir=given.work)).resolve()
    work.chmod(0o755)
    try:
        replay = Replay(REPOSITORY, work, given.python)
        image = replay.build()
        began = time.monotonic()
        check_contents(image, replay)
        say(f"holds no training code, tests or bundles; {tree_bytes(image.root) / 1e9:.1f} GB; packages fit", began)
        container = replay.container(image)
        container.env |= dict(item.split("=", 1) for item in given.env)
        serve_and_ask(container, given.bundle, image.env["REPORT_BUNDLE"], say)
    except (ReplayError, DockerfileError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        if given.keep:
            print(f"left in {work}")
        else:
            subprocess.run(["chmod", "-R", "u+w", str(work)], check=False)
            shutil.rmtree(work, ignore_errors=True)
    print("the image builds, serves and stops as its Dockerfile says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
