"""Command line of the ablation; see ``training.ablation``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.command_line import CommandParser
from model.devices import choose_device
from training.ablation.plan import make_plan
from training.ablation.rows import SCALES, TABLES
from training.ablation.runner import file_lock, run_plan
from training.cli import add_common_arguments, positive, run_command, some_of, without_new_views
from training.licence import add_data_licence

_ALL_ROWS = tuple(dict.fromkeys(row for rows in TABLES.values() for row in rows))


def _run(arguments: argparse.Namespace) -> int:
    choose_device(arguments.device)
    with without_new_views(arguments):
        plan = make_plan(arguments)
    with file_lock(plan.out):
        return 1 if run_plan(plan) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.ablation``.

    Returns:
        0 when every cell has its scores, 1 when some failed, 2 for unusable arguments, 130 when interrupted.
    """
    parser = CommandParser(
        prog="python -m training.ablation",
        description="Train and compare the rows of the study's table. Run again, it goes on where it stopped.",
    )
    add_common_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the cells")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 1 to N (default %(default)s)")
    parser.add_argument("--table", choices=tuple(TABLES),
                        help="study (default), or evolution: earlier systems in one recipe")  # fmt: skip
    parser.add_argument("--presets", type=some_of("row", _ALL_ROWS), metavar="ROWS",
                        help="some of the table's rows: " + "; ".join(map(",".join, TABLES.values())))  # fmt: skip
    parser.add_argument("--rows", type=Path, metavar="FILE",
                        help="other rows, YAML, JSON or TOML: NAME: {preset: baseline, ce.epochs: 3}")  # fmt: skip
    parser.add_argument("--scale", default="full", help=f"{', '.join(SCALES)}, or a JSON file (default %(default)s)")
    parser.add_argument("--backbone-weights", action="append", metavar="W",
                        help="imagenet, none, or a file for every row; or BACKBONE=FILE, once a backbone")  # fmt: skip
    parser.add_argument("--soft-scores", type=Path, help="CSV image_id,finding,… for a scale that pretrains")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    add_data_licence(parser)
    parser.add_argument("--external-images", type=Path, help="folder of radiographs of another source")
    parser.add_argument("--external-labels", type=Path, help="their findings: CSV, as of NIH ChestX-ray14")
    parser.add_argument("--external-annotation", type=Path, help="or their reports: annotation in the R2Gen layout")
    parser.add_argument("--external-limit", type=positive, help="at most so many images (or studies)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), interrupted="interrupted; the same command continues")


if __name__ == "__main__":
    raise SystemExit(main())
