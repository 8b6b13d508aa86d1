"""Train a bundle in one command, resumably.

    python -m training.run --dataset openi --root DIR --preset compact --out BUNDLE [--download] [--resume]
    python -m training.run --dataset r2gen --annotation annotation.json --images DIR --preset retrieval --out BUNDLE

Stages: pretrain, retriever, index, ce, scst, evaluate, bundle. Each leaves ``result.pt``, ``log.csv``, ``curves.png``
and TensorBoard events in its folder of the work directory (``OUT.work`` by default); a run killed at any point goes on
with ``--resume``. Validation studies are used for validation only, test studies for nothing.

    torchrun --nproc-per-node N -m training.run …           # N GPUs share each batch: README.md
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.bundle import write_bundle
from model.config import BundleConfig, ModelConfig, PreprocessingConfig, RetrievalConfig
from model.decoding.mbr import MbrTable
from model.files import write_atomic
from model.manifest import BundleError
from model.network.backbone import Backbone
from model.network.report_model import ReportModel
from model.text.tokenizer import Tokenizer
from retrieval_index.cases import read_cases, write_cases
from retrieval_index.index import CASES_FILE, VECTORS_FILE, ReportIndex
from training.cli import add_dataset_arguments, add_device_argument, open_source
from training.config import RunConfig, RunContext
from training.data.external import for_pretraining, read_external
from training.data.features import CachedFeatures, OnlineFeatures, PatchSource, cache_features, readable
from training.data.label_table import read_present
from training.data.pixel_cache import PixelCache, build_pixel_cache
from training.data.studies import Source, Study
from training.data.targets import ExternalLabels
from training.evaluate import evaluate
from training.evaluation.inference import open_bundle
from training.evaluation.plan import EvaluationPlan, InferenceOptions, Outputs
from training.presets import PRESETS, preset
from training.run_manifest import MANIFEST_FILE, check_resume_compatible, run_manifest, write_run_manifest
from training.scoring.metrics import meteor_available
from training.stages.cross_entropy import train_ce
from training.stages.index import build_index, retrieval_scores
from training.stages.mbr_table import build_consensus
from training.stages.pretrain import pretrain
from training.stages.retriever import recall, train_retriever, val_similarity
from training.stages.scst import train_scst
from training.trainer.checkpoints import in_short, save_atomically
from training.trainer.distributed import ProcessGroup, is_peer_failure, join, process_rank

log = logging.getLogger("training")

SHARED = frozenset({"pretrain", "retriever", "index", "ce", "scst"})  # the other stages are process 0's alone
STAGES = ("pretrain", "retriever", "index", "ce", "scst", "evaluate", "bundle")
LICENCE = (
    "Weights learned from the Indiana University chest X-ray collection (Open-i, CC BY-NC-ND 4.0, attribution: Indiana "
    "University). For research; not a medical device. No report text and no radiograph is part of this bundle{texts}."
)


@dataclass
class Run:
    """One run's data, model and places. Stages read and change ``model`` and ``index``."""

    config: RunConfig
    context: RunContext
    source: Source
    soft_scores: Path | None
    out: Path
    keep_texts: bool
    labelled: ExternalLabels | None = None  # findings of studies of another source, for pretraining
    label_table: Mapping[str, frozenset[str]] | None = None  # study uid -> findings, a second truth beside the labeler
    cache_dir: Path | None = None  # of pixels and features; runs on one data set may share it, one after another
    evaluate_limit: int | None = None  # studies scored in the end; None: as many as validation takes while training
    cache: PixelCache = field(init=False)
    train: list[Study] = field(init=False)
    val: list[Study] = field(init=False)
    tokenizer: Tokenizer = field(init=False)
    model: ReportModel = field(init=False)
    metrics: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """Decode the images, build vocabulary and model."""
        wanted = [*self.source.split("train"), *self.source.split("val")]
        if self.config.pretrain is not None:
            wanted += self.source.extra
        with self.context.processes.main_process_first():
            self.cache = build_pixel_cache(self.source, wanted, self.config.image_size, self.caches)
        self.train, self.val = (readable(self.source.split(split), self.cache) for split in ("train", "val"))
        if not self.train:
            raise ValueError("no training study has a readable image; check --root, or --annotation and --images")
        self.tokenizer = Tokenizer.build(study.report for study in self.train)
        torch.manual_seed(self.config.seed)
        backbone = Backbone(self.config.shape.backbone, weights=self.config.backbone_weights)
        self.model = ReportModel(model_config(self.config, len(self.tokenizer)), backbone=backbone)
        self.model.to(self.context.device)
        self.model.backbone.to(memory_format=torch.channels_last)
        log.info("%d training and %d validation studies, %d words, %.1f million weights", len(self.train),
                 len(self.val), len(self.tokenizer), sum(p.numel() for p in self.model.parameters()) / 1e6)  # fmt: skip

    @property
    def work(self) -> Path:
        """The run's work directory."""
        return self.context.work

    @property
    def caches(self) -> Path:
        """Where decoded images and features lie."""
        return self.cache_dir or self.work / "cache"

    @property
    def index_dir(self) -> Path:
        """Where the index stage writes."""
        return self.work / "index" / "files"

    def load_index(self) -> ReportIndex | None:
        """The index this run built; None for a run without retrieval."""
        return ReportIndex.load(self.index_dir) if self.config.retrieval_k else None

    @property
    def figures_file(self) -> Path:
        """Where the evaluate stage keeps its figures, for a bundle that is written later; no text of reports."""
        return self.work / "evaluate" / "metrics.json"

    @property
    def consensus_file(self) -> Path:
        """Where the index stage writes what consensus decoding needs."""
        return self.work / "index" / "consensus.safetensors"

    def load_consensus(self) -> MbrTable | None:
        """What this run decodes by; None for a run that does not decode by consensus."""
        return MbrTable.load(self.consensus_file) if self.config.decoding.method == "consensus" else None

    def patches(self) -> PatchSource:
        """What trains on: cached features where the backbone is frozen, the backbone itself otherwise."""
        if self.config.ce.backbone_lr == 0:
            return self.features()
        return OnlineFeatures(self.model, self.cache, self.context.device, self.config.ce.view_dropout,
                           self.context.on_device)  # fmt: skip

    def features(self) -> CachedFeatures:
        """Cached features of the backbone as it is now."""
        with self.context.processes.main_process_first():
            return cache_features(
                self.model.backbone, self.cache, [*self.train, *self.val], self.config.feature_variants, self.context,
                self.caches, view_dropout=self.config.ce.view_dropout, name="frozen",
            )  # fmt: skip


