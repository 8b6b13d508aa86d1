"""Choose the decoding settings of a bundle on the validation split, one setting at a time; every trial is kept.

    python -m training.tune_decoding --bundle B --root DIR --out decoding.json [--write-bundle B2]

Three methods are tried: beam search by length normalisation, candidates reranked by similarity to the images, and MBR
decoding (``consensus``) for a bundle with its table. Candidates are drawn once; each trial chooses its reports from
them. A setting keeps the value with the highest objective, CIDEr + label F1 + BLEU-4 + ROUGE-L of the comparable row,
before the next setting is tried. The scores of the chosen settings are slightly too high: evaluate on other studies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.bundle import INDEX_DIR, Bundle, write_bundle
from model.command_line import CommandParser
from model.config import DecodingConfig, LanguageConfig
from model.decoding.generate import beam_or_greedy, draw_candidates, mbr_search, score_candidates
from model.decoding.search import Constraints
from model.devices import choose_device
from retrieval_index.index import ReportIndex
from training.cli import add_common_arguments, open_source, run_command, write_json
from training.data.comparisons import with_rewritten
from training.data.features import cache_features
from training.data.pixel_cache import build_pixel_cache
from training.data.resumable_lines import ResumableLines
from training.data.selection import CHOSEN_ON, UNRECORDED, half_of, selection_record
from training.data.studies import Source, Study
from training.evaluation.inference import images_digest, open_bundle, study_views
from training.evaluation.scoring import ReferenceSet
from training.model_card import CARD, model_card
from training.scoring.language import language_faults
from training.scoring.protocol import comparable_vocabulary
from training.stages.common import retrieve
from training.stages.mbr_table import attested_sentences
from training.trainer.context import RunContext

log = logging.getLogger("training")

GRID: Mapping[str, Sequence[float]] = {
    "temperature": (0.02, 0.03, 0.04, 0.05, 0.07, 0.1),
    "finding": (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0),
    "finding_threshold": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "classifier_weight": (0.0, 0.25, 0.5, 0.75, 1.0),
    "bleu4": (0.0, 1.0, 2.0, 3.0, 4.0),
    "rouge": (0.0, 1.0, 2.0, 3.0, 4.0),
    "sentence_pool": (10, 20, 40, 80),
    "sentences_per_finding": (0, 2, 4, 8),
}
LENGTH_PENALTIES = (0.0, 0.5, 1.0, 1.5, 2.0)
SIMILARITY_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_BATCH = 16
_SHOWN = ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct", "mean_length")


class Candidates(NamedTuple):
    """Reports of N studies that the trials choose from, as token ids.

    ``ids`` (N, n, T) beam and sampled reports, with ``likelihood`` and ``similarity`` (N, n) for reranking; ``greedy``
    (N, T); ``beams`` (N, T) by length penalty; ``study`` (N, E) embeddings; ``findings`` (N, 14) probabilities or None.
    ``key`` identifies the studies.
    """

    key: str
    ids: Tensor
    greedy: Tensor
    beams: Mapping[float, Tensor]
    likelihood: Tensor
    similarity: Tensor
    study: Tensor
    findings: Tensor | None

    def reranked(self, weight: float) -> Tensor:
        """(N, T) the candidates with the highest likelihood + ``weight`` times similarity to the images."""
        winner = (self.likelihood + weight * self.similarity).argmax(dim=1)
        return self.ids[torch.arange(len(winner)), winner]


@torch.inference_mode()
def draw(
    bundle: Bundle, index: ReportIndex, studies: Sequence[Study], source: Source, work: Path, device: torch.device,
    kept: ResumableLines,
) -> tuple[Candidates, list[Study]]:  # fmt: skip
    """Encode the studies with readable images and draw the candidates of each; returns both. ``kept`` takes them."""
    model, tokenizer, decoding = bundle.model, bundle.tokenizer, bundle.config.decoding
    preprocessing = bundle.config.preprocessing
    cache = build_pixel_cache(source, studies, preprocessing.image_size, work, resample=preprocessing.resample)
    readable = cache.readable(studies)
    context = RunContext(device, 1, "fp32", work)
    features = cache_features(model.backbone, cache, readable, 1, context, work, view_dropout=0.0, name="tuning")
    constraints = Constraints.of(decoding, tokenizer, bundle.mbr_table)
    penalties = tuple(dict.fromkeys((*LENGTH_PENALTIES, decoding.length_penalty)))
    model.precompute_inference_tables()

    def candidates(rows: slice) -> list[Any]:
        batch = readable[rows]
        patches = features.patches(batch, None)
        cases, found = retrieve(model, index, patches, [study.study_id for study in batch])
        inputs = (model, model.encode(patches, cases, found), constraints, tokenizer.bos_id)
        beams = {penalty: beam_or_greedy(*inputs, decoding.model_copy(update={"length_penalty": penalty}))
                 for penalty in penalties}  # fmt: skip
        ids = draw_candidates(*inputs, decoding, beams[decoding.length_penalty])
        study, findings = model.embed_study(patches), model.findings(patches)
        _, likelihood, similarity = score_candidates(*inputs, study, ids)
        greedy = beam_or_greedy(*inputs, decoding, 1).ids
        columns = [ids, greedy, likelihood, similarity, study, *(beam.ids for beam in beams.values())]
        columns += [] if findings is None else [findings]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    images = images_digest([[study_views(study, cache) for study in readable]])
    inputs = json.dumps([images, [study.study_id for study in readable], penalties])
    key = hashlib.sha256(inputs.encode()).hexdigest()
    rows = kept.fill(len(readable), lambda rows: f"{key} {rows.start}", candidates, batch=_BATCH,
                     description="candidates")  # fmt: skip
    columns = [torch.tensor(column, device=device) for column in zip(*rows, strict=True)]
    (ids, greedy, likelihood, similarity, study), rest = columns[:5], columns[5:]
    beams = dict(zip(penalties, rest, strict=False))
    findings = rest[len(beams)] if len(rest) > len(beams) else None
    return Candidates(key, ids, greedy, beams, likelihood, similarity, study, findings), readable


class Trials:
    """Scores of settings on the studies; ``rows`` has every trial, ``kept`` takes the reports of the slow ones."""

    def __init__(
        self, bundle: Bundle, candidates: Candidates, studies: Sequence[Study], source: Source, kept: ResumableLines
    ) -> None:
        self._bundle, self._candidates, self._kept = bundle, candidates, kept
        self._train = [study.reference for study in source.split("train")]
        self._written = with_rewritten(self._train)
        reports = [study.reference for study in studies]
        vocabulary = comparable_vocabulary(self._train, source.protocol)
        self._references = ReferenceSet(reports, vocabulary, meteor=False, protocol=source.protocol)
        self.rows: list[dict[str, Any]] = []

    def score(self, name: str, settings: Mapping[str, Any], ids: Tensor) -> float:
        """Keep the row of reports (N, T) and return its objective."""
        texts = [self._bundle.tokenizer.decode(row) for row in ids.tolist()]
        system, _ = self._references.drafts(texts)
        row: dict[str, Any] = {metric: float(system[metric] or 0.0) for metric in _SHOWN}
        row["copied"] = self._references.copied(texts, self._train) or 0.0
        row |= language_faults(texts, self._written)
        row["objective"] = row["CIDEr"] + row["label_f1_micro"] + row["BLEU_4"] + row["ROUGE_L"]
        self.rows.append({"trial": name, "settings": dict(settings), **row})
        log.info("%-28s %s", name, " ".join(f"{metric} {value:.3f}" for metric, value in row.items()))
        return float(row["objective"])

    def run(self, name: str, decoding: DecodingConfig) -> float:
        """Score the reports that these settings choose."""
        given, table = self._candidates, self._bundle.mbr_table
        if decoding.method == "beam":
            penalty = decoding.length_penalty
            return self.score(name, {"length_penalty": penalty}, given.beams[penalty])
        if decoding.method == "rerank":
            weight = decoding.similarity_weight
            return self.score(name, {"similarity_weight": weight}, given.reranked(weight))
        assert table is not None
        settings = decoding.consensus.model_dump()
        search = partial(mbr_search, self._bundle.tokenizer, decoding, given.study, given.findings, table, given.ids)
        ids = self._kept.get(f"{given.key} {json.dumps(settings)}", lambda: list(search()[0].tolist()))
        return self.score(name, settings, torch.tensor(ids))


Score = Callable[[str, DecodingConfig], float]


def best_of(start: DecodingConfig, setting: str, values: Sequence[float], score: Score) -> tuple[DecodingConfig, float]:
    """The best value of one setting, and its objective; ``score`` scores a named trial."""
    trials = [start.model_copy(update={setting: value}) for value in values]
    scored = [(score(f"{start.method}, {setting} {getattr(trial, setting):g}", trial), trial) for trial in trials]
    value, best = max(scored, key=lambda one: one[0])
    return best, value


def best_settings(
    start: DecodingConfig, score: Score, tried: Collection[str] = GRID.keys()
) -> tuple[DecodingConfig, float]:
    """The best consensus settings of ``GRID``, ``tried`` one after the other, and their objective."""
    best, value = start, score("start", start)
    for setting in (name for name in GRID if name in tried):
        for choice in GRID[setting]:
            if choice == getattr(best.consensus, setting):
                continue
            settings = best.consensus.model_copy(update={setting: choice})
            trial = best.model_copy(update={"consensus": settings})
            if (reached := score(f"{setting} {choice:g}", trial)) > value:
                best, value = trial, reached
    return best, value


def _run(arguments: argparse.Namespace) -> int:
    source, device = open_source(arguments), choose_device(arguments.device)
    bundle, index = open_bundle(arguments.bundle, device)
    if arguments.settings and bundle.mbr_table is None:
        raise ValueError(f"--settings are of MBR decoding, and {arguments.bundle} has no table for it; leave them out")
    if index is None:
        raise ValueError(f"{arguments.bundle} has no retrieval; train it with a preset that has")
    if arguments.clean_language:
        bundle = with_clean_language(bundle, source.split("train"))
    studies = half_of(source.split("val"), arguments.split_val)[: arguments.limit]
    if not studies:
        raise ValueError("there is no validation study; check --root, or --annotation")
    work = arguments.work or arguments.out.with_name(f"{arguments.out.stem}.work")
    identity = f"{bundle.digest} {device.type} {bundle.config.decoding.language.model_dump_json()}"
    with ResumableLines(work / "candidates.jsonl", identity, resume=arguments.resume) as kept:
        candidates, readable = draw(bundle, index, studies, source, work, device, kept)
        trials = Trials(bundle, candidates, readable, source, kept)
        trials.score("greedy", {}, candidates.greedy)
        best = choose(bundle, trials, arguments.settings)
    chosen = selection_record("decoding settings", source.name, arguments.split_val, readable)
    content = {"bundle": bundle.config.name, "digest": bundle.digest, "n": len(readable), "split": "val",
               "half": arguments.split_val,
               "chosen": best.model_dump(mode="json"), "trials": trials.rows}  # fmt: skip
    write_json(arguments.out, content)
    log.info("chosen: %s; wrote %s", best, arguments.out)
    if (path := arguments.write_bundle) is not None:  # its metrics would be those of the old settings
        config = bundle.config.model_copy(update={"decoding": best})
        write_bundle(
            path, config=config, model=bundle.model, documents={CARD: model_card(config, {})},
            tokenizer=bundle.tokenizer, index_dir=bundle.path / INDEX_DIR, mbr_table=bundle.mbr_table,
            metrics={CHOSEN_ON: [*bundle.metrics.get(CHOSEN_ON, [UNRECORDED]), chosen]}, weights_dtype="fp16",
        )  # fmt: skip
        log.info("wrote %s; score it with python -m training.evaluate", path)
    kept.remove()
    return 0


def with_clean_language(bundle: Bundle, train: Sequence[Study]) -> Bundle:
    """The bundle with the rules of ``LanguageConfig``, and the attested sentences of training reports.

    Raises:
        ValueError: the bundle has no table for MBR decoding, or there is no training report.
    """
    if bundle.mbr_table is None or not train:
        raise ValueError("--clean-language needs a bundle with a table for MBR decoding, and the training reports")
    table = replace(bundle.mbr_table, **attested_sentences(train, bundle.tokenizer))
    language = LanguageConfig(attested=True, no_priors=True, consistent=True, ordered=True)
    decoding = bundle.config.decoding.model_copy(update={"language": language})
    config = bundle.config.model_copy(update={"decoding": decoding})
    return replace(bundle, config=config, mbr_table=table)


def choose(bundle: Bundle, trials: Trials, settings: Collection[str] | None = None) -> DecodingConfig:
    """Try all methods that the bundle supports and return the settings with the highest objective.

    ``settings`` of ``GRID`` alone are tried where they are given, with MBR decoding.
    """
    decoding = bundle.config.decoding
    if settings:
        return best_settings(decoding.model_copy(update={"method": "consensus"}), trials.run, settings)[0]
    beam, rerank = (decoding.model_copy(update={"method": method}) for method in ("beam", "rerank"))
    reached = [
        best_of(beam, "length_penalty", LENGTH_PENALTIES, trials.run),
        best_of(rerank, "similarity_weight", SIMILARITY_WEIGHTS, trials.run),
    ]
    if bundle.mbr_table is not None:
        consensus = decoding.model_copy(update={"method": "consensus"})
        unedited = consensus.consensus.model_copy(update={"max_edits": 0})
        trials.run("best candidate", consensus.model_copy(update={"consensus": unedited}))
        reached.append(best_settings(consensus, trials.run))
    return max(reached, key=lambda one: one[1])[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.tune_decoding``; returns the exit code."""
    parser = CommandParser(prog="python -m training.tune_decoding", description="Tune decoding on val.")
    add_common_arguments(parser, bundle=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON of all trials; it holds no text")
    parser.add_argument(
        "--clean-language",
        action="store_true",
        help="attested sentences without comparisons and contradictions only, ordered by organ",
    )
    parser.add_argument("--settings", nargs="+", choices=tuple(GRID), help="try these alone, with MBR decoding")
    parser.add_argument("--write-bundle", type=Path, help="also write the bundle with the chosen settings here")
    parser.add_argument("--work", type=Path, help="decoded images and features (default OUT.work)")
    arguments = parser.parse_args(argv)
    interrupted = "interrupted; the next run continues from the finished drafts"
    return run_command(lambda: _run(arguments), interrupted=interrupted)


if __name__ == "__main__":
    raise SystemExit(main())
