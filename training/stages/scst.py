"""Stage ``scst``: self-critical sequence training with a reward on whole reports.

Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning": reports are sampled from
the model, and the log-probability of a sample rises by how far its reward
(``training.stages.scst_reward``) lies above a baseline. Three baselines:

- ``greedy``: the reward of the greedy report;
- ``leave_one_out``: the mean of the study's other samples (Luo 2020, "A Better Variant of
  Self-Critical Sequence Training");
- ``best_other``: the best of the other samples, for bundles that decode by MBR over samples. With
  the other baselines samples become similar, and MBR has nothing to choose from. Only what lies
  above the best other sample counts, which is in expectation the gradient of the best reward
  (Walder and Karkhanis 2025, "Pass@K Policy Optimization").

CIDEr alone is raised by phrases that suit every patient. Three things counter this: the reward's
clinical term, a share of cross-entropy in the loss, and constraints on variety, findings and length
that an epoch must meet to be selected. The selection metric is that of the ``ce`` stage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from model.config import LanguageConfig
from model.decoding.search import Constraints, Generated, greedy, sample
from model.network.report_model import Encoded, ReportModel
from training.config import ScstConfig, SelectionConstraints
from training.stages import common
from training.stages.common import ReportGenerator, Rows, StudySplits
from training.stages.scst_reward import Reward
from training.stages.validation import validate_generation
from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig

log = logging.getLogger(__name__)

_REDACTED = "xxxx"
GREEDY_EVERY = 4  # studies; one of them gets a greedy reward for the log where it is no baseline


def train_scst(
    generator: ReportGenerator, studies: StudySplits, config: ScstConfig, context: RunContext
) -> Mapping[str, float]:
    """Train the generator's model in place, to the best epoch that meets the constraints.

    Dropout is off, so the sampled and the differentiated policy are the same. The backbone, and
    with it the index, does not change. The log has ``policy`` (the self-critical loss), ``reward``
    of the samples and ``greedy_reward`` of the greedy reports (of a quarter of the studies where
    they are not the baseline).

    Returns the selected epoch's row of the log; ``epoch`` 0 stands for the initial weights.
    """
    model, tokenizer, train = generator.model, generator.tokenizer, studies.train
    processes, device = context.processes, context.device
    reports = common.TrainingReports(generator, train)
    policy_decoding = generator.decoding.model_copy(
        update={"block_trigrams": False, "trigram_penalty": 0.0, "language": LanguageConfig()}
    )
    constraints = Constraints.of(policy_decoding, tokenizer)
    reward = Reward(reports.texts, config.reward, max_length=model.config.max_length,
                    protocol=generator.protocol)  # fmt: skip
    greedy_every = 1 if config.baseline == "greedy" else GREEDY_EVERY

    def score(drafts: Generated, rows: Sequence[int]) -> dict[str, Tensor]:
        texts = [tokenizer.decode(row) for row in drafts.ids.tolist()]
        ended = (drafts.ids == tokenizer.eos_id).any(1).tolist()
        return {name: torch.from_numpy(values) for name, values in reward(texts, ended, rows).items()}

    def train_step(batch: Rows, random: torch.Generator) -> dict[str, Tensor]:
        local = processes.rows(len(batch))
        local_ids = batch[local]
        encoded = model.encode(*reports.inputs(batch, local, random))
        with torch.no_grad():
            samples = sample(model, encoded, constraints, tokenizer.bos_id, count=config.samples,
                             generator=_on(device, random), temperature=config.temperature,
                            rng_slice=(local.start, len(batch)))  # fmt: skip
            scores = score(samples, local_ids.repeat(config.samples).tolist())
            rewards = scores["reward"].view(len(local_ids), config.samples)
            greedy_rewards = torch.zeros(0, dtype=torch.float64)
            # every n-th study of the whole batch, whatever the number of processes
            greedy_rows = np.arange(-local.start % greedy_every, len(local_ids), greedy_every)
            if greedy_rows.size:
                some = encoded.select(torch.from_numpy(greedy_rows).to(device))
                drafts = greedy(model, some, constraints, tokenizer.bos_id)
                greedy_rewards = score(drafts, local_ids[greedy_rows].tolist())["reward"]
            baseline = greedy_rewards if config.baseline == "greedy" else config.baseline
            advantage = advantages(rewards, baseline).flatten().to(device, torch.float32)
        log_probs = policy_log_probs(model, encoded, samples, constraints, tokenizer.bos_id, config.samples,
                                     config.temperature)  # fmt: skip
        words = processes.total((samples.ids != 0).sum())
        policy = -(advantage.unsqueeze(1) * log_probs).sum() / words
        means = {name: values.sum() / (len(batch) * config.samples) for name, values in scores.items()}
        greedy_mean = greedy_rewards.sum() / -(-len(batch) // greedy_every)
        losses = {"loss": policy, "policy": policy, **means, "greedy_reward": greedy_mean}
        if config.nll_weight:
            nll = reports.nll(encoded, batch, local)
            losses |= {"loss": (1 - config.nll_weight) * policy + config.nll_weight * nll, "nll": nll}
        return losses

    chosen = studies.val[: config.validate_limit]
    start: dict[str, float] = {}

    def validate() -> Mapping[str, float]:
        scores, texts = validate_generation(generator, chosen, reports.reports, context)
        row = {**scores, "redacted": sum(_REDACTED in text.split() for text in texts) / len(texts)}
        return {**row, "guards": float(not violated_constraints(row, start, config.guards))}

    module = _EvalModeModule(model)
    optimizer = common.build_optimizer(model, backbone_lr=0.0, head_lr=config.lr, weight_decay=0.0)
    selection = LoopConfig("scst", select="selection", eligible="guards", patience=config.patience)
    loop = Loop(selection if chosen else LoopConfig("scst"), context, module, optimizer)
    before = loop.evaluate_initial(validate) if chosen else {}
    start.update({name.removeprefix("val_"): value for name, value in before.items()})
    if chosen:
        _warn_of_weak_start(start, config.guards)
    steps = -(-len(train) // config.batch_size)
    history = loop.fit(common.shuffled_batches(len(train), steps, context.seed, 31), epochs=config.epochs, steps=steps,
                       train_step=train_step, validate=validate if chosen else None)  # fmt: skip
    if chosen and history.best_epoch < 0:
        log.warning("scst: no epoch within the selection constraints beat the initial weights; they are kept")
        return before
    return history.selected_row()


def advantages(rewards: Tensor, baseline: Tensor | Literal["leave_one_out", "best_other"]) -> Tensor:
    """How far each sample's reward lies above its baseline: rewards (B, n) -> (B, n).

    ``baseline`` is (B,) rewards of the greedy reports; or, of two samples or more, the mean of the
    others (``leave_one_out``), or the best of them (``best_other``), where only the best sample has
    an advantage.
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
    """Log-probabilities, with gradient, of ``count`` sampled drafts a study: (B * count, T).

    They equal those of ``model.decoding.search.sample`` under the same constraints and temperature;
    0 after the end.
    """
    length = int((drafts.ids != 0).sum(1).max())
    ids = drafts.ids[:, :length]
    inputs = torch.cat([torch.full_like(ids[:, :1], bos_id), ids[:, :-1]], dim=1)
    each = torch.arange(encoded.source.shape[0], device=ids.device).repeat_interleave(count)
    logits = model(encoded.select(each), inputs).float()
    forbidden = torch.zeros(length, logits.shape[2], dtype=torch.bool, device=ids.device)
    forbidden[:, list(constraints.suppress)] = True
    forbidden[: constraints.min_length, constraints.eos_id] = True
    log_probs = (logits.masked_fill(forbidden, float("-inf")) / temperature).log_softmax(-1)
    chosen: Tensor = log_probs.gather(2, ids.unsqueeze(2)).squeeze(2).masked_fill(ids == 0, 0.0)
    return chosen