def model_config(config: RunConfig, vocab_size: int) -> ModelConfig:
    """Dimensions of the model that ``config`` asks for."""
    shape = config.shape.model_dump()
    layers = shape.pop("layers")
    return ModelConfig(
        **shape, vocab_size=vocab_size, encoder_layers=layers, decoder_layers=layers, retrieval_k=config.retrieval_k,
        finding_head=config.pretrain is not None,
    )  # fmt: skip


# --- stages -----------------------------------------------------------------------------------------------------


def stage_pretrain(run: Run) -> None:
    """Backbone on finding targets."""
    if run.config.pretrain is None:
        log.info("pretrain: not part of preset %s", run.config.preset)
        return
    row = pretrain(run.model.backbone, run.source, run.cache, run.config.pretrain, run.context, run.work / "pretrain",
                   soft_scores=run.soft_scores, label_table=run.label_table, head=run.model.finding_head,
                   labelled=run.labelled)  # fmt: skip
    run.metrics["pretrain"] = {name.removeprefix("val_"): value for name, value in row.items() if "auroc" in name}


def stage_retriever(run: Run) -> None:
    """Study head and text tower."""
    if not run.config.retrieval_k or run.config.retriever is None:
        log.info("retriever: not part of preset %s", run.config.preset)
        return
    train_retriever(run.model, run.features(), run.train, run.val, run.tokenizer, run.config.retriever, run.context,
                    run.work / "retriever")  # fmt: skip


def stage_index(run: Run) -> None:
    """Vectors and cases of the training reports."""
    if not run.config.retrieval_k:
        log.info("index: not part of preset %s", run.config.preset)
        return
    features = run.features()
    if not run.context.processes.main:
        return
    index = build_index(run.model, run.train, run.tokenizer, run.index_dir,
                        public=run.source.name == "openi")  # fmt: skip
    if run.config.decoding.method == "consensus":
        vectors = index.vectors(np.arange(len(index))[None])[0]
        table = build_consensus(run.train, vectors, run.tokenizer, directions=run.config.consensus_directions,
                                max_length=run.config.shape.max_length, seed=run.config.seed)  # fmt: skip
        table.save(run.consensus_file)
    run.metrics["retrieval"] = _retrieval_figures(run, index, features)


