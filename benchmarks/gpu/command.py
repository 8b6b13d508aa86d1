"""Runs the parts within a time budget, each in a process of its own, and keeps every result as it comes.

A part that fails, lacks a package, loses the device or takes longer than its share is recorded with
its error, and the next one starts on a fresh device context. A later run with the same ``--out``
skips the parts that are done.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import platform
import signal
import time
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import Job, Part
from benchmarks.gpu.parts import PRELOADED, parts
from benchmarks.gpu.results import Results
from model.devices import choose_device

log = logging.getLogger("benchmarks")

Context = ForkServerContext | SpawnContext
LEAST_S = 15.0  # a part is not started with less time
GRACE_S = 20.0  # between the interrupt of a part and its kill: it stops the service that it started


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet; 0 if all parts are done, else 1."""
    device = choose_device("cpu" if arguments.dry_run else "cuda")
    end = time.monotonic() + 60 * arguments.minutes
    results = Results(arguments.out or Path("runs/gpu"), describe(device, dry_run=arguments.dry_run))
    planned = parts(dry_run=arguments.dry_run)
    waiting = [part for part in planned if not results.is_done(part.name)]
    if len(waiting) < len(planned):
        log.info("%d of %d parts are done already", len(planned) - len(waiting), len(planned))
    os.environ.setdefault("TQDM_DISABLE", "1")
    context: Context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    for number, part in enumerate(waiting):
        left = end - time.monotonic()
        seconds = left * part.weight / sum(later.weight for later in waiting[number:])
        title = f"[{number + 1}/{len(waiting)}] {part.name}"
        if left < LEAST_S:
            log.warning("%s: not run, no time is left", title)
            results.keep(part, {"state": "not run", "error": "no time was left"})
            continue
        seconds = max(seconds, LEAST_S)
        log.info("%s: at most %.0f s, %.0f s are left", title, seconds, left)
        record = measure(part, Job(str(device), arguments.dry_run, time.monotonic() + seconds), context)
        if "in forked subprocess" in record.get("error", ""):  # an import touched the device before the fork
            context = multiprocessing.get_context("spawn")
            record = measure(part, Job(str(device), arguments.dry_run, time.monotonic() + seconds), context)
        results.keep(part, record)
        log.info("%s: %s after %.0f s %s", title, record["state"], record["seconds"], record.get("error", ""))
    missing = [part.name for part in planned if not results.is_done(part.name)]
    log.info("%s; the page is %s", f"missing: {', '.join(missing)}" if missing else "all parts are done", results.page)
    return int(bool(missing))


def describe(device: torch.device, *, dry_run: bool) -> dict[str, Any]:
    """What all results of one file have in common."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {"dry_run": dry_run, "device": gpu, "torch": torch.__version__, "cuda": torch.version.cuda,
            "python": platform.python_version()}  # fmt: skip


def measure(part: Part, job: Job, context: Context) -> dict[str, Any]:
    """The record of a part: ``state``, ``seconds``, and what it returned or its ``error``."""
    began = time.monotonic()
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_part, args=(sender, part.name, job), name=part.name)
    process.start()
    sender.close()  # so that the end of the process ends the pipe
    measuring = True
    record: dict[str, Any] = {"state": "failed", "error": f"it took more than its {job.deadline - began:.0f} s"}
    try:
        if results.poll(max(job.seconds_left, 0)):
            measuring = False
            record = results.recv()
    except EOFError:
        process.join(GRACE_S)
        record = {"state": "failed", "error": f"its process ended with status {process.exitcode}"}
    finally:
        stop(process, interrupt=measuring)
    return {**record, "seconds": round(time.monotonic() - began, 1)}


def stop(process: ForkServerProcess | SpawnProcess, *, interrupt: bool) -> None:
    """End the process of a part: wait for it, interrupted first if it still measures, then kill it."""
    if interrupt and process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGINT)
    process.join(GRACE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _run_part(sender: Connection, name: str, job: Job) -> None:
    """Measure in the process of the part, and send its record."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    (part,) = (one for one in parts(dry_run=job.dry_run) if one.name == name)
    try:
        outcome = part.run(job)
    except ModuleNotFoundError as error:
        sender.send({"state": "failed", "error": f"the package {error.name} is missing; --help says what to install"})
        return
    except Exception as error:
        log.error("%s failed\n%s", name, traceback.format_exc())
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        sender.send({"state": "failed", "error": f"{type(error).__name__} at {place}: {str(error)[:500]}"})
        return
    record = {"state": "done", **asdict(outcome)}
    if outcome.peak_bytes is None and job.torch_device.type == "cuda":
        record["peak_bytes"] = torch.cuda.max_memory_allocated(job.torch_device)
    sender.send(record)
