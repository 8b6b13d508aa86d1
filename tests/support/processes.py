"""Runs commands in processes that import nothing again and use no Java."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

# One thread fixes the order of sums. Without Java on the path METEOR is left out, which takes seconds a process.
ENVIRONMENT: Mapping[str, str] = {"OMP_NUM_THREADS": "1", "PATH": str(Path(sys.executable).parent)}
_FORKS = multiprocessing.get_context("forkserver")
# The optimizers import PyTorch's compiler.
_FORKS.set_forkserver_preload(["training.run", "training.ablation.__main__", "torch._dynamo", "service.__main__"])


def fork(main: Callable[[list[str]], int], arguments: list[str], log: Path) -> BaseProcess:
    """Run a command's ``main`` in a new process, forked from one that has imported it.

    Args:
        main: as the module of the command names it.
        arguments: of its command line.
        log: file for the standard error.
    """
    return _start(_run, main, arguments, log)


def _start(target: Callable[..., object], *arguments: object) -> BaseProcess:
    process = _FORKS.Process(target=target, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)  # for the first call, which starts the fork server
        process.start()
    return process


def fork_service(
    arguments: Sequence[object], log: Path, *, change: Callable[[], object] | None = None, **environment: object
) -> BaseProcess:
    """Run ``python -m service`` as ``fork`` does.

    Args:
        arguments: of its command line.
        log: file to which its output is appended.
        change: is called in the process before; a function of a module.
        environment: variables that it has in addition to those of this process.
    """
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return _start(_serve, [*map(str, arguments)], log, change, variables)


def kill_when(sign: Path | Callable[[], bool], process: BaseProcess, log: Path) -> None:
    """SIGKILL as soon as ``sign`` is a file, or holds; fails with its ``log`` if the process ends before."""
    deadline = time.monotonic() + 240
    while not (sign.exists() if isinstance(sign, Path) else sign()):
        assert process.is_alive(), log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"{sign} did not appear"
        time.sleep(0.02)
    process.kill()
    process.join()


def _run(main: Callable[[list[str]], int], arguments: list[str], log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


def _serve(arguments: list[str], log: Path, change: Callable[[], object] | None, variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[1:] = arguments
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from service import __main__ as command

    if change is not None:
        change()
    command.main_and_exit()