def stage_ce(run: Run) -> None:
    """Cross-entropy."""
    index = run.load_index()
    row = train_ce(run.model, run.patches(), index, run.train, run.val, run.tokenizer, run.config.ce,
                   run.config.decoding, run.context, run.work / "ce", run.load_consensus())  # fmt: skip
    run.metrics["ce_selected_epoch"] = row.get("epoch")
    if index is not None and run.config.ce.backbone_lr > 0 and run.context.processes.main:
        run.metrics["retrieval_after_ce"] = _retrieval_figures(run, index, run.patches())


def stage_scst(run: Run) -> None:
    """Self-critical sequence training."""
    if run.config.scst is None:
        log.info("scst: not part of preset %s", run.config.preset)
        return
    row = train_scst(run.model, run.features(), run.load_index(), run.train, run.val, run.tokenizer, run.config.scst,
                     run.config.decoding, run.context, run.work / "scst", run.load_consensus())  # fmt: skip
    run.metrics["scst_selected_epoch"] = row.get("epoch")


def stage_evaluate(run: Run) -> None:
    """Score the validation split with the bundle as it would serve, texts included."""
    trial = run.work / "bundle"
    _write(run, trial, keep_texts=True, metrics={})
    if not run.val:
        log.warning("evaluate: there is no validation study; metrics.json will be empty")
        return
    bundle, index = open_bundle(trial, run.context.device)
    limit = run.evaluate_limit or run.config.ce.validate_limit
    plan = EvaluationPlan(limit=limit, swaps=("images",), meteor=meteor_available())
    outputs = Outputs(run.caches, predictions=run.work / "evaluate" / "val.jsonl")
    options = InferenceOptions(device=run.context.device)
    result = evaluate(bundle, index, run.source, plan, outputs, options, cache=run.cache)
    result["predictions"] = None  # they stay in the work directory: they hold report texts
    write_atomic(run.figures_file, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    run.metrics["val"] = result


def stage_bundle(run: Run) -> None:
    """The bundle that ships, with the figures of its evaluation, be that of this run or of one before."""
    if "val" not in run.metrics and run.figures_file.exists():
        run.metrics["val"] = json.loads(run.figures_file.read_text())
    _write(run, run.out, keep_texts=run.keep_texts, metrics=run.metrics)
    log.info("bundle written to %s: serve it with  python -m service --bundle %s", run.out, run.out)


def _retrieval_figures(run: Run, index: ReportIndex, patches: PatchSource) -> dict[str, float]:
    if not run.val:
        return {}
    figures = recall(val_similarity(run.model, patches, run.val, run.tokenizer))
    figures |= retrieval_scores(run.model, index, patches, run.val, run.config.retrieval_k, run.config.seed)
    log.info("retrieval on val: %s", ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return figures


def _write(run: Run, path: Path, *, keep_texts: bool, metrics: dict[str, Any]) -> None:
    retrieval, index_dir = None, None
    if run.config.retrieval_k:
        index_dir = run.index_dir if keep_texts else _without_texts(run.index_dir, run.work / "index-without-texts")
        retrieval = RetrievalConfig(
            k=run.config.retrieval_k,
            dim=run.config.shape.embedding_dim,
            cases=len(read_cases(index_dir / "cases.jsonl")),
        )
    config = BundleConfig(
        name=run.out.name,
        model=run.model.config,
        preprocessing=PreprocessingConfig(image_size=run.config.image_size),
        decoding=run.config.decoding,
        retrieval=retrieval,
        trained_on={
            "dataset": run.source.name, "preset": run.config.preset, "seed": run.config.seed,
            "train_studies": len(run.train), "val_studies": len(run.val), "skipped_images": len(run.cache.skipped),
            "soft_scores": run.soft_scores.name if run.soft_scores else None,
            **({"external_images": len(run.labelled.present)} if run.labelled else {}),
        },
        licence=LICENCE.format(texts=" but the reports of its cases" if keep_texts and retrieval else ""),
    )  # fmt: skip
    write_bundle(path, config=config, model=run.model, tokenizer=run.tokenizer, index_dir=index_dir, metrics=metrics,
                 consensus=run.load_consensus(), weights_dtype=run.config.weights_dtype, replace=True)  # fmt: skip


def _without_texts(index_dir: Path, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    write_cases(directory / CASES_FILE, [replace(case, findings=None) for case in read_cases(index_dir / CASES_FILE)])
    shutil.copyfile(index_dir / VECTORS_FILE, directory / VECTORS_FILE)
    return directory


STAGE_FUNCTIONS: dict[str, Callable[[Run], None]] = {
    "pretrain": stage_pretrain,
    "retriever": stage_retriever,
    "index": stage_index,
    "ce": stage_ce,
    "scst": stage_scst,
    "evaluate": stage_evaluate,
    "bundle": stage_bundle,
}


def run_stages(run: Run, stages: Sequence[str]) -> None:
    """Run ``stages`` in their order; those with a result are loaded instead.

    Raises:
        ValueError: a stage that is left out has no result, and one that is to run needs it.
    """
    processes = run.context.processes
    done = processes.from_main(lambda: {name for name in SHARED if (run.work / name / "result.pt").exists()})
    for name, user in missing_prerequisites(run.config, stages, done):
        raise ValueError(
            f"stage {name} was left out and has no result in {run.work / name}, and stage {user} needs it; add it to "
            "--stages"
        )
    for name in STAGES:
        result = run.work / name / "result.pt"
        if name in done:
            _load(run, name, result)
            log.info("%s: done before", name)
        elif name in stages:
            log.info("stage %s", name)
            if processes.main or name in SHARED:
                _run_stage(run, name, result)
            processes.wait()
            if not processes.main and result.exists():
                _load(run, name, result)  # bit for bit what a resumed run will find


def missing_prerequisites(config: RunConfig, stages: Sequence[str], done: Collection[str]) -> Iterator[tuple[str, str]]:
    """Stages that are neither asked for nor done, each with the first asked-for one that needs it.

    A stage needs the weights of those before it, which the next result holds, too, and the files of the index.
    ``scst`` may always be left out.
    """
    retrieval = bool(config.retrieval_k)
    matters = {
        "pretrain": config.pretrain is not None and config.backbone_weights == "none",
        "retriever": retrieval and config.retriever is not None,
        "index": retrieval,
        "ce": True,
    }
    to_run = [name for name in STAGES if name in stages and name not in done]
    for place, name in enumerate(STAGES):
        later = STAGES[place + 1 :]
        if not matters.get(name) or name in done or name in stages:
            continue
        users = [user for user in later if user in to_run or (name != "index" and user in done)]
        if users and users[0] in to_run:
            yield name, users[0]


def _run_stage(run: Run, name: str, result: Path) -> None:
    before = dict(run.metrics)
    if name in SHARED and run.context.processes.main:
        run.figures_file.unlink(missing_ok=True)  # of weights that will be no more
    STAGE_FUNCTIONS[name](run)
    news = {key: value for key, value in run.metrics.items() if before.get(key) != value}
    if name not in ("evaluate", "bundle") and run.context.processes.main:
        result.parent.mkdir(parents=True, exist_ok=True)
        save_atomically({"model": run.model.state_dict(), "metrics": json.dumps(news)}, result)


def _load(run: Run, name: str, result: Path) -> None:
    try:
        content = torch.load(result, map_location=run.context.device, weights_only=True)
        run.model.load_state_dict(content["model"])
        run.metrics |= json.loads(content["metrics"])
    except Exception as error:
        raise ValueError(
            f"{result} cannot be used ({in_short(error)}). Remove it to repeat stage {name} from its last checkpoint, "
            "or resume with the version that wrote it."
        ) from error


# --- command line -----------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.run``; returns the exit code."""
    arguments = _parser().parse_args(argv)
    rank = process_rank()
    logging.basicConfig(
        level=logging.ERROR if rank else logging.INFO, datefmt="%H:%M:%S", stream=sys.stderr,
        format="%(asctime)s " + (f"process {rank}: " if rank else "") + "%(message)s",
    )  # fmt: skip
    try:
        processes, device = join(arguments.device)
        run = _run(arguments, processes, device)
        run.prepare()
        run_stages(run, arguments.stages)
        processes.leave()
    except (ValueError, BundleError, FloatingPointError) as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        log.error("%s.%s", error, " Free space there, then go on with --resume; the last checkpoint is kept" * full)
        return 2
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        log.error("another process has ended; its message says why (%s)", in_short(error))
        return 2
    except KeyboardInterrupt:
        log.error("interrupted; go on with --resume")
        return 130
    return 0


def _run(arguments: argparse.Namespace, processes: ProcessGroup, device: torch.device) -> Run:
    config = preset(arguments.preset)
    changes: dict[str, Any] = {"seed": arguments.seed}
    if arguments.backbone_weights:
        changes["backbone_weights"] = arguments.backbone_weights
    config = RunConfig.model_validate({**config.model_dump(), **changes})
    if processes.main and arguments.out.exists() and not arguments.resume and not arguments.replace:
        raise ValueError(f"--out {arguments.out} already exists; choose another, or add --replace")
    work = arguments.work or arguments.out.with_name(arguments.out.name + ".work")
    soft_scores = _table(arguments, "soft_scores", "chexnet_scores.csv")
    labels = _table(arguments, "reference_labels", "chexbert_labels.csv")
    with processes.main_process_first():  # it may download
        source, labelled = _with_external(open_source(arguments), config, arguments)
        if processes.main:
            content = run_manifest(config, source, arguments.precision, soft_scores=soft_scores, label_table=labels,
                               external_labels=arguments.external_labels)  # fmt: skip
            check_resume_compatible(work, content, resume=arguments.resume)
            if not (work / MANIFEST_FILE).exists():
                write_run_manifest(work, content)
    for note in source.notes:
        log.info("%s", note)
    torch.set_float32_matmul_precision("high")
    return Run(
        config=config,
        context=RunContext(
            device,
            config.seed,
            arguments.precision,
            work,
            processes,
            arguments.images_on_device,
            arguments.checkpoint_seconds,
        ),
        source=source,
        soft_scores=soft_scores,
        out=arguments.out,
        keep_texts=not arguments.without_texts,
        labelled=labelled,
        label_table=read_present(labels) if labels else None,
    )


def _with_external(
    source: Source, config: RunConfig, arguments: argparse.Namespace
) -> tuple[Source, ExternalLabels | None]:
    """The source with the labelled images that the options name, if any."""
    labels, images = arguments.external_labels, arguments.external_images
    if labels is None and images is None:
        return source, None
    if labels is None or images is None:
        raise ValueError("--external-labels and --external-images belong together; give both, or neither")
    if config.pretrain is None:
        raise ValueError(f"preset {config.preset} has no pretraining, which --external-labels is for; leave it out")
    return for_pretraining(source, read_external(labels, images))


def _table(arguments: argparse.Namespace, option: str, beside_reports: str) -> Path | None:
    """The table given by an option, else the one of this name in ``--root``, if any."""
    given: Path | None = getattr(arguments, option)
    if given is not None:
        if not given.is_file():
            raise ValueError(f"--{option.replace('_', '-')} {given}: no such file")
        return given
    found = arguments.root / beside_reports if arguments.root else None
    return found if found is not None and found.is_file() else None


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown stage {unknown[0]!r}; choose from {','.join(STAGES)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.run", description="Train a bundle, resumably.")
    add_dataset_arguments(parser, download=True)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="retrieval")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--work", type=Path, help="checkpoints, logs, caches (default OUT.work)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the work directory")
    parser.add_argument("--replace", action="store_true", help="put the bundle in the place of an existing one")
    parser.add_argument("--stages", type=_stages, default=STAGES, help=f"some of {','.join(STAGES)}")
    add_device_argument(parser)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--images-on-device",
        choices=("auto", "yes", "no"),
        default="auto",
        help="keep decoded images and features on the device; auto: where a GPU has room for them",
    )
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=120.0, help="longest time between two checkpoints within an epoch"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backbone-weights", help="imagenet, none, or a file; overrides the preset")
    parser.add_argument("--soft-scores", type=Path, help="CSV image_id,finding,… for pretraining")
    parser.add_argument("--reference-labels", type=Path, help="CSV study_id,<finding>,…: a second truth in pretraining")
    parser.add_argument("--external-labels", type=Path, help="CSV of findings by image, as NIH's: pretraining targets")
    parser.add_argument("--external-images", type=Path, help="folder of those images")
    parser.add_argument("--without-texts", action="store_true", help="leave report texts out of the bundle's cases")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
