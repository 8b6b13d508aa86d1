"""Measure speed against peers in the same run, and print a table.

    python -m benchmarks                    the table, in under ten minutes on two cores
    python -m benchmarks growth --out DIR   how cost grows with words, beams, slots and batch: CSV and plot
    python -m benchmarks index --out DIR    the index up to a million vectors: CSV and plot (long)
    python -m benchmarks kinds              kinds of index side by side at 100,000 vectors
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

from benchmarks import cider, decoding, growth, index, kernels, machine, profiles, serving, training_step
from benchmarks.logging import configure_logging
from benchmarks.machine import Machine
from benchmarks.table import HEADER, Row, markdown
from model.devices import choose_device
from model.files import write_atomic

log = logging.getLogger("benchmarks")

SECTIONS: dict[str, Callable[[Machine, torch.device], list[Row]]] = {
    "writing": decoding.rows,
    "training": training_step.rows,
    "serving": lambda _, device: serving.rows(device),
    "cider": lambda *_: cider.rows(),
    "index": lambda *_: index.rows(),
}


def table(device: torch.device, sections: Sequence[str]) -> tuple[str, list[Row]]:
    """A line on the machine, and the rows of ``sections``."""
    here = machine.read(device)
    log.info("%s", here.describe())
    rows: list[Row] = []
    for name in sections:
        log.info("measuring: %s", name)
        rows += SECTIONS[name](here, device)
    return here.describe(), rows


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks``; returns 1 if a goal was missed."""
    arguments = _parser().parse_args(argv)
    configure_logging()
    try:
        return _measure(arguments, choose_device(arguments.device))
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2


def _measure(arguments: argparse.Namespace, device: torch.device) -> int:
    if arguments.what == "growth":
        growth.write(growth.measure(device), arguments.out or Path("runs/benchmarks"))
        return 0
    if arguments.what == "index":
        points = index.curve(arguments.out or Path("runs/benchmarks"), arguments.sizes, images=arguments.images)
        print(index.as_markdown(points))
        return 0
    if arguments.what == "kinds":
        print(index.as_markdown(index.kinds(images=arguments.images)))
        return 0
    if arguments.what == "kernels":
        print(kernels.as_markdown())
        return 0
    if arguments.what == "profile":
        profiles.print_all(device)
        return 0
    began = time.monotonic()
    described, rows = table(device, arguments.only or list(SECTIONS))
    text = f"{datetime.date.today()}, {described}.\n\n{markdown(HEADER, [row.cells() for row in rows])}\n"
    print(text, end="")
    if arguments.out:
        write_atomic(arguments.out, text.encode())
    log.info("done in %.0f s", time.monotonic() - began)
    return int(any(row.met is False for row in rows))


def _sections(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"unknown section {unknown[0]!r}; choose from {','.join(SECTIONS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("table", "growth", "index", "kinds", "kernels", "profile"), default="table"
    )
    parser.add_argument("--out", type=Path, help="table: Markdown file to write; growth, index: folder")
    parser.add_argument("--only", type=_sections, help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=index.SIZES, help="index: numbers of vectors")
    parser.add_argument("--images", type=Path, help="index, kinds: a folder of radiographs as additional queries")
    return parser


if __name__ == "__main__":
    sys.exit(main())
