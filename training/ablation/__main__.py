"""Command line of the ablation; see ``training.ablation``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from model.devices import choose_device
from training.ablation.external_eval import External, check_external
from training.ablation.plan import Plan, make_plan
from training.ablation.rows import ROWS, SCALES, parse_weights, read_scale
from training.ablation.runner import file_lock, run_plan
from training.cli import add_dataset_arguments, add_device_argument, positive, run_command

log = logging.getLogger("training")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.ablation``.

    Returns:
        0 when every cell has its scores, 1 when some failed, 2 for unusable arguments, 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _run(arguments), interrupted="interrupted; the same command continues")


def _run(arguments: argparse.Namespace) -> int:
    plan = _plan(arguments)
    with file_lock(plan.out):
        return 1 if run_plan(plan) else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    choose_device(arguments.device)
    external = None
    if arguments.external_images is not None:
        external = External(
            images=arguments.external_images.resolve(),
            labels=arguments.external_labels and arguments.external_labels.resolve(),
            annotation=arguments.external_annotation and arguments.external_annotation.resolve(),
            limit=arguments.external_limit,
        )
        log.info("%s", check_external(external))
    elif arguments.external_labels or arguments.external_annotation:
        raise ValueError("--external-labels and --external-annotation need --external-images DIR")
    return make_plan(
        out=arguments.out,
        rows=arguments.presets,
        seeds=arguments.seeds,
        scale=read_scale(arguments.scale),
        weights=parse_weights(arguments.backbone_weights),
        precision=arguments.precision,
        device=arguments.device,
        data={name: getattr(arguments, name) for name in ("dataset", "root", "annotation", "images", "soft_scores")},
        external=external,
    )


def _rows(text: str) -> tuple[str, ...]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'no row'}: choose from {','.join(ROWS)}")
    return tuple(row for row in ROWS if row in names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.ablation",
        description="Train and compare the rows of the study's table. Run again, it goes on where it stopped.",
    )
    add_dataset_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the cells")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 1 to N (default %(default)s)")
    parser.add_argument("--presets", type=_rows, default=ROWS, help=f"some of {','.join(ROWS)}")
    parser.add_argument("--scale", default="full", help=f"{', '.join(SCALES)}, or a JSON file (default %(default)s)")
    parser.add_argument("--backbone-weights", action="append", metavar="W",
                        help="imagenet, none, or a file for every row; or BACKBONE=FILE, once a backbone")  # fmt: skip
    parser.add_argument("--soft-scores", type=Path, help="CSV image_id,finding,… for a scale that pretrains")
    add_device_argument(parser)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--external-images", type=Path, help="folder of radiographs of another source")
    parser.add_argument("--external-labels", type=Path, help="their findings: CSV, as of NIH ChestX-ray14")
    parser.add_argument("--external-annotation", type=Path, help="or their reports: annotation in the R2Gen layout")
    parser.add_argument("--external-limit", type=positive, help="at most so many images (or studies)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
