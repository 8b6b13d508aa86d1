"""Train a bundle in one command, resumably.

    python -m training.run --dataset openi --root DIR --preset compact --out BUNDLE
    python -m training.run --dataset r2gen --annotation annotation.json --images DIR --out BUNDLE
    python -m training.run --config FILE --set ce.epochs=3 shape.backbone=resnet18 --print-config

``training.pipeline`` has the stages in order. Each leaves ``result.pt``, ``log.csv``,
``curves.png`` and TensorBoard events in its folder of the work directory (default ``OUT.work``).
``--resume`` continues a run that was killed at any point.

    torchrun --nproc-per-node N -m training.run …     # N GPUs share each batch
"""

from __future__ import annotations

import argparse
import errno
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from model.command_line import CommandParser
from model.manifest import BundleError
from training.checks import check_batches, check_model, check_paths, check_targets, doubtful
from training.cli import add_common_arguments, at_least, open_source, some_of, without_new_views
from training.config import RunConfig
from training.config_changes import as_yaml, assignment, chosen_config, described_changes
from training.data.external import for_pretraining, read_external
from training.data.studies import Source, check_cases
from training.data.tables import read_present
from training.data.targets import ExternalLabels, read_soft_scores
from training.licence import add_data_licence
from training.pipeline import run_pipeline
from training.prepared_run import PreparedRun, public
from training.presets import PRESETS
from training.run_manifest import MANIFEST_FILE, check_resume_compatible, run_manifest, write_run_manifest
from training.stage_results import STAGES, check_prerequisites, done_stages
from training.stages.common import RunInputs
from training.trainer.checkpoints import first_line
from training.trainer.context import RunContext
from training.trainer.distributed import is_peer_failure, join, process_rank
from training.trainer.loggers import LOGGERS, ExperimentLogger, check_logger

log = logging.getLogger("training")


def _config(arguments: argparse.Namespace) -> RunConfig:
    """The preset with the changes of the file and of the options."""
    single = [
        ("shape.backbone", arguments.backbone, "--backbone"),
        ("backbone_weights", arguments.backbone_weights, "--backbone-weights"),
        ("seed", arguments.seed, "--seed"),
    ]
    several = [(name, value, "--set") for name, value in arguments.set]
    options = [option for option in single if option[1] is not None] + several
    for name, value in arguments.set:
        if name == "protocol" and arguments.protocol not in (None, value):
            raise ValueError(f"--protocol {arguments.protocol} contradicts --set protocol={value}; give one of them")
    config = chosen_config(arguments.preset, arguments.config, options)
    return config if arguments.protocol is None else config.with_protocol(arguments.protocol)


def _open_inputs(arguments: argparse.Namespace, config: RunConfig, context: RunContext) -> RunInputs:
    """Open the data set and check it against the run in the work directory, if there is one."""
    is_main = context.processes.main
    if is_main and arguments.out.exists() and not arguments.resume and not arguments.replace:
        raise ValueError(f"--out {arguments.out} already exists; choose another, or add --replace")
    check_paths(arguments.out, context.work)
    check_batches(config, context.processes.count)
    check_logger(arguments.logger)
    soft_scores = _table(arguments, "soft_scores", "chexnet_scores.csv")
    labels = _table(arguments, "reference_labels", "chexbert_labels.csv")
    with context.processes.main_process_first():  # it may download
        source, external_labels = _with_external(open_source(arguments, config.protocol), config, arguments)
        if config.retrieval_k:
            check_cases(source.split("train"))
        if not source.split("train"):
            raise ValueError(f"the data set has no training study ({'; '.join(source.notes)})")
        if soft_scores is not None and config.pretrain is not None:
            read_soft_scores(soft_scores)
        check_targets(config, source, soft=soft_scores is not None, external=external_labels is not None)
        check_model(config)
        check_prerequisites(config, context.work, arguments.stages, done_stages(context.work))
        if is_main:
            manifest = run_manifest(config, source, arguments.precision, soft_scores=soft_scores, label_table=labels,
                                    external_labels=arguments.external_labels)  # fmt: skip
            check_resume_compatible(context.work, manifest, resume=arguments.resume)
            if not (context.work / MANIFEST_FILE).exists():
                write_run_manifest(context.work, manifest)
    for note in source.notes:
        log.info("%s", note)
    return RunInputs(source, arguments.out, not arguments.without_texts, soft_scores, external_labels,
                     label_table=read_present(labels) if labels else None,
                     data_licence=arguments.data_licence)  # fmt: skip


def _with_external(
    source: Source, config: RunConfig, arguments: argparse.Namespace
) -> tuple[Source, ExternalLabels | None]:
    """The source with the labelled images of another set, where the options name one."""
    labels, images = arguments.external_labels, arguments.external_images
    if labels is None and images is None:
        return source, None
    if labels is None or images is None:
        raise ValueError("--external-labels and --external-images need each other; give both, or neither")
    if config.pretrain is None:
        raise ValueError(f"preset {config.preset} has no pretraining, and --external-labels is for pretraining only; "
                         "leave it out")  # fmt: skip
    return for_pretraining(source, read_external(labels, images))


def _table(arguments: argparse.Namespace, option: str, default_name: str) -> Path | None:
    """The file given by an option, else the one of this name in ``--root``, if it exists."""
    given: Path | None = getattr(arguments, option)
    if given is not None:
        if not given.is_file():
            raise ValueError(f"--{option.replace('_', '-')} {given}: no such file")
        return given
    found = arguments.root / default_name if arguments.root else None
    return found if found is not None and found.is_file() else None