def violated_constraints(
    row: Mapping[str, float], start: Mapping[str, float], limits: SelectionConstraints
) -> list[str]:
    """Names of the constraints that a validation row violates; ``start`` is the row of the initial
    weights, which itself violates nothing (``start`` is then empty).
    """
    if not start:
        return []
    length = row["mean_length"] / max(start["mean_length"], 1e-9)
    met = {
        "distinct": row["distinct"] >= max(limits.distinct * start["distinct"], limits.least_distinct),
        "label_f1": row["label_f1_micro"] >= limits.label_f1 * start["label_f1_micro"],
        "length": 1 - limits.length <= length <= 1 + limits.length,
        "redacted": row["redacted"] <= start["redacted"] + limits.redacted,
    }
    return [name for name, fine in met.items() if not fine]


def _warn_of_weak_start(start: Mapping[str, float], limits: SelectionConstraints) -> None:
    """Warn where the initial drafts have too little variety or findings for the constraints."""
    if start["distinct"] < limits.least_distinct:
        log.warning("scst: only %.1f %% of the initial validation drafts are distinct, less than the floor of "
                    "%.1f %%. The model writes nearly the same report for all studies, and SCST amplifies that; train "
                    "longer by cross-entropy.", 100 * start["distinct"], 100 * limits.least_distinct)  # fmt: skip
    if not start["label_f1_micro"]:
        log.warning("scst: the initial validation drafts name no correct finding, so the constraint on label F1 has no "
                    "effect")  # fmt: skip


class _EvalModeModule(common.FrozenPartsModule):
    """The model in eval mode throughout: no dropout, normalisation statistics unchanged."""

    def __init__(self, model: ReportModel) -> None:
        super().__init__(model, train_backbone=False)

    def train(self, mode: bool = True) -> _EvalModeModule:
        nn.Module.train(self, False)
        return self


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on ``device`` that continues the randomness of a step."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator(device).manual_seed(seed)
