"""Choose how a bundle decodes, on the validation split: its settings one at a time, with every trial kept.

    python -m training.tune_decoding --bundle B --root DIR --out decoding.json [--write-bundle B2]

Candidates are drawn once; each trial makes its reports of them. A setting keeps the value with the highest objective,
CIDEr + label F1 + BLEU-4 + ROUGE-L of the comparable row, and the next setting is tried from there. Rows for greedy,
beam and the unimproved candidates stand beside it. A few settings over a few hundred studies flatter little, but they
do: judge on studies that no choice was made on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.bundle import INDEX_DIR, Bundle, BundleError, load_bundle, write_bundle
from model.config import DecodingConfig
from model.decoding import Constraints
from model.generation import compose, draw_candidates, search
from retrieval_index.files import write_atomic
from retrieval_index.index import ReportIndex
from training.arguments import choose_device, open_source, positive
from training.ce import retrieve
from training.config import Runtime
from training.patches import cache_features, readable
from training.pixels import build_pixel_cache
from training.protocol import comparable_vocabulary
from training.scoreboard import Board
from training.studies import Source, Study

log = logging.getLogger("training")

GRID: Mapping[str, Sequence[float]] = {
    "temperature": (0.02, 0.03, 0.04, 0.05, 0.07, 0.1),
    "finding": (0.0, 1.0, 2.0, 4.0, 8.0),
    "finding_cost": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "head": (0.0, 0.25, 0.5, 1.0),
    "bleu4": (0.0, 1.0, 2.0, 3.0, 4.0),
    "rouge": (0.0, 1.0, 2.0, 3.0, 4.0),
    "pool": (10, 20, 40, 80),
}
_BATCH = 16
_SHOWN = ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct", "mean_length")


@dataclass(frozen=True)
class Candidates:
    """What the trials choose from: beam's and sampled reports of N studies, (N, n, T), and what weighs them."""

    ids: Tensor
    greedy: Tensor
    study: Tensor
    findings: Tensor | None


@torch.inference_mode()
def draw(
    bundle: Bundle, index: ReportIndex, studies: Sequence[Study], source: Source, work: Path, device: torch.device
) -> tuple[Candidates, list[Study]]:
    """Encode the studies and draw the candidates of each; also those of the studies that can be read."""
    model, tokenizer, decoding = bundle.model, bundle.tokenizer, bundle.config.decoding
    cache = build_pixel_cache(source, studies, bundle.config.preprocessing.image_size, work,
                              resample=bundle.config.preprocessing.resample)  # fmt: skip
    kept = readable(studies, cache)
    runtime = Runtime(device, 1, "fp32", work)
    patches = cache_features(model.backbone, cache, kept, 1, runtime, work, view_dropout=0.0, name="tuning")
    constraints = Constraints.of(decoding, tokenizer)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    model.prepare()
    for start in tqdm(range(0, len(kept), _BATCH), desc="candidates", unit="batch"):
        batch = kept[start : start + _BATCH]
        seen = patches.patches(batch, None)
        cases, found = retrieve(model, index, seen, [study.study_id for study in batch])
        encoded = model.encode(seen, cases, found)
        beam, single = (search(model, encoded, constraints, tokenizer.bos_id, decoding, size) for size in (None, 1))
        drawn = draw_candidates(model, encoded, constraints, tokenizer.bos_id, decoding, beam)
        parts.append((drawn, single.ids, model.embed_study(seen), model.findings(seen)))
    ids, greedy_ids, study, findings = zip(*parts, strict=True)
    heads = [part for part in findings if part is not None]
    return Candidates(
        torch.cat(ids), torch.cat(greedy_ids), torch.cat(study), torch.cat(heads) if heads else None
    ), kept


class Trials:
    """Scores of settings on the studies, each with its row."""

    def __init__(self, bundle: Bundle, candidates: Candidates, studies: Sequence[Study], source: Source) -> None:
        train = [study.report for study in source.split("train")]
        vocabulary = comparable_vocabulary(train)
        self._bundle, self._candidates = bundle, candidates
        self._board = Board([study.report for study in studies], vocabulary, False)
        self._train = train
        self.rows: list[dict[str, Any]] = []

    def score(self, name: str, settings: Mapping[str, Any], ids: Tensor) -> float:
        """Keep the row of reports (N, T) and return its objective."""
        texts = [self._bundle.tokenizer.decode(row) for row in ids.tolist()]
        system, _ = self._board.drafts(texts)
        figures = {name: float(system[name] or 0.0) for name in _SHOWN}
        copied = self._board.copied(texts, self._train) or 0.0
        objective = figures["CIDEr"] + figures["label_f1_micro"] + figures["BLEU_4"] + figures["ROUGE_L"]
        self.rows.append(
            {"trial": name, "settings": dict(settings), **figures, "copied": copied, "objective": objective}
        )
        log.info("%s", row_text(self.rows[-1]))
        return objective

    def consensus(self, name: str, decoding: DecodingConfig) -> float:
        """Score reports made by consensus with these settings."""
        table = self._bundle.consensus
        assert table is not None
        given = self._candidates
        ids, _ = compose(self._bundle.tokenizer, decoding, given.study, given.findings, table, given.ids)
        return self.score(name, decoding.consensus.model_dump(), ids)


