"""Measure speed against peers in the same run, and print a table.

    python -m benchmarks                    the table, in under ten minutes on two cores
    python -m benchmarks growth --out DIR   how cost grows with words, beams, slots and batch: CSV and plot
    python -m benchmarks index --out DIR    the index up to a million vectors: CSV and plot (long)
    python -m benchmarks kinds              kinds of index compared at 100,000 vectors
    python -m benchmarks kernels            what each CPU kernel saves against plain PyTorch
    python -m benchmarks profile            the operators that take most of the time

The table is Markdown; ``--out FILE`` also writes it to a file. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import cider, index, kernels, published_size, serving, shared_machine
from benchmarks.measure import HEADER, Machine, Row, markdown, read_machine
from benchmarks.server import run_command
from model.devices import choose_device
from model.files import write_atomic
from training.cli import some_of

log = logging.getLogger("benchmarks")

SECTIONS: dict[str, Callable[[Machine, torch.device], list[Row]]] = {
    "writing": published_size.decoding_rows,
    "training": published_size.training_rows,
    "serving": lambda _, device: serving.rows(device),
    "shared": lambda _, device: shared_machine.rows(device),
    "cider": lambda *_: cider.rows(),
    "index": lambda *_: index.rows(),
}


def measure(arguments: argparse.Namespace) -> int:
    """Run the command; returns 1 if a goal of the table was missed."""
    device, out = choose_device(arguments.device), arguments.out or Path("runs/benchmarks")
    match arguments.what:
        case "growth":
            published_size.write_growth(published_size.growth(device), out)
        case "index":
            print(index.as_markdown(index.curve(out, arguments.sizes, images=arguments.images)))
        case "kinds":
            print(index.as_markdown(index.kinds(images=arguments.images)))
        case "kernels":
            print(kernels.as_markdown())
        case "profile":
            kernels.print_profiles(device)
        case _:
            return _table(device, arguments.only or list(SECTIONS), arguments.out)
    return 0


def _table(device: torch.device, sections: Sequence[str], out: Path | None) -> int:
    began, machine = time.monotonic(), read_machine(device)
    log.info("%s", machine.describe())
    rows: list[Row] = []
    for name in sections:
        log.info("measuring: %s", name)
        rows += SECTIONS[name](machine, device)
    table = markdown(HEADER, [row.cells() for row in rows])
    text = f"{datetime.date.today()}, {machine.describe()}.\n\n{table}\n"
    print(text, end="")
    if out:
        write_atomic(out, text.encode())
    log.info("done in %.0f s", time.monotonic() - began)
    return int(any(row.met is False for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks``; returns 1 if a goal was missed, 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("table", "growth", "index", "kinds", "kernels", "profile")
    parser.add_argument("what", nargs="?", choices=commands, default="table")
    parser.add_argument("--out", type=Path, help="table: Markdown file to write; growth, index: folder")
    parser.add_argument("--only", type=some_of("section", SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=index.SIZES, help="index: numbers of vectors")
    parser.add_argument("--images", type=Path, help="index, kinds: a folder of radiographs as additional queries")
    return run_command(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
