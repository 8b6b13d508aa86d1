"""Choose how a bundle decodes, on the validation split: its settings one at a time, with every trial kept.

    python -m training.tune_decoding --bundle B --root DIR --out decoding.json [--write-bundle B2]

Three methods are tried: beam search by its length normalisation, candidates reranked by their likeness to the images,
and, for a bundle with the table that it needs, their consensus. Candidates are drawn once; each trial makes its reports
of them. A setting keeps the value with the highest objective, CIDEr + label F1 + BLEU-4 + ROUGE-L of the comparable
row, and the next setting is tried from there; the method that reaches the highest is chosen. A few settings over a few
hundred studies flatter little, but they do: judge on studies that no choice was made on.
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

from model.bundle import INDEX_DIR, Bundle, write_bundle
from model.config import DecodingConfig
from model.decoding.generate import draw_candidates, mbr_search, score_candidates, search
from model.decoding.search import Constraints
from model.devices import choose_device
from model.files import write_atomic
from model.manifest import BundleError
from retrieval_index.index import ReportIndex
from training.cli import add_dataset_arguments, add_device_argument, open_source, positive
from training.data.features import cache_features
from training.data.pixel_cache import build_pixel_cache
from training.data.studies import Source, Study
from training.evaluation.inference import open_bundle
from training.evaluation.scoring import ReferenceSet
from training.scoring.protocol import comparable_vocabulary
from training.stages.common import retrieve
from training.trainer.context import RunContext

log = logging.getLogger("training")

GRID: Mapping[str, Sequence[float]] = {
    "temperature": (0.02, 0.03, 0.04, 0.05, 0.07, 0.1),
    "finding": (0.0, 1.0, 2.0, 4.0, 8.0),
    "finding_threshold": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "classifier_weight": (0.0, 0.25, 0.5, 1.0),
    "bleu4": (0.0, 1.0, 2.0, 3.0, 4.0),
    "rouge": (0.0, 1.0, 2.0, 3.0, 4.0),
    "sentence_pool": (10, 20, 40, 80),
}
LENGTH_PENALTIES = (0.0, 0.5, 1.0, 1.5, 2.0)
SIMILARITY_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_BATCH = 16
_SHOWN = ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct", "mean_length")


@dataclass(frozen=True)
class Candidates:
    """What the trials choose from: beam's and sampled reports of N studies, (N, n, T), and what weighs them.

    ``beams``: (N, T) by length penalty; ``likely`` and ``alike``: (N, n), what reranking goes by.
    """

    ids: Tensor
    greedy: Tensor
    beams: Mapping[float, Tensor]
    likely: Tensor
    alike: Tensor
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
    kept = cache.readable(studies)
    context = RunContext(device, 1, "fp32", work)
    patches = cache_features(model.backbone, cache, kept, 1, context, work, view_dropout=0.0, name="tuning")
    constraints = Constraints.of(decoding, tokenizer)
    penalties = dict.fromkeys((*LENGTH_PENALTIES, decoding.length_penalty))
    parts: list[Candidates] = []
    model.precompute_inference_tables()
    for start in tqdm(range(0, len(kept), _BATCH), desc="candidates", unit="batch"):
        batch = kept[start : start + _BATCH]
        seen = patches.patches(batch, None)
        cases, found = retrieve(model, index, seen, [study.study_id for study in batch])
        encoded = model.encode(seen, cases, found)
        where = (model, encoded, constraints, tokenizer.bos_id)
        beams = {penalty: search(*where, decoding.model_copy(update={"length_penalty": penalty}))
                 for penalty in penalties}  # fmt: skip
        drawn = draw_candidates(*where, decoding, beams[decoding.length_penalty])
        study, findings = model.embed_study(seen), model.findings(seen)
        _, likely, alike = score_candidates(*where, study, drawn)
        parts.append(Candidates(drawn, search(*where, decoding, 1).ids, {key: beam.ids for key, beam in beams.items()},
                                likely, alike, study, findings))  # fmt: skip
    return _joined(parts), kept


def _joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several batches as those of one."""
    heads = [part.findings for part in parts if part.findings is not None]
    return Candidates(
        ids=torch.cat([part.ids for part in parts]),
        greedy=torch.cat([part.greedy for part in parts]),
        beams={penalty: torch.cat([part.beams[penalty] for part in parts]) for penalty in parts[0].beams},
        likely=torch.cat([part.likely for part in parts]),
        alike=torch.cat([part.alike for part in parts]),
        study=torch.cat([part.study for part in parts]),
        findings=torch.cat(heads) if heads else None,
    )


def reranked(candidates: Candidates, weight: float) -> Tensor:
    """(N, T) the candidates that are most likely and most like the images, the latter by ``weight``."""
    winner = (candidates.likely + weight * candidates.alike).argmax(dim=1)
    return candidates.ids[torch.arange(len(winner)), winner]


