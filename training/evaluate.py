"""Score a bundle on a split of any data set, the trivial rows beside it. The protocol is in docs/evaluation.md.

    python -m training.evaluate --bundle B --dataset openi --root DIR --split val --out evaluation/val.json
    python -m training.evaluate --bundle B --annotation annotation.json --images DIR --out evaluation/val.json

Drafts are written by ``model.drafter``, as the service writes them. Beside the metrics file lie
``*.predictions.jsonl``, which holds report texts, and ``*.work`` with the decoded images.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from model.bundle import INDEX_DIR, MANIFEST, Bundle, BundleError, load_bundle
from model.drafter import Draft, Drafter, DraftOptions, Precision
from model.protocols import CaseIndex
from retrieval_index.files import write_atomic
from retrieval_index.index import ReportIndex
from training import drafting
from training.arguments import choose_device, open_source
from training.baselines import TrivialRow
from training.bootstrap import DRAWS
from training.drafting import EvaluatedSplit, Views
from training.metrics import METRICS, meteor_available
from training.pixels import PixelCache, build_pixel_cache
from training.protocol import PROTOCOL, comparable_prediction, full_prediction
from training.scoreboard import Board, against_table, certainty, known_texts, make_rows, read_label_table, score_rows
from training.studies import Source, Study

log = logging.getLogger("training")

_SHORT = {
    "label_f1_micro": "F1 micro",
    "label_f1_macro": "F1 macro",
    "no_finding_f1": "F1 none",
    "mean_length": "length",
}  # in the printed table


def evaluate(
    bundle: Bundle,
    index: CaseIndex | None,
    source: Source,
    split: EvaluatedSplit,
    *,
    work_dir: Path,
    predictions: Path | None = None,
    cache: PixelCache | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    limit: int | None = None,
    beam_size: int | None = None,
    top_k: int | None = None,
    views: Views = "both",
    exchange_images: bool = False,
    baselines: bool = True,
    meteor: bool = False,
    reference_labels: Path | None = None,
    batch_size: int = 16,
    draws: int = DRAWS,
    seed: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a draft for each study of a split and score it.

    Args:
        bundle: what is evaluated.
        index: of the bundle; None for one without retrieval.
        source: the data set; its train and val reports also give vocabulary and trivial rows.
        split: ``val``, or ``test`` for the last word; training studies are in the index and cannot be evaluated.
        work_dir: holds the decoded images, in a folder of its own for each choice of studies.
        predictions: JSON lines file to write: id, reference, prediction, retrieved and more. It holds report texts.
        cache: decoded images of the split, where the caller has them; then ``work_dir`` stays untouched.
        device: where the bundle runs.
        precision: in what it computes.
        limit: only the first so many studies.
        beam_size: default the bundle's.
        top_k: reference cases asked for; default the bundle's.
        views: leave out the images of the other view, and the studies that have none of this one.
        exchange_images: give each study the images of another (drawn by ``seed``): what is left of the figures then
            is what the model writes without looking.
        baselines: score the trivial rows too.
        meteor: compute METEOR; needs Java.
        reference_labels: CSV ``study_id,<finding>,…`` with 1 for present (CheXbert's reading of the reports); gives a
            second label F1 against it.
        batch_size: studies drafted together.
        draws: of studies, for intervals and paired differences; 0 leaves them out.
        seed: of the exchange and of the draws.
        progress: show a bar.

    Returns:
        The content of ``metrics.json``: figures and study ids, no text.

    Raises:
        ValueError: the split has no study that can be scored, an option is out of range, or ``predictions`` would lie
            inside a bundle.
    """
    if predictions is not None:
        _refuse_bundles(predictions)
    drafter = Drafter(bundle, index, device=device, precision=precision)
    options = DraftOptions(top_k=top_k, beam_size=beam_size)
    table = read_label_table(reference_labels) if reference_labels else {}
    wanted, skipped = drafting.wanted_studies(source, split, limit)
    if cache is None:
        folder = work_dir / f"evaluate-{split}-{len(wanted)}"
        cache = build_pixel_cache(source, wanted, drafter.image_size, folder, resample=drafter.resample)
    in_file_order = bundle.config.preprocessing.view_order == "as_given"
    studies, notes = drafting.with_images(wanted, cache, views, skipped, in_file_order=in_file_order)
    seen = drafting.exchange_images(studies, seed) if exchange_images else studies
    drafts = drafting.write_drafts(drafter, options, cache, seen, batch_size, progress)
    findings = [draft.findings for draft in drafts]

    texts = known_texts(bundle, index, source)
    board = Board([study.report for study in studies], texts.vocabulary, meteor)
    system, system_full = board.drafts(findings)
    rows: dict[str, TrivialRow] = {}
    reasons: dict[str, str] = dict.fromkeys(("constant", "most_frequent", "random", "nearest"), "not asked for")
    if baselines:
        rows, reasons = make_rows(texts, drafts, len(studies))
    decoding = bundle.config.decoding
    result: dict[str, Any] = {
        "schema_version": 1,
        "protocol": PROTOCOL,
        "n": len(studies),
        "system": system,
        "system_full": system_full,
        **score_rows(board, rows, reasons),
        **certainty(board, findings, rows, draws=draws, seed=seed),
        "predictions": None,
        "dataset": source.name,
        "split": split,
        "bundle": {"name": bundle.config.name, "digest": bundle.digest},
        "decoding": {
            **decoding.model_dump(mode="json"),
            "beam_size": beam_size or (1 if decoding.method == "greedy" else decoding.beam_size),
        },
        "views": views,
        "exchanged_images": exchange_images,
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
        "notes": notes,
    }
    if reference_labels is not None:
        result["reference_labels"] = against_table(reference_labels.name, table, studies, findings, rows, board)
    if predictions is not None:
        write_atomic(predictions, _prediction_lines(studies, drafts, board))
        result["predictions"] = predictions.name
    return result


