"""Second half of ``replay_image``: the image's command on a read-only tree, its health check, a study, a stop."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from service.schemas.models import ReportResponse
from tests.support.dockerfile import Instruction, healthcheck
from training.phantoms import make_phantom

STOP_S = 30.0  # stop_grace_period of the compose file
# As Compose would mount it: the tree read-only, a fresh /tmp; as root without any capability, as cap_drop and
# no-new-privileges leave it. $0 is the tree.
NAMESPACE = (
    'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t tmpfs -o mode=1777,size=512m tmpfs "$0/tmp" '
    '&& cd "$PWD" && exec "$@"'
)
WITHOUT_CAPABILITIES = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
# Fails for a user who can run this Python but not read where it lies.
FINDS_ITSELF = "import os, sys; open(os.path.realpath(sys.executable)).close(); sys.exit(sys.prefix == sys.base_prefix)"


class ReplayError(RuntimeError):
    """A step or a check failed; the message says which."""


@dataclass
class Container:
    """What Docker would start: the tree, the working directory, and of the image ENV, CMD, HEALTHCHECK and USER."""

    root: Path
    workdir: Path
    env: dict[str, str]
    command: list[str]
    health: Instruction
    user: str


def serve_and_ask(container: Container, bundle: Path, mount_at: str, say: Callable[..., None]) -> None:
    """Start the service, wait for its health check, draft a drawn study, stop it.

    Raises:
        ReplayError: it does not become healthy, the draft is not there, something was written, or it ends badly.
    """
    shutil.copytree(bundle, mount_at, dirs_exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    container.env |= {"REPORT_HOST": "127.0.0.1", "REPORT_PORT": str(port)}
    before = listing(container.root)
    prefix, how = read_only_prefix(container)
    say(f"CMD {' '.join(container.command)} as {how}")
    log = container.root.parent / "service.log"
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*prefix, *container.command],
            cwd=container.workdir,
            env=container.env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_healthy(container, process, log)
        say("HEALTHCHECK succeeds", began)
        began = time.monotonic()
        draft = post_phantom(port)
        say(f"POST /report of a drawn study: {len(draft.findings.split())} words, "
            f"{len(draft.reference_cases)} reference cases", began)  # fmt: skip
        status = Path(f"/proc/{process.pid}/status").read_text() if Path("/proc/self/status").exists() else ""
        peak = next((int(line.split()[1]) / 2**20 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
        left = [
            path.name for path in Path(f"/proc/{process.pid}/root{container.root}/tmp").glob("**/*") if path.is_file()
        ]
        say(f"peak memory {peak:.2f} GiB; files in /tmp: {left or 'none'}")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise ReplayError(f"SIGTERM: still there after {STOP_S:.0f} s\n{tail(log)}") from None
        if code != 0:
            raise ReplayError(f"SIGTERM: ended with status {code}, not 0\n{tail(log)}")
        say("SIGTERM: ended with status 0", began)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if changed := before.symmetric_difference(listing(container.root)):
        raise ReplayError(f"the service wrote into its image: {sorted(name for name, _ in changed)[:5]}")
    say("nothing was written into the tree")


def read_only_prefix(container: Container) -> tuple[list[str], str]:
    """What goes before the command so that it sees a read-only tree, and that in words."""
    subprocess.run(["chmod", "-R", "a-w", str(container.root)], check=True)
    (container.root / "tmp").chmod(0o1777)
    if os.geteuid() != 0:
        return [], "the user who runs this, without write permission in the tree"
    if (
        not (shutil.which("unshare") and shutil.which("setpriv"))
        or subprocess.run(["unshare", "-m", "true"]).returncode
    ):
        return [], "root (neither mount namespace nor setpriv here: the read-only tree is not enforced, only checked)"
    user, _, group = container.user.partition(":")
    switch = [f"--reuid={user}", f"--regid={group or user}", "--clear-groups"]
    sees = [*WITHOUT_CAPABILITIES, *switch, container.command[0], "-c", FINDS_ITSELF]
    reachable = subprocess.run(sees, cwd="/", env=container.env, capture_output=True, check=False).returncode == 0
    as_whom = (
        f"user {container.user}" if reachable else "root without capabilities (this Python is closed to other users)"
    )
    prefix = ["unshare", "-m", "sh", "-c", NAMESPACE, str(container.root), *WITHOUT_CAPABILITIES]
    return [*prefix, *(switch if reachable else [])], f"{as_whom}, tree mounted read-only"


def wait_until_healthy(container: Container, process: subprocess.Popen[bytes], log: Path) -> None:
    """Run the image's own health check until it succeeds, for as long as Docker would wait."""
    check = healthcheck(container.health)
    deadline = time.monotonic() + check.start_period_s + check.retries * check.interval_s
    why = ""
    while process.poll() is None and time.monotonic() < deadline:
        try:
            run = subprocess.run(
                check.command,
                env=container.env,
                cwd="/",
                capture_output=True,
                text=True,
                timeout=check.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            continue
        if run.returncode == 0:
            return
        why = run.stderr.strip().rpartition("\n")[2]
        time.sleep(1)
    code = process.poll()
    ended = f"not healthy in time: {why}" if code is None else f"the service ended with status {code}"
    raise ReplayError(f"{ended}\n{tail(log)}")


def post_phantom(port: int) -> ReportResponse:
    """Draft a drawn study; the answer."""
    study = make_phantom(7, frozenset())
    files = {}
    for name, pixels in (("frontal", study.frontal), ("lateral", study.lateral)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files[name] = (name, file.getvalue())
    answer = httpx.post(f"http://127.0.0.1:{port}/report", files=files, timeout=120)
    if answer.status_code != 200 or not answer.json()["findings"]:
        raise ReplayError(f"POST /report: {answer.status_code} {answer.text[:300]}")
    return ReportResponse.model_validate(answer.json())


def listing(root: Path) -> set[tuple[str, int]]:
    """Every file below ``root`` but /tmp, with the time it was last changed."""
    files = (path for path in root.rglob("*") if not path.is_dir() and root / "tmp" not in path.parents)
    return {(path.relative_to(root).as_posix(), path.lstat().st_mtime_ns) for path in files}


def tail(log: Path, lines: int = 15) -> str:
    """The log's last lines."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
