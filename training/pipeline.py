"""The stages of a training run, in order: pretrain, retriever, index, ce, scst, evaluate, bundle.

``run_pipeline`` reads top to bottom. Validation studies are used for validation only, test studies
are not used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval_index.index import ReportIndex
from training.cli import write_json
from training.data.features import PatchSource
from training.data.selection import Half
from training.data.studies import one_study_a_report
from training.evaluate import evaluate
from training.evaluation.inference import open_bundle
from training.evaluation.plan import EvaluationPlan, InferenceOptions, Outputs
from training.prepared_run import PreparedRun
from training.protocols import PROTOCOLS
from training.scoring.metrics import meteor_available
from training.stage_results import StageResults, evaluation_file
from training.stages.cross_entropy import train_cross_entropy
from training.stages.index import build_index, embed_studies, recall, report_similarity, retrieval_scores
from training.stages.mbr_table import build_consensus
from training.stages.out_of_fold import out_of_fold_cases, save_cases
from training.stages.pretrain import pretrain
from training.stages.retriever import train_retriever
from training.stages.scst import train_scst

log = logging.getLogger("training")


def run_pipeline(run: PreparedRun, stages: Sequence[str]) -> dict[str, Any]:
    """Run ``stages``, or load those that are done; returns their metrics.

    Raises:
        ValueError: a stage that is left out has no result, and a later one needs it.
        FloatingPointError: a loss or a gradient is not finite.
    """
    config, context, inputs = run.config, run.context, run.inputs
    model, tokenizer, studies = run.model, run.tokenizer, run.studies
    results = StageResults(config, context, model, stages)

    if results.begin("pretrain") and config.pretrain is not None:
        aurocs = pretrain(model.backbone, model.finding_head, inputs, run.cache, config.pretrain, context)
        results.finish("pretrain", {"pretrain": aurocs})

    if results.begin("retriever") and config.retriever is not None:
        features = run.frozen_features()
        train_retriever((model.study_head, model.text_tower), tokenizer, features, studies, config.retriever, context)
        if config.retriever.folds:
            cases = out_of_fold_cases(model.config, model.backbone.width, tokenizer, features, studies,
                                      config.retriever, context)  # fmt: skip
            if context.processes.main:
                save_cases(run.cases_file, cases)
        results.finish("retriever", {})

    if results.begin("index"):
        features = run.frozen_features()  # on all processes, as later stages read it
        metrics: dict[str, Any] = {}
        if context.processes.main:
            indexed = one_study_a_report(studies.train)
            index = build_index(model, indexed, tokenizer, run.index_dir, public=inputs.source.name == "openi")
            if config.decoding.method == "consensus":
                build_consensus(
                    indexed, index.vectors(np.arange(len(index))[None])[0], tokenizer, seed=config.seed,
                    directions=config.consensus_directions, max_length=config.shape.max_length,
                ).save(run.mbr_file)  # fmt: skip
            metrics["retrieval"] = _retrieval_metrics(run, index, features) | _cases_in_training(run, index, features)
        results.finish("index", metrics)

    if results.begin("ce"):
        patches = run.trained_features()
        generator = run.generator(patches)
        row = train_cross_entropy(generator, studies, config.ce, context)
        metrics = {"ce_selected_epoch": row.get("epoch")}
        if generator.index is not None and config.ce.backbone_lr > 0 and context.processes.main:
            metrics["retrieval_after_ce"] = _retrieval_metrics(run, generator.index, patches)
        results.finish("ce", metrics)

    if results.begin("scst") and config.scst is not None:
        row = train_scst(run.generator(run.frozen_features()), studies, config.scst, context)
        results.finish("scst", {"scst_selected_epoch": row.get("epoch")})

    if results.begin("evaluate"):
        results.finish("evaluate", _evaluate(run))

    if results.begin("bundle"):
        evaluated = evaluation_file(context.work)
        if "val" not in results.metrics and evaluated.exists():  # by an earlier command
            results.metrics["val"] = json.loads(evaluated.read_text())
        run.write_bundle(inputs.out, keep_texts=inputs.keep_texts, metrics=results.metrics)
        log.info("bundle written to %s: serve it with  python -m service --bundle %s", inputs.out, inputs.out)
        results.finish("bundle", {})

    return results.metrics


def _retrieval_metrics(run: PreparedRun, index: ReportIndex, patches: PatchSource) -> dict[str, float]:
    val = run.studies.val
    if not val:
        return {}
    queries = embed_studies(run.model.study_head, patches, val)
    metrics = recall(report_similarity(run.model.text_tower, queries, val, run.tokenizer))
    _, rows = index.search(queries, run.config.retrieval_k)
    metrics |= retrieval_scores(index, rows, val, run.config.seed, PROTOCOLS[run.config.protocol])
    log.info("retrieval on val: %s", ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    return metrics


def _cases_in_training(run: PreparedRun, index: ReportIndex, features: PatchSource) -> dict[str, float]:
    """How far the cases that training uses agree with the reports, as ``train_…``.

    With folds also as ``train_in_fold_…`` for the retriever that was trained on these studies. The
    values should be near those on val: else training learns to trust cases more than it may.
    """
    train, k, seed = run.studies.train, run.config.retrieval_k, run.config.seed
    queries = embed_studies(run.model.study_head, features, train)
    _, rows = index.search(queries, k, exclude=[study.case_id for study in train])
    found = {"train": rows}
    if (cases := run.out_of_fold_cases()) is not None:
        found = {"train": cases[:, 0], "train_in_fold": rows}
    scores = {prefix: retrieval_scores(index, table, train, seed, PROTOCOLS[run.config.protocol])
              for prefix, table in found.items()}  # fmt: skip
    metrics = {f"{prefix}_{name}": value for prefix, row in scores.items() for name, value in row.items()}
    log.info("cases in training: %s", ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    return metrics


def _evaluate(run: PreparedRun) -> dict[str, Any]:
    """Score the validation split with the bundle as it would serve, texts included."""
    trial = run.context.work / "bundle"
    run.write_bundle(trial, keep_texts=True, metrics={})
    if not run.studies.val:
        log.warning("evaluate: there is no validation study; metrics.json will be empty")
        return {}
    bundle, index = open_bundle(trial, run.context.device)
    limit = run.inputs.evaluate_limit or run.config.ce.validate_limit
    half: Half | None = "report" if run.config.validate_on == "choose" else None
    plan = EvaluationPlan(limit=limit, half=half, swaps=("images",), meteor=meteor_available())
    outputs = Outputs(run.cache_dir, predictions=run.context.work / "evaluate" / "val.jsonl")
    options = InferenceOptions(device=run.context.device)
    result = evaluate(bundle, index, run.inputs.source, plan, outputs, options, cache=run.cache)
    result["predictions"] = None  # they stay in the work directory, because they hold report texts
    write_json(evaluation_file(run.context.work), result)
    return {"val": result}