def _prepare(config: RunConfig, arguments: argparse.Namespace, context: RunContext) -> PreparedRun:
    """Open the data and the logger, and decode the images; files of a refused start are removed."""
    is_new = context.processes.main and not context.work.exists()
    with without_new_views(arguments):
        inputs = _open_inputs(arguments, config, context)
        try:
            logger = None
            if context.processes.main:
                stored = public(config).model_dump(mode="json")
                logger = ExperimentLogger.open(arguments.logger, context.work, arguments.out.name, stored)
            return PreparedRun.prepare(config, inputs, replace(context, logger=logger))
        except ValueError:
            if is_new:
                shutil.rmtree(context.work)
            raise


def _run_logged(run: PreparedRun, stages: Sequence[str]) -> None:
    """Run the pipeline; the logger, if there is one, also receives the scores on val."""
    logger = run.context.logger
    status: Literal["success", "failed"] = "failed"
    try:
        metrics = run_pipeline(run, stages)
        status = "success"
        if logger is not None and metrics.get("val"):
            scores = {name: value for name, value in metrics["val"]["system"].items() if value is not None}
            logger.record({f"evaluate/{name}": value for name, value in scores.items()}, 0)
    finally:
        if logger is not None:
            logger.close(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.run``; returns the exit code."""
    parser = CommandParser(prog="python -m training.run", description="Train a bundle, resumably.")
    add_common_arguments(parser, download=True)
    parser.add_argument("--preset", choices=tuple(PRESETS), help="default: that of --config, else retrieval")
    parser.add_argument("--config", type=Path, metavar="FILE", help="changes of the preset: YAML, JSON or TOML")
    parser.add_argument("--set", type=assignment, action="extend", nargs="+", default=[], metavar="NAME=VALUE",
                        help="more changes: ce.epochs=3 shape.backbone=resnet18; values are JSON")  # fmt: skip
    parser.add_argument("--print-config", action="store_true", help="print the configuration as YAML and exit")
    parser.add_argument("--out", type=Path, help="the bundle to write")
    parser.add_argument("--work", type=Path, help="checkpoints, logs, caches (default OUT.work)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the work directory")
    parser.add_argument("--replace", action="store_true", help="replace an existing bundle")
    parser.add_argument("--stages", type=some_of("stage", STAGES), default=STAGES, help=f"some of {','.join(STAGES)}")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--images-on-device", choices=("auto", "yes", "no"), default="auto",
                        help="keep decoded images and features on the device; auto: where they fit")  # fmt: skip
    parser.add_argument("--logger", choices=LOGGERS, default="tensorboard",
                        help="of experiments, besides log.csv and TensorBoard")  # fmt: skip
    parser.add_argument("--checkpoint-seconds", type=at_least(0, float), default=120.0,
                        help="longest time between two checkpoints")  # fmt: skip
    parser.add_argument("--seed", type=int, help="default: that of the configuration, 1 in all presets")
    parser.add_argument("--backbone", help="densenet121, resnet101, efficientnet_lite0, …; overrides the preset")
    parser.add_argument("--backbone-weights", "--weights", metavar="WEIGHTS",
                        help="imagenet, none, or a file; overrides the preset")  # fmt: skip
    parser.add_argument("--soft-scores", type=Path, help="CSV image_id,finding,… for pretraining")
    parser.add_argument("--reference-labels", type=Path, help="CSV study_id,<finding>,…: labels in pretraining")
    parser.add_argument("--external-labels", type=Path, help="CSV of findings by image: pretraining targets")
    parser.add_argument("--external-images", type=Path, help="folder of those images")
    add_data_licence(parser)
    parser.add_argument("--without-texts", action="store_true", help="leave report texts out of the bundle's cases")
    arguments, rank = parser.parse_args(argv), process_rank()
    if not (arguments.out and arguments.out.name) and not arguments.print_config:
        parser.error("the following arguments are required: --out, a folder with a name")
    logging.basicConfig(
        level=logging.ERROR if rank else logging.INFO, datefmt="%H:%M:%S", stream=sys.stderr,
        format="%(asctime)s " + (f"process {rank}: " if rank else "") + "%(message)s",
    )  # fmt: skip
    try:
        config = _config(arguments)
        if arguments.print_config:
            check_model(config, weights=False)
            print(as_yaml(config), end="")
            return 0
        processes, device = join(arguments.device)
        context = RunContext(
            device, config.seed, arguments.precision,
            arguments.work or arguments.out.with_name(arguments.out.name + ".work"), processes,
            arguments.images_on_device, arguments.checkpoint_seconds,
        )  # fmt: skip
        for line in described_changes(config):
            log.info("configuration: %s", line)
        for line in doubtful(config):
            log.warning("configuration: %s", line)
        torch.set_float32_matmul_precision("high" if arguments.precision == "bf16" else "highest")
        _run_logged(_prepare(config, arguments, context), arguments.stages)
        processes.leave()
    except (ValueError, BundleError, FloatingPointError) as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        log.error("%s.%s", error, " Free space there, then continue with --resume; the last checkpoint is kept" * full)
        return 2
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        log.error("another process has ended; see its message (%s)", first_line(error))
        return 2
    except KeyboardInterrupt:
        log.error("interrupted; continue with --resume")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