class Trials:
    """Scores of settings on the studies, each with its row."""

    def __init__(self, bundle: Bundle, candidates: Candidates, studies: Sequence[Study], source: Source) -> None:
        train = [study.report for study in source.split("train")]
        vocabulary = comparable_vocabulary(train)
        self._bundle, self._candidates = bundle, candidates
        self._board = ReferenceSet([study.report for study in studies], vocabulary, False)
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

    def beam(self, name: str, decoding: DecodingConfig) -> float:
        """Score the beam's reports under a length penalty."""
        penalty = decoding.length_penalty
        return self.score(name, {"length_penalty": penalty}, self._candidates.beams[penalty])

    def rerank(self, name: str, decoding: DecodingConfig) -> float:
        """Score the candidates that are most likely and most like the images, by this weight."""
        weight = decoding.similarity_weight
        return self.score(name, {"similarity_weight": weight}, reranked(self._candidates, weight))

    def consensus(self, name: str, decoding: DecodingConfig) -> float:
        """Score reports made by consensus with these settings."""
        table = self._bundle.consensus
        assert table is not None
        given = self._candidates
        ids, _ = mbr_search(self._bundle.tokenizer, decoding, given.study, given.findings, table, given.ids)
        return self.score(name, decoding.consensus.model_dump(), ids)


Score = Callable[[str, DecodingConfig], float]


def best_of(start: DecodingConfig, setting: str, values: Sequence[float], score: Score) -> tuple[DecodingConfig, float]:
    """The best value of one setting, and its objective; ``score`` scores a named trial."""
    trials = [start.model_copy(update={setting: value}) for value in values]
    scored = [(score(f"{start.method}, {setting} {getattr(trial, setting):g}", trial), trial) for trial in trials]
    value, best = max(scored, key=lambda one: one[0])
    return best, value


def best_settings(start: DecodingConfig, consensus: Score) -> tuple[DecodingConfig, float]:
    """One setting after the other, the best value kept, and the objective; ``consensus`` scores a named trial."""
    best, value = start, consensus("start", start)
    for setting, choices in GRID.items():
        for choice in choices:
            if choice == getattr(best.consensus, setting):
                continue
            settings = best.consensus.model_copy(update={setting: choice})
            trial = best.model_copy(update={"consensus": settings})
            if (reached := consensus(f"{setting} {choice:g}", trial)) > value:
                best, value = trial, reached
    return best, value


def row_text(row: Mapping[str, Any]) -> str:
    """A trial on one line."""
    figures = " ".join(f"{name} {row[name]:.3f}" for name in (*_SHOWN, "copied", "objective"))
    return f"{row['trial']:28} {figures}"


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
    bundle, index = open_bundle(arguments.bundle, device)
    if index is None:
        raise ValueError(f"{arguments.bundle} has no retrieval; train it with a preset that has")
    studies = source.split("val")[: arguments.limit]
    if not studies:
        raise ValueError("there is no validation study; check --root, or --annotation")
    work = arguments.work or arguments.out.with_name(f"{arguments.out.stem}.work")
    candidates, kept = draw(bundle, index, studies, source, work, device)
    trials = Trials(bundle, candidates, kept, source)
    trials.score("greedy", {}, candidates.greedy)
    best = choose(bundle, trials)
    content = {
        "bundle": bundle.config.name,
        "digest": bundle.digest,
        "n": len(kept),
        "split": "val",
        "chosen": best.model_dump(mode="json"),
        "trials": trials.rows,
    }
    write_atomic(arguments.out, (json.dumps(content, indent=2) + "\n").encode())
    log.info("chosen: %s; wrote %s", best, arguments.out)
    if arguments.write_bundle is not None:
        _with_decoding(bundle, best, arguments.write_bundle)


def choose(bundle: Bundle, trials: Trials) -> DecodingConfig:
    """Try all methods that the bundle has what it needs for, and take the settings with the highest objective."""
    decoding = bundle.config.decoding
    beam, rerank = (decoding.model_copy(update={"method": method}) for method in ("beam", "rerank"))
    reached = [
        best_of(beam, "length_penalty", LENGTH_PENALTIES, trials.beam),
        best_of(rerank, "similarity_weight", SIMILARITY_WEIGHTS, trials.rerank),
    ]
    if bundle.consensus is not None:
        still = decoding.consensus.model_copy(update={"max_edits": 0})
        trials.consensus("best candidate", decoding.model_copy(update={"consensus": still}))
        reached.append(best_settings(decoding.model_copy(update={"method": "consensus"}), trials.consensus))
    return max(reached, key=lambda one: one[1])[0]


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
    add_dataset_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON of all trials; it holds no text")
    parser.add_argument("--write-bundle", type=Path, help="also write the bundle with the chosen settings here")
    parser.add_argument("--work", type=Path, help="decoded images and features (default OUT.work)")
    parser.add_argument("--limit", type=positive, help="only the first N studies")
    add_device_argument(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
