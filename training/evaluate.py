"""Score the drafts of a bundle on a split of a data set, with trivial baselines. Protocol: docs/evaluation.md.

    python -m training.evaluate --bundle B --dataset openi --root DIR --split val --out evaluation/val.json
    python -m training.evaluate --bundle B --annotation annotation.json --images DIR --out evaluation/val.json

``model.drafter`` writes the drafts, as in the service. Next to the metrics file the command writes
``*.predictions.jsonl``, which holds report texts, and ``*.work`` with the decoded images. Until it ends, ``*.work``
also holds the finished drafts, from which the next run continues. ``--report DIR`` adds a page with the same metrics,
plots and a gallery of studies.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from model.bundle import Bundle
from model.command_line import CommandParser
from model.devices import choose_device
from model.drafter import Drafter
from model.files import write_atomic
from model.protocols import CaseIndex
from model.types import DraftOptions, Precision
from training.cli import add_common_arguments, not_negative, open_source, positive, run_command, write_json
from training.data.pixel_cache import PixelCache, build_pixel_cache
from training.data.selection import selection_notes, selection_of
from training.data.studies import Source
from training.data.tables import read_present
from training.evaluation import inference, scoring
from training.evaluation.counterfactuals import make_counterfactual_rows, score_counterfactual_rows
from training.evaluation.page import EvaluatedSplit, write_page
from training.evaluation.plan import DEFAULT_OPTIONS, SWAPS, EvaluationPlan, InferenceOptions, Outputs, SplitName, Views
from training.evaluation.score_drafts import score_drafts
from training.evaluation.scoring import ReferenceSet
from training.evaluation.terminal import format_table
from training.scoring.bootstrap import DRAWS
from training.scoring.forte import read_forte_keywords
from training.scoring.metrics import meteor_available

log = logging.getLogger("training")


def evaluate(
    bundle: Bundle, index: CaseIndex | None, source: Source, plan: EvaluationPlan, outputs: Outputs,
    options: InferenceOptions = DEFAULT_OPTIONS, *, cache: PixelCache | None = None, notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Draft each study of a split and score the drafts.

    Args:
        bundle, index: the system and its reference cases; None for a bundle without retrieval.
        source: the data set. Its train and val reports also give the vocabulary and the trivial rows.
        plan, outputs, options: what is scored, where results go, how drafts are computed.
        cache: decoded images of the split where the caller has them; else they are kept in ``outputs.work_dir``.
        notes: added to the notes of this evaluation.

    Returns:
        The content of ``metrics.json``: metrics and study ids, no text.

    Raises:
        ValueError: no study can be scored, an option is out of range, or an output path is refused.
    """
    outputs.check()
    drafter = Drafter(bundle, index, device=options.device, precision=options.precision)
    labels = read_present(plan.reference_labels) if plan.reference_labels else {}

    wanted, skipped = inference.wanted_studies(source, plan.split, plan.limit, plan.half)
    texts = scoring.known_texts(bundle, index, source, plan.half)
    in_file_order = bundle.config.preprocessing.view_order == "as_given"
    with inference.kept_drafts(drafter, outputs.work_dir, options) as kept:
        if cache is None:
            folder = outputs.work_dir / f"evaluate-{plan.split}-{len(wanted)}"
            cache = build_pixel_cache(source, wanted, drafter.image_size, folder, resample=drafter.resample)
        studies, view_notes = inference.with_images(wanted, cache, plan.views, skipped, in_file_order=in_file_order)
        references = ReferenceSet([study.reference for study in studies], texts.vocabulary, plan.meteor,
                                  source.protocol)  # fmt: skip
        writer = inference.DraftWriter(drafter, cache, options, kept)
        drafts = writer.write(studies)
        if outputs.predictions is not None:
            write_atomic(outputs.predictions, scoring.prediction_lines(studies, drafts, references))
            log.info("wrote %s (it holds report texts: do not share it)", outputs.predictions)
        counterfactuals, not_run = make_counterfactual_rows(writer, studies, plan, retrieval=index is not None)

    findings = [draft.findings for draft in drafts]
    text_notes = ["references are MeSH headings, not reports"] * any(study.target is not None for study in studies)
    selection = selection_of(inference.selection_records(bundle), studies, plan.split, plan.half)
    scored = score_drafts(studies, drafts, references, texts, plan, labels)
    result = {
        **scored.entries,
        "predictions": None,
        **_provenance(bundle, source, plan, options),
        "counts": {
            "in_split": len(source.split(plan.split)),
            "scored": len(studies),
            "skipped": len(skipped),
            "images": sum(len(study.images) for study in studies),
            "images_skipped": len(cache.skipped),
        },
        "skipped_studies": skipped,
        "selection": selection,
        "not_run": {**not_run, **scored.not_run},
        "notes": [*view_notes, *selection_notes(selection), *text_notes, *notes],
    }
    score_counterfactual_rows(result, counterfactuals, references, findings, plan)

    if outputs.predictions is not None:
        start = (outputs.metrics or outputs.predictions).parent
        result["predictions"] = Path(os.path.relpath(outputs.predictions, start)).as_posix()
    if outputs.metrics is not None:
        write_json(outputs.metrics, result)
        log.info("wrote %s", outputs.metrics)
    if outputs.report is not None:  # after the metrics file, so that a failing page loses no drafts
        write_page(outputs.report, result, EvaluatedSplit(studies, drafts, cache, references, texts.cases))
    kept.remove()
    return result


