"""Stage ``scst``: self-critical sequence training of what writes, against a reward on whole reports.

Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning": reports are sampled from the model, each is
scored, and the log-probability of a report rises by how far its reward lies above a baseline: the greedy report's
reward, or the mean of the study's other samples (leave-one-out, Luo 2020, "A Better Variant of Self-Critical Sequence
Training"). Where a bundle decodes by the consensus of its samples, each sample's own reward is the wrong aim: samples
grow alike, and a consensus chooses among them. The third baseline is then the best of the other samples, and only what
lies above it counts: in expectation the gradient of the best reward among them (Walder and Karkhanis 2025, "Pass@K
Policy Optimization"), for which it pays to differ.

Reward: weighted CIDEr-D, sentence BLEU-4 and right findings against the study's own report, on the strings that the
comparable row scores. The end token stands in drafts that ended, in references and in the document frequencies, which
are those of the training reports; a draft that was cut lacks it and loses by that.

CIDEr alone is raised by phrases that suit every patient. Against this stand the clinical term, a share of
cross-entropy, and guards: an epoch whose drafts fall below a floor of variety, findings or length, set by the model as
it came in and for variety also absolutely, cannot be selected, and enough of them in a row end the stage. Epochs are
selected as in ``training.stages.cross_entropy``: by how far their validation drafts score above the same drafts
dealt out anew, which filler does not raise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.config import DecodingConfig
from model.decoding.mbr import MbrTable
from model.decoding.search import Constraints, Generated, greedy, sample
from model.network.dual_encoder import pad_ids
from model.network.report_model import Encoded, ReportModel
from model.text.labeler import NO_FINDING
from model.text.tokenizer import EOS, Tokenizer
from retrieval_index.index import ReportIndex
from training.config import RewardConfig, RunContext, ScstConfig, SelectionConstraints
from training.data.features import PatchSource
from training.data.studies import Study
from training.scoring.cider import CiderD
from training.scoring.metrics import present_findings
from training.scoring.protocol import comparable_prediction, comparable_reference, comparable_vocabulary
from training.scoring.study_statistics import sentence_bleu4
from training.stages.cross_entropy import (
    FrozenPartsModule,
    build_optimizer,
    count_targets,
    mask_suppressed_targets,
    retrieve,
    teacher_forced,
    validate_generation,
)
from training.trainer.loop import Loop, LoopConfig

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
_REDACTED = "xxxx"
GREEDY_EVERY = 4  # of how many studies one has its greedy report rewarded, for the log, where that is not the baseline
FINDING_COST = 0.2  # about half of the label F1 that can be reached


class Reward:
    """Rewards of drafts of training studies.

    Args:
        reports: of the training studies, as the source holds them; items are their rows.
        weights: of the parts.
    """

    def __init__(self, reports: Sequence[str], weights: RewardConfig) -> None:
        vocabulary = comparable_vocabulary(reports)
        self._references = [comparable_reference(report, vocabulary) for report in reports]
        self._cider = CiderD([f"{reference} {EOS}" for reference in self._references])
        self._weights = weights

    def __call__(self, drafts: Sequence[str], ended: Sequence[bool], rows: Sequence[int]) -> dict[str, Floats]:
        """Score drafts against their studies' reports.

        Args:
            drafts: tokens joined by spaces, B.
            ended: whether each wrote its end.
            rows: the study of each.

        Returns:
            ``reward`` and its parts before weighting, (B,) each: ``cider`` 0 to 10, ``bleu4`` 0 to 1, ``label_f1`` as
            ``finding_gain``. Parts of weight 0 are left out.
        """
        texts = [comparable_prediction(draft) for draft in drafts]
        closed = [f"{text} {EOS}" if end else text for text, end in zip(texts, ended, strict=True)]
        references = [self._references[row] for row in rows]
        parts: dict[str, Floats] = {}
        if self._weights.cider:
            parts["cider"] = self._cider.scores(closed, rows)
        if self._weights.bleu4:
            parts["bleu4"] = sentence_bleu4(list(zip(references, texts, strict=True)))
        if self._weights.label_f1:
            pairs = zip(references, texts, strict=True)
            parts["label_f1"] = np.array([finding_gain(reference, text) for reference, text in pairs])
        weighted = [getattr(self._weights, name) * values for name, values in parts.items()]
        return {"reward": np.sum(weighted, axis=0), **parts}


def finding_gain(reference: str, text: str) -> float:
    """What the findings that a text names as present add to micro-F1, No Finding aside.

    Each that the reference names is worth 1, and each named costs ``FINDING_COST``: on average worth naming where its
    probability is above that cost. Micro-F1 is largest where findings are named from half of the best F1 on (Lipton
    et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure"). Agreement, where a normal report earns
    as much as a finding, would reward naming none: most studies have none.
    """
    truth, guess = _findings(reference), _findings(text)
    return len(truth & guess) - FINDING_COST * len(guess)


@lru_cache(maxsize=20_000)
def _findings(text: str) -> frozenset[str]:
    return present_findings(text) - {NO_FINDING}


def advantages(rewards: Tensor, baseline: Tensor | Literal["leave_one_out", "best_other"]) -> Tensor:
    """How far each sample's reward lies above its baseline: rewards (B, n) -> (B, n).

    Args:
        rewards: of n samples a study.
        baseline: (B,) rewards of the greedy reports; or, of two or more samples, the mean of the others
            (``leave_one_out``), or the best of them (``best_other``): what a sample adds to the best of all, 0 for all
            samples but one.
    """
    if isinstance(baseline, Tensor):
        return rewards - baseline.unsqueeze(1)
    count = rewards.shape[1]
    if baseline == "best_other":
        best, second = rewards.topk(2, dim=1).values.chunk(2, dim=1)
        return (rewards - torch.where(rewards == best, second, best)).clamp(min=0)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (count - 1)
    return rewards - others


def policy_log_probs(
    model: ReportModel, encoded: Encoded, drafts: Generated, constraints: Constraints, bos_id: int, count: int,
    temperature: float = 1.0,
) -> Tensor:  # fmt: skip
    """Log-probabilities, with their gradient, that ``count`` drafts a study were sampled with: (B * count, T).

    Those of ``model.decoding.sample`` under the same constraints and temperature; 0 behind the end.
    """
    length = int((drafts.ids != 0).sum(1).max())
    ids = drafts.ids[:, :length]
    inputs = torch.cat([torch.full_like(ids[:, :1], bos_id), ids[:, :-1]], dim=1)
    each = torch.arange(encoded.source.shape[0], device=ids.device).repeat_interleave(count)
    logits = model(encoded.select(each), inputs).float()
    never = torch.zeros(length, logits.shape[2], dtype=torch.bool, device=ids.device)
    never[:, list(constraints.suppress)] = True
    never[: constraints.min_length, constraints.eos_id] = True
    log_probs = (logits.masked_fill(never, float("-inf")) / temperature).log_softmax(-1)
    gained: Tensor = log_probs.gather(2, ids.unsqueeze(2)).squeeze(2).masked_fill(ids == 0, 0.0)
    return gained


def train_scst(
    model: ReportModel,
    patches: PatchSource,
    index: ReportIndex | None,
    train: Sequence[Study],
    val: Sequence[Study],
    tokenizer: Tokenizer,
    config: ScstConfig,
    decoding: DecodingConfig,
    context: RunContext,
    directory: Path,
    consensus: MbrTable | None = None,
) -> Mapping[str, float]:
    """Train the model in place and keep the best epoch that the guards let pass, or the model as it came in.

    Dropout is off: what is sampled and what is differentiated is one policy, the one that serves. The backbone stays as
    it is, and with it the index. The log has ``policy``, the self-critical loss, ``reward``, that of the samples, and
    ``greedy_reward``, that of the greedy reports: of all studies where they are the baseline, else of a quarter.

    Returns:
        The selected epoch's row of the log; ``epoch`` 0 is the model as it came in.

    Raises:
        ValueError: no training study.
    """
    if not train:
        raise ValueError("self-critical training found no readable training study; check --root or --images")
    reports = [study.report for study in train]
    names = [study.study_id for study in train]
    ids = pad_ids([tokenizer.encode(report, model.config.max_length) for report in reports], model.config.max_length)
    targets = mask_suppressed_targets(ids, decoding, tokenizer)
    reward = Reward(reports, config.reward)
    sampled = decoding.model_copy(update={"block_trigrams": False, "trigram_penalty": 0.0})  # the policy itself
    constraints = Constraints.of(sampled, tokenizer)
    every = 1 if config.baseline == "greedy" else GREEDY_EVERY
    steps = -(-len(train) // config.batch_size)
    stage, processes = _Frozen(model), context.processes

    def batches(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((context.seed, 31, epoch)).permutation(len(train))
        return np.array_split(order, steps)

    def rewarded(drafts: Generated, rows: Sequence[int]) -> dict[str, Tensor]:
        texts = [tokenizer.decode(row) for row in drafts.ids.tolist()]
        ended = (drafts.ids == tokenizer.eos_id).any(1).tolist()
        return {name: torch.from_numpy(values) for name, values in reward(texts, ended, rows).items()}

    def train_step(batch: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        mine = processes.rows(len(batch))
        own = batch[mine]
        seen = patches.patches([train[i] for i in batch], generator, part=mine)
        cases, found = retrieve(model, index, seen, [names[i] for i in own])
        encoded = model.encode(seen, cases, found)
        with torch.no_grad():
            noise = _on(context.device, generator)
            drafts = sample(model, encoded, constraints, tokenizer.bos_id, count=config.samples, generator=noise,
                            temperature=config.temperature, rng_slice=(mine.start, len(batch)))  # fmt: skip
            gained = rewarded(drafts, own.repeat(config.samples).tolist())
            rewards = gained["reward"].view(len(own), config.samples)
            asked = np.arange(-mine.start % every, len(own), every)  # the same studies however many processes
            best = torch.zeros(0, dtype=torch.float64)
            if asked.size:
                some = encoded.select(torch.from_numpy(asked).to(context.device))
                best = rewarded(greedy(model, some, constraints, tokenizer.bos_id), own[asked].tolist())["reward"]
            beaten = best if config.baseline == "greedy" else config.baseline
            advantage = advantages(rewards, beaten).flatten().to(context.device, torch.float32)
        log_probs = policy_log_probs(
            model, encoded, drafts, constraints, tokenizer.bos_id, config.samples, config.temperature
        )
        words = processes.total((drafts.ids != 0).sum())
        policy = -(advantage.unsqueeze(1) * log_probs).sum() / words
        means = {name: values.sum() / (len(batch) * config.samples) for name, values in gained.items()}
        losses = {"loss": policy, "policy": policy, **means, "greedy_reward": best.sum() / -(-len(batch) // every)}
        if config.nll_weight:
            nll = teacher_forced(model, encoded, ids[own], targets[own], words=count_targets(targets[batch]))
            losses |= {"loss": (1 - config.nll_weight) * policy + config.nll_weight * nll, "nll": nll}
        return losses

    chosen = val[: config.validate_limit]
    floors: dict[str, float] = {}

    def validate() -> Mapping[str, float]:
        scores, texts = validate_generation(
            model, patches, index, chosen, tokenizer, decoding, context, reports, consensus
        )
        row = {**scores, "redacted": sum(_REDACTED in text.split() for text in texts) / len(texts)}
        return {**row, "guards": float(not violated_constraints(row, floors, config.guards))}

    loop = Loop(
        LoopConfig("scst", context.seed, precision=context.precision, select="selection" if chosen else None,
                   eligible="guards" if chosen else None, patience=config.patience if chosen else None, warmup=0.05,
                   clip=1.0, checkpoint_seconds=context.checkpoint_seconds),
        directory, stage, build_optimizer(model, backbone_lr=0.0, head_lr=config.lr, weight_decay=0.0),
        device=context.device, processes=processes,
    )  # fmt: skip
    before = loop.evaluate_initial(validate) if chosen else {}
    floors.update({name.removeprefix("val_"): value for name, value in before.items()})
    if chosen:
        _warn_of_filler(floors, config.guards)
    history = loop.fit(batches, [steps] * config.epochs, train_step, validate if chosen else None)
    if not chosen:
        return history.rows[-1] if history.rows else {}
    if history.best_epoch < 0:
        log.warning("scst: no epoch beat the model as it came in within its guards; it is kept")
        return before
    return history.rows[history.best_epoch]


def violated_constraints(
    row: Mapping[str, float], start: Mapping[str, float], guards: SelectionConstraints
) -> list[str]:
    """Names of the floors that a validation row falls below; ``start`` is the row of the model as it came in.

    Without a start (its own row) nothing is broken.
    """
    if not start:
        return []
    length = row["mean_length"] / max(start["mean_length"], 1e-9)
    held = {
        "distinct": row["distinct"] >= max(guards.distinct * start["distinct"], guards.least_distinct),
        "label_f1": row["label_f1_micro"] >= guards.label_f1 * start["label_f1_micro"],
        "length": 1 - guards.length <= length <= 1 + guards.length,
        "redacted": row["redacted"] <= start["redacted"] + guards.redacted,
    }
    return [name for name, fine in held.items() if not fine]


def _warn_of_filler(start: Mapping[str, float], guards: SelectionConstraints) -> None:
    """Say where the model that came in leaves the guards little to hold."""
    if start["distinct"] < guards.least_distinct:
        log.warning("scst: of the validation drafts of the model that came in %.1f %% differ, less than the floor of "
                    "%.1f %%: it writes nearly one report for everybody, which this stage sharpens. Train it longer by "
                    "cross-entropy.", 100 * start["distinct"], 100 * guards.least_distinct)  # fmt: skip
    if not start["label_f1_micro"]:
        log.warning("scst: the validation drafts of the model that came in name no finding rightly: the guard on "
                    "label F1 has nothing to hold")  # fmt: skip


class _Frozen(FrozenPartsModule):
    """The model in eval mode throughout: no dropout, statistics as they are."""

    def __init__(self, model: ReportModel) -> None:
        super().__init__(model, moving=False)

    def train(self, mode: bool = True) -> _Frozen:
        nn.Module.train(self, False)
        return self


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator for ``device`` that continues the randomness of a step."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator(device).manual_seed(seed)
