"""Packs what ``python -m benchmarks gpu`` needs on a machine with a GPU that has only PyTorch and no network.

    python -m benchmarks.gpu.needs --python 3.12 --out .gpu/needs.tar.xz     here, where pip reaches an index
    mkdir -p /tmp/needs && tar xJf .gpu/needs.tar.xz -C /tmp/needs           there, in the source tree
    PYTHONPATH=/tmp/needs python3 -m benchmarks gpu --minutes 12 --out DIR

The archive is about 20 MiB, and at most 60. ``--have FILE``, the output of ``pip list`` there, leaves
out what that machine has. The versions are those of ``constraints.txt``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.server import run_command
from model.command_line import CommandParser

log = logging.getLogger("benchmarks")

IMPORTED = (  # by the parts; the others come with these
    "defusedxml", "faiss-cpu", "fastapi", "httptools", "httpx", "locust", "prometheus-client", "pycocoevalcap",
    "pydantic", "pydantic-settings", "pydicom", "python-multipart", "pyyaml", "safetensors", "tensorboard", "tqdm",
    "uvicorn",
)  # fmt: skip
PRESENT = ("torch", "torchvision")  # with what they require: NumPy and Pillow too
UNUSED = {"pycocotools", "matplotlib", "grpcio", "tensorboard-data-server"}  # required, but not by what runs here
JAVA = re.compile(r"pycocoevalcap/(?!.*\.py$)")  # 100 MB of METEOR, SPICE and their data
MOST_BYTES = 60 * 2**20
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_26_x86_64", "manylinux_2_24_x86_64",
             "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
CONSTRAINTS = Path("constraints.txt")


def needed(have: Collection[str] = ()) -> list[str]:
    """Normalised names of the distributions to carry, without those of ``have``."""
    present = set(_with_requirements(PRESENT, set())) | {_normal(name) for name in have}
    return sorted(set(_with_requirements(IMPORTED, UNUSED | present)))


def _with_requirements(roots: Sequence[str], without: set[str]) -> Iterator[str]:
    waiting, seen = [Requirement(name) for name in roots], set(without)
    while waiting:
        wanted = waiting.pop()
        if (name := _normal(wanted.name)) in seen:
            continue
        seen.add(name)
        yield name
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            marker, extras = requirement.marker, wanted.extras or {""}
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(requirement)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Normalised name -> its line in ``constraints.txt``."""
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if "==" in line]
    return {_normal(line.partition("==")[0]): line for line in lines}


def pack(names: Sequence[str], python: str, out: Path) -> int:
    """Download the wheels of ``names`` for a version of Python on Linux, x86-64, and pack their files; the size.

    Raises:
        RuntimeError: pip found no wheel; its message is above.
    """
    pinned, out = pins(), out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels, files = Path(folder) / "wheels", Path(folder) / "files"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
                   "--implementation", "cp", "--python-version", python, "-d", str(wheels),
                   *(f"--platform={name}" for name in PLATFORMS), *(pinned[name] for name in names)]  # fmt: skip
        if subprocess.run(command).returncode:
            raise RuntimeError("pip could not download all wheels; see its output above")
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(files, [name for name in archive.namelist() if not JAVA.match(name)])
        with tarfile.open(out, "w:xz") as packed:
            packed.add(files, arcname=".")
    return out.stat().st_size


def run(arguments: argparse.Namespace) -> int:
    """Write the archive; 1 if it is too large."""
    have = (
        [line.split()[0] for line in arguments.have.read_text().splitlines() if line.split()] if arguments.have else []
    )
    names = needed(have)
    log.info("packing %d packages: %s", len(names), ", ".join(names))
    size = pack(names, arguments.python, arguments.out)
    log.info("%s has %.1f MiB", arguments.out, size / 2**20)
    if size > MOST_BYTES:
        log.error("that is more than %d MiB; name what the machine has by --have", MOST_BYTES // 2**20)
    return int(size > MOST_BYTES)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, 1 if the archive is too large, or 2 without one."""
    parser = CommandParser(
        prog="python -m benchmarks.gpu.needs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="3.12", help="version of Python there (3.12)")
    parser.add_argument("--have", type=Path, help="output of `pip list` there")
    parser.add_argument("--out", type=Path, default=Path(".gpu/needs.tar.xz"))
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
