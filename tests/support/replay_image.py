"""Replays the image without Docker: the Dockerfile's steps in a temporary directory, then serve, draft, stop.

    python -m tests.support.replay_image [--work DIR] [--keep] [--build-arg TORCH=cpu] [--env REPORT_DEVICE=cpu]

``make replay-image`` runs it. It takes minutes and 8 GB. Differences from Docker: the base image is this machine's
Python; absolute paths of the image lie below the temporary directory; `useradd` and owners have stand-ins, because they
need root; the bundle is copied to where Compose would mount it; the service listens on 127.0.0.1 and a free port.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import httpx

from model.command_line import CommandParser
from tests.support.dockerfile import Instruction, Stage, context_files, expand, parse_dockerfile
from tests.support.paths import REPOSITORY
from tests.support.service import free_port, png

NEEDED_BYTES = 8 * 10**9
STOP_S = 30.0  # stop_grace_period of the compose file
# The caller's environment variables by which pip finds packages; no others are passed on.
PASSED = re.compile(r"PIP_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|https?_proxy|no_proxy|HOME", re.IGNORECASE)
UNWANTED = ("training", "tests", "benchmarks", "bundles", "pytest", ".git", ".venv", "*.safetensors", "*.faiss")
STAND_INS = {
    "python": 'exec "{python}" "$@"',
    "useradd": "exit 0",
    "install": 'for word; do shift; case "$skip$word" in\n'  # without -o USER -g GROUP
    '  -o|-g) skip=x ;; x*) skip= ;; *) set -- "$@" "$word" ;; esac; done\n'
    'exec "{install}" "$@"',
}  # fmt: skip
# The tree mounted read-only with a fresh /tmp, no capabilities, as Compose starts the container. $0 is the tree.
READ_ONLY = (
    'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t tmpfs -o mode=1777,size=512m tmpfs "$0/tmp" '
    '&& cd "$PWD" && exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"'
)


class ReplayError(RuntimeError):
    """A step or a check failed; the message names it."""


@dataclass
class Image:
    """A replayed stage: its root directory, and environment and working directory as paths of this machine."""

    root: Path
    env: dict[str, str]
    workdir: str = "/"
    stage: Stage = field(default_factory=lambda: Stage("0"))


class Replay:
    """Replays the stages of the Dockerfile in ``context`` below the empty directory ``work``."""

    def __init__(
        self, context: Path, work: Path, python: Path, build_args: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.context, self.work, self.python, self.build_args = context, work, python, build_args
        self.stages = parse_dockerfile((context / "Dockerfile").read_text())
        self.paths = image_paths(self.stages)
        self.built: dict[str, Image] = {}
        self.log = work / "replay.log"
        self.stand_ins = work / "stand-ins"
        self.stand_ins.mkdir(parents=True)
        for name, body in STAND_INS.items():
            script = self.stand_ins / name
            script.write_text(f"#!/bin/sh\n{body.format(python=python, install=shutil.which('install'))}\n")
            script.chmod(0o755)

    def build(self) -> Image:
        """Replay every stage and keep the last.

        Raises:
            ReplayError: a step failed.
        """
        passed = {key: value for key, value in os.environ.items() if PASSED.fullmatch(key)}
        for stage in self.stages:
            root = self.work / stage.name
            (root / "tmp").mkdir(parents=True)
            env = {**passed, "PATH": f"{self.stand_ins}:/usr/local/bin:/usr/bin:/bin", "TMPDIR": str(root / "tmp")}
            image = self.built[stage.name] = Image(root, env, stage=stage)
            for instruction in stage.instructions:
                self._step(instruction, image)
        for other in self.stages[:-1]:
            shutil.rmtree(self.built.pop(other.name).root)
        image.env["PATH"] = image.env["PATH"].replace(f"{self.stand_ins}:", "")
        return image

    def map(self, text: str, image: Image) -> str:
        """Replace absolute paths of the image by where they lie on this machine."""
        return self.paths.sub(lambda match: f"{image.root}{match[0]}", text)

    def _step(self, instruction: Instruction, image: Image) -> None:
        if instruction.name in {"RUN", "COPY"}:
            say(f"{instruction.name} {instruction.rest[:90]}")
        match instruction.name:
            case "ENV":
                for word in instruction.words():
                    key, _, value = word.partition("=")
                    image.env[key] = self.map(expand(value, image.env), image)
            case "ARG":
                key, _, default = instruction.rest.partition("=")
                if value := self.build_args.get(key, default):
                    image.env[key] = value
            case "WORKDIR":
                image.workdir = instruction.rest
                Path(self.map(instruction.rest, image)).mkdir(parents=True, exist_ok=True)
            case "RUN":
                self._run(instruction, image)
            case "COPY":
                self._copy(instruction, image)

    def _run(self, instruction: Instruction, image: Image) -> None:
        cwd = self.map(image.workdir, image) if image.workdir != "/" else str(image.root)
        with self.log.open("a") as log:
            command = ["/bin/sh", "-ec", self.map(instruction.rest, image)]
            run = subprocess.run(command, cwd=cwd, env=image.env, stdout=log, stderr=subprocess.STDOUT, check=False)
        if run.returncode != 0:
            raise ReplayError(f"RUN {instruction.rest}: exit status {run.returncode}\n{tail(self.log)}")

    def _copy(self, instruction: Instruction, image: Image) -> None:
        *sources, target = instruction.words()
        to = Path(self.map(str(PurePosixPath(image.workdir) / target), image))
        if origin := instruction.flags.get("from"):
            for source in sources:  # hard links are as good as copies
                tree = self.map(source, self.built[origin])
                shutil.copytree(tree, to, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
            return
        for source in sources:
            is_folder = (self.context / source).is_dir()
            if not (files := context_files(self.context, source)):
                raise ReplayError(f"COPY {source}: nothing of it is in the build context; see .dockerignore")
            for file in files:
                path = to / (file.relative_to(source) if is_folder else file.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.context / file, path)


def image_paths(stages: Sequence[Stage]) -> re.Pattern[str]:
    """Matches absolute paths below /tmp and below each top folder that a WORKDIR or COPY names."""
    tops = {"tmp"}
    for stage in stages:
        for instruction in stage.instructions:
            words = instruction.words() if instruction.name in {"WORKDIR", "COPY"} else []
            tops |= {PurePosixPath(word).parts[1] for word in words if word.startswith("/")}
    return re.compile(rf"(?<![\w./])/(?:{'|'.join(sorted(map(re.escape, tops)))})(?=[/\s:\"']|$)")


def check_contents(image: Image) -> None:
    """Check that the image has no training code, test, bundle or development tool, and that its packages fit.

    Raises:
        ReplayError: naming what it holds, or what `pip check` reports.
    """
    (packages,) = image.root.rglob("site-packages")
    folders = [packages, *(packages / name for name in ("model", "retrieval_index", "service")), image.root / "app"]
    found = [path for folder in folders for name in UNWANTED for path in folder.glob(name)]
    if contents := [str(path) for path in found if path.is_file() or any(path.iterdir())]:
        raise ReplayError(f"the image holds what it must not: {contents}")
    pip = [str(packages.parents[2] / "bin" / "python"), "-m", "pip", "check"]
    run = subprocess.run(pip, env=image.env, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise ReplayError(f"pip check: {run.stdout}{run.stderr}")


def serve_and_draft(image: Image, command: Sequence[str], bundle: Path) -> None:
    """Start the service on the read-only tree, wait until it is ready, draft a drawn study, stop it.

    Raises:
        ReplayError: it does not become ready, drafts nothing, writes into its tree, or exits with an error.
    """
    shutil.copytree(bundle, image.env["REPORT_BUNDLE"], dirs_exist_ok=True)
    image.env |= {"REPORT_HOST": "127.0.0.1", "REPORT_PORT": str(free_port())}
    url = f"http://127.0.0.1:{image.env['REPORT_PORT']}"
    before = listing(image.root)
    with running(image, command) as (process, log):
        wait_until_ready(url, process, log)
        say("GET /health: 200")
        answer = httpx.post(f"{url}/report", files={"frontal": png(200, 240), "lateral": png(180, 240)}, timeout=120)
        if answer.status_code != 200 or not answer.json()["findings"]:
            raise ReplayError(f"POST /report: {answer.status_code} {answer.text[:300]}")
        say(f"POST /report: {len(answer.json()['reference_cases'])} reference cases")
        process.terminate()
        if (code := process.wait(STOP_S)) != 0:
            raise ReplayError(f"SIGTERM: exit status {code}\n{tail(log)}")
    if changed := before.symmetric_difference(listing(image.root)):
        raise ReplayError(f"the service wrote into its image: {sorted(name for name, _ in changed)[:5]}")
    say("stopped with status 0; nothing was written into the tree")


@contextmanager
def running(image: Image, command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command on a read-only tree (mounted so where this is root and may, else by permissions), and its log."""
    subprocess.run(["chmod", "-R", "a-w", str(image.root)], check=True)
    (image.root / "tmp").chmod(0o1777)
    may_mount = (
        os.geteuid() == 0 and shutil.which("setpriv") and subprocess.run(["unshare", "-m", "true"]).returncode == 0
    )
    prefix = ["unshare", "-m", "sh", "-c", READ_ONLY, str(image.root)] if may_mount else []
    log = image.root.parent / "service.log"
    with log.open("w") as out:
        cwd = image.root / image.workdir.lstrip("/")
        process = subprocess.Popen([*prefix, *command], cwd=cwd, env=image.env, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 210.0) -> None:
    """Poll /health until it is 200, for as long as the image's HEALTHCHECK would."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    state = "not ready in time" if process.poll() is None else f"exit status {process.poll()}"
    raise ReplayError(f"the service: {state}\n{tail(log)}")


def listing(root: Path) -> set[tuple[str, int]]:
    """Every file below ``root`` except /tmp, with the time of its last change."""
    files = (path for path in root.rglob("*") if not path.is_dir() and root / "tmp" not in path.parents)
    return {(path.relative_to(root).as_posix(), path.lstat().st_mtime_ns) for path in files}


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def say(what: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay the image. Exit status 0: all went well; 1: a step or check failed; 2: no disk space or bundle."""
    parser = CommandParser(prog="python -m tests.support.replay_image", description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where the directory is made")
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / "bundles" / "iu-xray", help="the bundle to serve")
    base = Path(getattr(sys, "_base_executable", None) or sys.executable)
    parser.add_argument("--python", type=Path, default=base, help="replaces that of the base image (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="as docker run -e; repeatable")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build")
    given = parser.parse_args(arguments)
    if (free := shutil.disk_usage(given.work).free) < NEEDED_BYTES:
        print(
            f"{given.work} has {free / 1e9:.1f} GB free, needed are {NEEDED_BYTES / 1e9:.0f}; use --work",
            file=sys.stderr,
        )
        return 2
    if not (given.bundle / "MANIFEST.json").is_file():
        print(f"there is no bundle at {given.bundle}; use --bundle", file=sys.stderr)
        return 2
    work = Path(tempfile.mkdtemp(prefix="replay-", dir=given.work)).resolve()
    try:
        replay = Replay(REPOSITORY, work, given.python, dict(item.split("=", 1) for item in given.build_arg))
        image = replay.build()
        check_contents(image)
        image.env |= dict(item.split("=", 1) for item in given.env)
        command = [replay.map(word, image) for word in image.stage.last("CMD").words()]
        serve_and_draft(image, command, given.bundle)
    except ReplayError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        if given.keep:
            print(f"kept: {work}")
        else:
            subprocess.run(["chmod", "-R", "u+w", str(work)], check=False)
            shutil.rmtree(work, ignore_errors=True)
    print("the image builds, serves and stops as its Dockerfile defines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