def _prediction_lines(studies: Sequence[Study], drafts: Sequence[Draft], board: Board) -> bytes:
    """``reference`` and ``prediction`` are the strings of the comparable row, so that they score as ``system`` does."""
    lines = (
        {
            "id": study.study_id,
            "reference": comparable,
            "prediction": comparable_prediction(draft.findings),
            "retrieved": [case.case_id for case in draft.reference_cases],
            "similarity": [round(case.similarity, 6) for case in draft.reference_cases],
            "reference_full": full,
            "prediction_full": full_prediction(draft.findings),
            "findings": draft.findings,
        }
        for study, draft, comparable, full in zip(studies, drafts, board.comparable, board.full, strict=True)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _refuse_bundles(path: Path) -> None:
    for folder in path.resolve().parents:
        if (folder / MANIFEST).exists() or (folder.name == "bundles" and any(folder.glob(f"*/{MANIFEST}"))):
            raise ValueError(
                f"{path} would lie among bundles, which are shared, and predictions hold report texts; "
                "write to another folder, for example evaluation/"
            )


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
        log.error("interrupted; nothing was written")
        return 130
    print(table_of(result))
    return 0


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    out: Path = arguments.out
    predictions = arguments.predictions or out.with_name(f"{out.stem}.predictions.jsonl")
    _refuse_bundles(out)
    source = open_source(arguments)
    for note in source.notes:
        log.info("%s", note)
    device = choose_device(arguments.device)
    bundle = load_bundle(arguments.bundle, device=device)
    index = None
    if bundle.config.retrieval is not None:
        index = ReportIndex.load(bundle.path / INDEX_DIR, expected_sha256=bundle.index_sha256())
    meteor = arguments.meteor and meteor_available()
    common: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in (
            "limit",
            "beam_size",
            "top_k",
            "views",
            "reference_labels",
            "batch_size",
            "draws",
            "seed",
            "precision",
        )
    } | {"device": device, "work_dir": arguments.work or out.with_name(f"{out.stem}.work"), "meteor": meteor}
    result = evaluate(bundle, index, source, arguments.split, predictions=predictions, **common)
    result["predictions"] = Path(os.path.relpath(predictions, out.parent)).as_posix()
    if not meteor:
        why = "no Java runtime (java) was found" if arguments.meteor else "--no-meteor"
        result["notes"].append(f"METEOR is left out: {why}")
    if arguments.exchange_images:
        exchanged = evaluate(bundle, index, source, arguments.split, exchange_images=True, baselines=False, **common)
        result["system_images_exchanged"] = exchanged["system"]
        result["system_full_images_exchanged"] = exchanged["system_full"]
        if arguments.draws:
            result["confidence_95"]["system_images_exchanged"] = exchanged["confidence_95"]["system"]
    for note in result["notes"]:
        log.warning("%s", note)
    write_atomic(out, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    log.info("wrote %s and %s (which holds report texts: do not share it)", out, predictions)
    return result


def table_of(result: Mapping[str, Any]) -> str:
    """The comparable rows of a metrics file as fixed-width text: a dash for a missing figure, a reason for a row."""
    rows: dict[str, Mapping[str, float | None] | None] = {"system": result["system"]}
    if "system_images_exchanged" in result:
        rows["images exchanged"] = result["system_images_exchanged"]
    rows |= {name.replace("_", " "): row for name, row in result["baselines"].items()}
    header = "".join(f"{_SHORT.get(name, name):>9}" for name in METRICS)
    lines = [f"{result['split']}, n = {result['n']}", " " * 18 + header]
    for name, row in rows.items():
        if row is None:
            lines.append(f"{name:18} {result['baseline_reasons'].get(name.replace(' ', '_'), '')}")
            continue
        figures = (row[metric] for metric in METRICS)
        lines.append(f"{name:18}" + "".join("        –" if value is None else f"{value:9.3f}" for value in figures))
    return "\n".join([*lines, *_certainty(result)])


def _certainty(result: Mapping[str, Any]) -> list[str]:
    """Lines on the system's intervals and its differences to the trivial rows; none where nothing was drawn."""
    intervals = result["confidence_95"].get("system")
    if intervals is None:
        return []
    shown = ("BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro")

    def line(name: str, entries: Mapping[str, Sequence[float]], more: Mapping[str, str]) -> str:
        parts = (f"{entries[metric][0]:7.3f} …{entries[metric][1]:7.3f}{more.get(metric, '')}" for metric in shown)
        return f"{name:18}" + "".join(f"{part:>28}" for part in parts)

    lines = ["", "95 % of draws".ljust(18) + "".join(f"{_SHORT.get(name, name):>28}" for name in shown)]
    lines.append(line("system", intervals, {}))
    for name, entry in result["system_minus"].items():
        p = {metric: f" (p {entry[metric]['p']:.3f})" for metric in shown}
        ends = {metric: entry[metric]["confidence_95"] for metric in shown}
        lines.append(line(f"- {name.replace('_', ' ')}", ends, p))
    return lines


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} must be 0 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Score a bundle on a split.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--dataset", choices=("openi", "r2gen"), help="default: r2gen with --annotation, else openi")
    parser.add_argument("--root", type=Path, help="openi: NLMCXR_reports.tgz and images/ or NLMCXR_png.tgz")
    parser.add_argument("--annotation", type=Path, help="r2gen: annotation.json")
    parser.add_argument("--images", type=Path, help="r2gen: image folder")
    parser.add_argument("--split", choices=get_args(EvaluatedSplit), default="val", help="test is for the last word")
    parser.add_argument("--out", type=Path, required=True, help="metrics file to write")
    parser.add_argument("--predictions", type=Path, help="default OUT.predictions.jsonl; holds report texts")
    parser.add_argument("--work", type=Path, help="decoded images, used again by the next run (default OUT.work)")
    parser.add_argument("--limit", type=_positive, help="only the first N studies")
    parser.add_argument("--beam-size", type=_positive, help="default: the bundle's")
    parser.add_argument("--top-k", type=_positive, help="reference cases asked for; default: the bundle's")
    parser.add_argument("--views", choices=get_args(Views), default="both")
    parser.add_argument("--exchange-images", action="store_true", help="score with exchanged images too")
    parser.add_argument("--reference-labels", type=Path, help="CSV study_id,finding,… : a second label F1")
    parser.add_argument("--no-meteor", dest="meteor", action="store_false", help="leave METEOR out; it needs Java")
    parser.add_argument("--batch-size", type=_positive, default=16)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="bf16: faster, rounds more")
    parser.add_argument("--draws", type=_not_negative, default=DRAWS, help="bootstrap draws; 0: no intervals")
    parser.add_argument("--seed", type=int, default=1, help="of the exchange of images and of the draws")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