def best_settings(start: DecodingConfig, consensus: Callable[[str, DecodingConfig], float]) -> DecodingConfig:
    """One setting after the other, the best value kept; ``consensus`` scores a named trial."""
    best, value = start, consensus("start", start)
    for setting, choices in GRID.items():
        for choice in choices:
            if choice == getattr(best.consensus, setting):
                continue
            settings = best.consensus.model_copy(update={setting: choice})
            trial = best.model_copy(update={"consensus": settings})
            if (reached := consensus(f"{setting} {choice:g}", trial)) > value:
                best, value = trial, reached
    return best


def row_text(row: Mapping[str, Any]) -> str:
    """A trial on one line."""
    figures = " ".join(f"{name} {row[name]:.3f}" for name in (*_SHOWN, "copied", "objective"))
    return f"{row['trial']:18} {figures}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.tune_decoding``; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        _run(arguments)
    except (ValueError, BundleError, OSError) as error:
        log.error("%s", error)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    source = open_source(arguments)
    device = choose_device(arguments.device)
    bundle = load_bundle(arguments.bundle, device=device)
    if bundle.consensus is None:
        raise ValueError(f"{arguments.bundle} does not decode by consensus; train it with a preset that does (compact)")
    index = ReportIndex.load(bundle.path / INDEX_DIR, expected_sha256=bundle.index_sha256())
    studies = source.split("val")[: arguments.limit]
    if not studies:
        raise ValueError("there is no validation study; check --root, or --annotation")
    work = arguments.work or arguments.out.with_name(f"{arguments.out.stem}.work")
    candidates, kept = draw(bundle, index, studies, source, work, device)
    trials = Trials(bundle, candidates, kept, source)
    trials.score("greedy", {}, candidates.greedy)
    trials.score("beam", {}, candidates.ids[:, 0])
    decoding = bundle.config.decoding
    still = decoding.consensus.model_copy(update={"moves": 0})
    trials.consensus("best candidate", decoding.model_copy(update={"consensus": still}))
    best = best_settings(decoding, trials.consensus)
    content = {
        "bundle": bundle.config.name,
        "digest": bundle.digest,
        "n": len(kept),
        "split": "val",
        "chosen": best.model_dump(mode="json"),
        "trials": trials.rows,
    }
    write_atomic(arguments.out, (json.dumps(content, indent=2) + "\n").encode())
    log.info("chosen: %s; wrote %s", best.consensus, arguments.out)
    if arguments.write_bundle is not None:
        _with_decoding(bundle, best, arguments.write_bundle)


def _with_decoding(bundle: Bundle, decoding: DecodingConfig, path: Path) -> None:
    """The same bundle with other decoding defaults; its figures, which were those of the old ones, are left out."""
    write_bundle(
        path, config=bundle.config.model_copy(update={"decoding": decoding}), model=bundle.model,
        tokenizer=bundle.tokenizer, index_dir=bundle.path / INDEX_DIR, consensus=bundle.consensus,
        metrics={}, weights_dtype="fp16",
    )  # fmt: skip
    log.info("wrote %s; score it with python -m training.evaluate", path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.tune_decoding", description="Tune decoding on val.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--dataset", choices=("openi", "r2gen"), help="default: r2gen with --annotation, else openi")
    parser.add_argument("--root", type=Path, help="openi: NLMCXR_reports.tgz and images/ or NLMCXR_png.tgz")
    parser.add_argument("--annotation", type=Path, help="r2gen: annotation.json")
    parser.add_argument("--images", type=Path, help="r2gen: image folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON of all trials; it holds no text")
    parser.add_argument("--write-bundle", type=Path, help="also write the bundle with the chosen settings here")
    parser.add_argument("--work", type=Path, help="decoded images and features (default OUT.work)")
    parser.add_argument("--limit", type=positive, help="only the first N studies")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
