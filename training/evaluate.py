"""Score a bundle on a split of any data set, the trivial rows beside it. The protocol is in docs/evaluation.md.

    python -m training.evaluate --bundle B --dataset openi --root DIR --split val --out evaluation/val.json
    python -m training.evaluate --bundle B --annotation annotation.json --images DIR --out evaluation/val.json

Drafts are written by ``model.drafter``, as the service writes them. Beside the metrics file lie
``*.predictions.jsonl``, which holds report texts, and ``*.work`` with the decoded images. ``--report DIR`` adds the
same figures as a page to read, with plots and a gallery.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from model.bundle import INDEX_DIR, Bundle, BundleError, load_bundle
from model.drafter import Drafter, DraftOptions, Precision
from model.files import write_atomic
from model.protocols import CaseIndex
from retrieval_index.index import ReportIndex
from training.cli import add_dataset_arguments, add_device_argument, choose_device, not_negative, open_source, positive
from training.data.pixel_cache import PixelCache, build_pixel_cache
from training.data.studies import Source
from training.evaluation import inference as drafting
from training.evaluation.console import format_table
from training.evaluation.counterfactuals import EXCHANGES, Exchange, make_counterfactual_rows, score_counterfactual_rows
from training.evaluation.external_scorers import clinical_rows
from training.evaluation.inference import SplitName, Views
from training.evaluation.page import EvaluatedSplit, check_folder, write_page
from training.evaluation.predictions import prediction_lines, refuse_bundles
from training.evaluation.scoring import (
    TRIVIAL,
    ReferenceSet,
    against_table,
    certainty,
    known_texts,
    make_rows,
    read_label_table,
    score_rows,
    word_tables,
)
from training.scoring.baselines import TrivialRow
from training.scoring.bootstrap import DRAWS
from training.scoring.metrics import meteor_available
from training.scoring.permutation import permutation_test
from training.scoring.protocol import PROTOCOL

log = logging.getLogger("training")


def evaluate(
    bundle: Bundle,
    index: CaseIndex | None,
    source: Source,
    split: SplitName,
    *,
    work_dir: Path,
    out: Path | None = None,
    predictions: Path | None = None,
    report: Path | None = None,
    cache: PixelCache | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    limit: int | None = None,
    beam_size: int | None = None,
    top_k: int | None = None,
    views: Views = "both",
    exchanges: Sequence[Exchange] = (),
    single_views: bool = False,
    baselines: bool = True,
    meteor: bool = False,
    clinical: bool = False,
    reference_labels: Path | None = None,
    batch_size: int = 16,
    draws: int = DRAWS,
    seed: int = 1,
    progress: bool = True,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a draft for each study of a split and score it.

    Args:
        bundle: what is evaluated.
        index: of the bundle; None for one without retrieval.
        source: the data set; its train and val reports also give vocabulary and trivial rows.
        split: ``val``, or ``test`` for the last word; training studies are in the index and cannot be evaluated.
        work_dir: holds the decoded images, in a folder of its own for each choice of studies.
        out: metrics file to write, before the page: a page that fails costs no drafting.
        predictions: JSON lines file to write: id, reference, prediction, retrieved and more. It holds report texts.
        report: folder for a page of all this with a gallery of studies (``training.evaluation.page``). It holds report
            texts and radiographs.
        cache: decoded images of the split, where the caller has them; then ``work_dir`` stays untouched.
        device: where the bundle runs.
        precision: in what it computes.
        limit: only the first so many studies.
        beam_size: default the bundle's.
        top_k: reference cases asked for; default the bundle's.
        views: leave out the images of the other view, and the studies that have none of this one.
        exchanges: rows beside, each study having the images, only the reference cases, or only the patch tokens of
            another (drawn by ``seed``): what is left of the figures then was written without looking at them.
        single_views: rows beside, from the frontal and from the lateral images alone.
        baselines: score the trivial rows too.
        meteor: compute METEOR; needs Java.
        clinical: RadGraph and CheXbert too, where they are installed with their weights.
        reference_labels: CSV ``study_id,<finding>,…`` with 1 for present (CheXbert's reading of the reports); gives a
            second label F1 against it.
        batch_size: studies drafted together.
        draws: of studies, for intervals and paired differences, and of drafts dealt out anew; 0 leaves them out.
        seed: of the exchange and of the draws.
        progress: show a bar.
        notes: of the caller, to stand beside this evaluation's own.

    Returns:
        The content of ``metrics.json``: figures and study ids, no text. ``copied`` is the share of drafts that equal a
        training report.

    Raises:
        ValueError: the split has no study that can be scored, an option is out of range, or ``out``, ``predictions``
            or ``report`` would lie inside a bundle.
    """
    for path in (out, predictions):
        if path is not None:
            refuse_bundles(path)
    if report is not None:
        check_folder(report)
    if single_views and views != "both":
        raise ValueError(f"single views stand beside both; leave --views {views} or --single-views out")
    drafter = Drafter(bundle, index, device=device, precision=precision)
    options = DraftOptions(top_k=top_k, beam_size=beam_size)
    table = read_label_table(reference_labels) if reference_labels else {}
    wanted, skipped = drafting.wanted_studies(source, split, limit)
    if cache is None:
        folder = work_dir / f"evaluate-{split}-{len(wanted)}"
        cache = build_pixel_cache(source, wanted, drafter.image_size, folder, resample=drafter.resample)
    in_file_order = bundle.config.preprocessing.view_order == "as_given"
    studies, found = drafting.with_images(wanted, cache, views, skipped, in_file_order=in_file_order)
    write = partial(drafting.write_drafts, drafter, options, cache, batch_size=batch_size, progress=progress)
    drafts = write(studies)
    findings = [draft.findings for draft in drafts]
    side, not_run = make_counterfactual_rows(
        write, studies, exchanges, single_views=single_views, retrieval=index is not None, seed=seed
    )

    texts = known_texts(bundle, index, source)
    board = ReferenceSet([study.report for study in studies], texts.vocabulary, meteor)
    system, system_full = board.drafts(findings)
    rows: dict[str, TrivialRow] = {}
    reasons: dict[str, str] = dict.fromkeys(TRIVIAL, "not asked for")
    if baselines:
        rows, reasons = make_rows(texts, drafts, len(studies))
    decoding = bundle.config.decoding
    result: dict[str, Any] = {
        "schema_version": 1,
        "protocol": PROTOCOL,
        "n": len(studies),
        "system": system,
        "system_full": system_full,
        "copied": board.copied(findings, texts.train.values()),
        **score_rows(board, rows, reasons),
        **certainty(board, findings, rows, draws=draws, seed=seed),
        "by_chance": permutation_test(board.draft_pairs(findings)[0], draws=draws, seed=seed),
        **word_tables(board, findings, rows),
        "predictions": None,
        "dataset": source.name,
        "split": split,
        "bundle": {"name": bundle.config.name, "digest": bundle.digest},
        "decoding": {
            **decoding.model_dump(mode="json"),
            "beam_size": beam_size or (1 if decoding.method == "greedy" else decoding.beam_size),
        },
        "views": views,
        "seed": seed,
        "limit": limit,
        "device": torch.device(device).type,
        "precision": precision,
        "counts": {
            "in_split": len(source.split(split)),
            "scored": len(studies),
            "skipped": len(skipped),
            "images": sum(len(study.images) for study in studies),
            "images_skipped": len(cache.skipped),
        },
        "skipped_studies": skipped,
        "vocabulary": {"from": texts.origin, "words": len(texts.vocabulary)},
        "constant_chosen_on": texts.chosen_on if baselines else None,
        "not_run": not_run,
        "notes": [*found, *notes],
    }
    score_counterfactual_rows(result, side, board, findings, draws=draws, seed=seed)
    if reference_labels is not None:
        result["reference_labels"] = against_table(reference_labels.name, table, studies, findings, rows, board)
    if clinical:
        result["clinical"], reasons = clinical_rows(board, findings, rows)
        not_run |= reasons
    if predictions is not None:
        write_atomic(predictions, prediction_lines(studies, drafts, board))
        result["predictions"] = Path(os.path.relpath(predictions, (out or predictions).parent)).as_posix()
        log.info("wrote %s (which holds report texts: do not share it)", predictions)
    if out is not None:
        write_atomic(out, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
        log.info("wrote %s", out)
    if report is not None:
        write_page(report, result, EvaluatedSplit(studies, drafts, cache, board, texts.train))
    return result


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.evaluate``; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        result = _run(arguments)
    except (ValueError, BundleError, OSError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.error("interrupted; a file that the log does not call written was not")
        return 130
    print(format_table(result))
    return 0


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    out: Path = arguments.out
    predictions = arguments.predictions or out.with_name(f"{out.stem}.predictions.jsonl")
    for path in (out, predictions, *([arguments.report / "report.html"] if arguments.report is not None else [])):
        refuse_bundles(path)  # now, not after minutes of drafting
    exchanges = EXCHANGES if arguments.counterfactuals else ("images",) if arguments.exchange_images else ()
    source = open_source(arguments)
    for note in source.notes:
        log.info("%s", note)
    device = choose_device(arguments.device)
    bundle = load_bundle(arguments.bundle, device=device)
    index = None
    if bundle.config.retrieval is not None:
        index = ReportIndex.load(bundle.path / INDEX_DIR, expected_sha256=bundle.index_sha256())
    meteor = arguments.meteor and meteor_available()
    names = (
        "limit", "beam_size", "top_k", "views", "reference_labels", "batch_size", "draws", "seed", "precision",
        "single_views", "report",
    )  # fmt: skip
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    why = "no Java runtime (java) was found" if arguments.meteor else "--no-meteor"
    result = evaluate(
        bundle, index, source, arguments.split, out=out, predictions=predictions, exchanges=exchanges, device=device,
        work_dir=arguments.work or out.with_name(f"{out.stem}.work"), meteor=meteor, clinical=True,
        notes=() if meteor else (f"METEOR is left out: {why}",), **options,
    )  # fmt: skip
    for note in result["notes"]:
        log.warning("%s", note)
    if arguments.report is not None:
        log.info("open %s (radiographs and report texts: do not share it)", arguments.report / "report.html")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Score a bundle on a split.")
    parser.add_argument("--bundle", type=Path, required=True)
    add_dataset_arguments(parser)
    parser.add_argument("--split", choices=get_args(SplitName), default="val", help="test is for the last word")
    parser.add_argument("--out", type=Path, required=True, help="metrics file to write")
    parser.add_argument("--predictions", type=Path, help="default OUT.predictions.jsonl; holds report texts")
    parser.add_argument("--work", type=Path, help="decoded images, used again by the next run (default OUT.work)")
    parser.add_argument("--limit", type=positive, help="only the first N studies")
    parser.add_argument("--beam-size", type=positive, help="default: the bundle's")
    parser.add_argument("--top-k", type=positive, help="reference cases asked for; default: the bundle's")
    parser.add_argument("--views", choices=get_args(Views), default="both")
    parser.add_argument("--exchange-images", action="store_true", help="score with exchanged images too")
    parser.add_argument(
        "--counterfactuals", action="store_true",
        help="--exchange-images, and with only the reference cases, and only the patch tokens, exchanged",
    )  # fmt: skip
    parser.add_argument("--single-views", action="store_true", help="score frontal and lateral images alone too")
    parser.add_argument("--report", type=Path, help="folder for report.html and report.md; holds texts and images")
    parser.add_argument("--reference-labels", type=Path, help="CSV study_id,finding,… : a second label F1")
    parser.add_argument("--no-meteor", dest="meteor", action="store_false", help="leave METEOR out; it needs Java")
    parser.add_argument("--batch-size", type=positive, default=16)
    add_device_argument(parser)
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="bf16: faster, rounds more")
    parser.add_argument("--draws", type=not_negative, default=DRAWS, help="bootstrap draws; 0: no intervals")
    parser.add_argument("--seed", type=int, default=1, help="of the exchange of images and of the draws")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
