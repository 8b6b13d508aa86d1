"""Measure speed against peers in the same run, and print a table.

    python -m benchmarks                    the table, in under ten minutes on two cores
    python -m benchmarks gpu --out DIR      all that a GPU decides, in --minutes: JSON and page; --dry-run on a CPU
    python -m benchmarks growth --out DIR   how cost grows with words, beams, slots and batch: CSV and plot
    python -m benchmarks index --out DIR    the index up to a million vectors: CSV and plot (long)
    python -m benchmarks kinds              kinds of index compared at 100,000 vectors
    python -m benchmarks kernels            what each CPU kernel saves against plain PyTorch
    python -m benchmarks profile            the operators that take most of the time

The table is Markdown; ``--out FILE`` also writes it to a file. Run it on a quiet machine.

``gpu`` downloads nothing and needs no data. It runs in the source tree, on a machine with a GPU and PyTorch; the other
packages are those of ``pyproject.toml``, its extra ``train``, and locust. A run that was cut is continued by the same
command.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import HEADER, Machine, Row, markdown, read_machine
from benchmarks.server import run_command
from model.command_line import CommandParser
from model.devices import choose_device
from model.files import write_atomic

log = logging.getLogger("benchmarks")

SECTIONS = ("writing", "training", "serving", "batches", "shared", "cider", "index")


def measure(arguments: argparse.Namespace) -> int:
    """Run the command; returns 1 if a goal of the table was missed."""
    if arguments.what == "gpu":
        from benchmarks.gpu import command

        return command.run(arguments)
    from benchmarks import index, kernels, published_size  # `gpu` runs without the packages that these import

    device, out = choose_device(arguments.device), arguments.out or Path("runs/benchmarks")
    match arguments.what:
        case "growth":
            published_size.write_growth(published_size.growth(device), out)
        case "index":
            points = index.curve(out, arguments.sizes or index.SIZES, images=arguments.images)
            print(index.as_markdown(points))
        case "kinds":
            print(index.as_markdown(index.kinds(images=arguments.images)))
        case "kernels":
            print(kernels.as_markdown())
        case "profile":
            kernels.print_profiles(device)
        case _:
            return _table(device, arguments.only or SECTIONS, arguments.out)
    return 0


def _table(device: torch.device, sections: Sequence[str], out: Path | None) -> int:
    began, machine = time.monotonic(), read_machine(device)
    log.info("%s", machine.describe())
    rows: list[Row] = []
    for name in sections:
        log.info("measuring: %s", name)
        rows += _rows(name, machine, device)
    table = markdown(HEADER, [row.cells() for row in rows])
    text = f"{datetime.date.today()}, {machine.describe()}.\n\n{table}\n"
    print(text, end="")
    if out:
        write_atomic(out, text.encode())
    log.info("done in %.0f s", time.monotonic() - began)
    return int(any(row.met is False for row in rows))


def _rows(section: str, machine: Machine, device: torch.device) -> list[Row]:
    from benchmarks import cider, index, published_size, serving, shared_machine

    match section:
        case "writing":
            return published_size.decoding_rows(machine, device)
        case "training":
            return published_size.training_rows(machine, device)
        case "serving":
            return serving.rows(device)
        case "batches":
            return serving.batch_rows(device)
        case "shared":
            return shared_machine.rows(device)
        case "cider":
            return cider.rows()
        case _:
            return index.rows()


def _sections(text: str) -> tuple[str, ...]:
    from training.cli import some_of

    return some_of("section", SECTIONS)(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks``; 1 if a goal was missed or a part failed, 2 if nothing was measured."""
    parser = CommandParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("table", "gpu", "growth", "index", "kinds", "kernels", "profile")
    parser.add_argument("what", nargs="?", choices=commands, default="table")
    parser.add_argument("--out", type=Path, help="table: Markdown file to write; gpu, growth, index: folder")
    parser.add_argument("--only", type=_sections, help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda; gpu: always cuda")
    parser.add_argument("--minutes", type=float, default=12.0, help="gpu: time for all parts together (12)")
    parser.add_argument("--dry-run", action="store_true", help="gpu: everything at tiny size on the CPU")
    parser.add_argument("--sizes", type=int, nargs="+", help="index: numbers of vectors")
    parser.add_argument("--images", type=Path, help="index, kinds: a folder of radiographs as additional queries")
    return run_command(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