def _provenance(bundle: Bundle, source: Source, plan: EvaluationPlan, options: InferenceOptions) -> dict[str, Any]:
    """What was evaluated, on which data and with which settings."""
    decoding = bundle.config.decoding
    beam_size = options.draft.beam_size or (1 if decoding.method == "greedy" else decoding.beam_size)
    return {
        "dataset": source.name,
        "split": plan.split,
        "bundle": {"name": bundle.config.name, "digest": bundle.digest},
        "decoding": {**decoding.model_dump(mode="json"), "beam_size": beam_size},
        "views": plan.views,
        "limit": plan.limit,
        "device": torch.device(options.device).type,
        "precision": options.precision,
    }


# --- command line -----------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    outputs = Outputs(
        work_dir=arguments.work or out.with_name(f"{out.stem}.work"),
        metrics=out,
        predictions=arguments.predictions or out.with_name(f"{out.stem}.predictions.jsonl"),
        report=arguments.report,
    )
    outputs.check()  # before the bundle is loaded and minutes of drafting
    draft = DraftOptions(top_k=arguments.top_k, beam_size=arguments.beam_size)
    meteor = arguments.meteor and meteor_available()
    plan = EvaluationPlan(
        **{name: getattr(arguments, name) for name in
           ("split", "limit", "views", "single_views", "reference_labels", "draws", "seed")},
        half=arguments.split_val,
        swaps=SWAPS if arguments.counterfactuals else (),
        meteor=meteor,
        external_scorers=True,
        forte_keywords=arguments.forte_keywords and read_forte_keywords(arguments.forte_keywords),
    )  # fmt: skip
    reason = "no Java runtime (java) was found" if arguments.meteor else "--no-meteor"
    notes = [] if meteor else [f"METEOR is left out: {reason}"]
    source = open_source(arguments)
    for note in source.notes:
        log.info("%s", note)
    device = choose_device(arguments.device)
    bundle, index = inference.open_bundle(arguments.bundle, device)
    if arguments.method is not None:
        trained = bundle.config.decoding.method
        bundle = inference.with_method(bundle, arguments.method, arguments.beam_size)
        if (method := bundle.config.decoding.method) != trained:
            notes.append(f"decoded by {method}; the bundle serves {trained}")
    options = InferenceOptions(device, arguments.precision, draft, arguments.batch_size, resume=arguments.resume)
    result = evaluate(bundle, index, source, plan, outputs, options, notes=notes)
    for note in result["notes"]:
        log.warning("%s", note)
    if arguments.report is not None:
        log.info("open %s (radiographs and report texts: do not share it)", arguments.report / "report.html")
    print(format_table(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.evaluate``; returns the exit code."""
    parser = CommandParser(prog="python -m training.evaluate", description="Score a bundle on a split.")
    add_common_arguments(parser, bundle=True)
    parser.add_argument("--split", choices=get_args(SplitName), default="val", help="test: for the final result only")
    parser.add_argument("--out", type=Path, required=True, help="metrics file to write")
    parser.add_argument("--predictions", type=Path, help="default OUT.predictions.jsonl; holds report texts")
    parser.add_argument("--work", type=Path, help="decoded images, used again by the next run (default OUT.work)")
    parser.add_argument("--method", choices=inference.method_names(), help="decoding; default: the bundle's")
    parser.add_argument("--beam-size", type=positive, help="default: the bundle's")
    parser.add_argument("--top-k", type=positive, help="reference cases in the predictions; default: the bundle's")
    parser.add_argument("--views", choices=get_args(Views), default="both")
    parser.add_argument("--counterfactuals", action="store_true",
                        help="score with images, only reference cases, or only patch tokens exchanged too")  # fmt: skip
    parser.add_argument("--single-views", action="store_true", help="score frontal and lateral images alone too")
    parser.add_argument("--report", type=Path, help="folder for report.html and report.md; holds texts and images")
    parser.add_argument("--reference-labels", type=Path, help="CSV study_id,finding,… : a second label F1")
    parser.add_argument("--forte-keywords", type=Path, metavar="FORTE_CXR.json", help="adds FORTE as published")
    parser.add_argument("--no-meteor", dest="meteor", action="store_false", help="leave METEOR out; it needs Java")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="bf16: faster, rounds more")
    parser.add_argument("--draws", type=not_negative, default=DRAWS, help="bootstrap draws; 0: no intervals")
    parser.add_argument("--seed", type=int, default=1, help="of the exchange of images and of the draws")
    arguments = parser.parse_args(argv)
    interrupted = "interrupted; the next run continues from the finished drafts"
    return run_command(lambda: _run(arguments), interrupted=interrupted)


if __name__ == "__main__":
    raise SystemExit(main())
