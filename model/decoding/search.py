"""Greedy, sampling and batched beam search over cached decoder steps.

All studies of a batch advance together; a study's hypotheses share its encoded images. A study's
result does not depend on other studies in the batch, except for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import DecodingConfig
from model.decoding.attested import AttestedText, attested_text
from model.decoding.mbr_table import MbrTable
from model.network.hypotheses import rows_of_studies
from model.network.report_model import Encoded, ReportModel
from model.text.statements import PRIOR_WORDS
from model.text.tokenizer import Tokenizer

NEVER = float("-inf")
_SHRINK_AT = 0.75  # share of unfinished studies at which the batch is copied without the finished ones


@dataclass(frozen=True)
class Generated:
    """Reports of a batch.

    Attributes:
        ids: (B, T) int64 without bos, with eos if one was generated, padded with 0.
        log_probs: (B, T) natural log-probability of each id under the model, 0 after the end.
        score: (B,) by which hypotheses were ranked.
    """

    ids: Tensor
    log_probs: Tensor
    score: Tensor


@dataclass(frozen=True)
class Constraints:
    """Ids of the tokens that a report must not contain, the penalties of repetition, the attested continuations."""

    suppress: tuple[int, ...]
    eos_id: int
    min_length: int
    block_trigrams: bool
    trigram_penalty: float = 0.0
    attested: AttestedText | None = None

    @classmethod
    def of(cls, config: DecodingConfig, tokenizer: Tokenizer, table: MbrTable | None = None) -> Constraints:
        """Constraints of a configuration; bos and pad are suppressed too.

        Raises:
            ValueError: ``language.attested`` without a table that has attested trigrams.
        """
        unwanted = (*config.suppress, *(PRIOR_WORDS if config.language.no_priors else ()))
        words = {tokenizer.id_of(word) for word in unwanted if word in tokenizer.tokens}
        suppress = tuple(sorted(words | {tokenizer.pad_id, tokenizer.bos_id}))
        attested = None
        if config.language.attested:
            if table is None:
                raise ValueError("decoding.language.attested needs the table of the training cases")
            attested = attested_text(table, tokenizer, suppress)
        return cls(
            suppress,
            tokenizer.eos_id,
            config.min_length,
            config.block_trigrams,
            config.trigram_penalty,
            attested,
        )

    def apply(self, scores: Tensor, history: Tensor, length: int) -> Tensor:
        """Set forbidden continuations of ``history`` (N, >= length) to -inf in ``scores`` (N, vocabulary), in place."""
        scores[:, list(self.suppress)] = NEVER
        if length < self.min_length:
            scores[:, self.eos_id] = NEVER
        if self.block_trigrams and length >= 3:
            scores[_repeating(history, length)] = NEVER
        if self.attested is not None:
            allowed = self.attested.continuations(history, length).to(scores.device)
            scores.masked_fill_(~allowed, NEVER)
            dead = scores.isneginf().all(1)  # its only continuations repeat a trigram
            scores[dead, self.eos_id] = 0.0
        return scores

    def penalise(self, log_probs: Tensor, history: Tensor, length: int) -> Tensor:
        """Subtract ``trigram_penalty`` for each trigram of ``history`` (N, >= length) that a continuation repeats.

        The published R2Gen code calls it ``block_trigrams``. Returns log-probabilities (N,
        vocabulary).
        """
        if not self.trigram_penalty or length < 3:
            return log_probs
        rows, words = _repeating(history, length)
        taken = torch.full(rows.shape, -self.trigram_penalty, dtype=log_probs.dtype, device=log_probs.device)
        return log_probs.index_put((rows, words), taken, accumulate=True)


def _repeating(history: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Rows, and the words that would repeat a trigram of the row, once per earlier occurrence."""
    pairs = history[:, : length - 2], history[:, 1 : length - 1]
    same = (pairs[0] == history[:, length - 2, None]) & (pairs[1] == history[:, length - 1, None])
    rows, positions = same.nonzero(as_tuple=True)
    return rows, history[rows, positions + 2]


@torch.no_grad()
def greedy(model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int) -> Generated:
    """The most probable token at each step."""
    return autoregressive_decode(model, encoded, constraints, bos_id, 1, None, 1.0)


@torch.no_grad()
def sample(
    model: ReportModel,
    encoded: Encoded,
    constraints: Constraints,
    bos_id: int,
    *,
    count: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    rng_slice: tuple[int, int] | None = None,
) -> Generated:
    """``count`` samples per study, in the order of the studies: ids (B*count, T).

    ``rng_slice`` (first, batch): the studies are part of a larger batch of ``batch`` studies, from
    index ``first``. Noise is drawn for the whole batch, so that each study gets the samples that it
    would get there.

    ``log_probs`` are those of the sampled distribution (constraints and temperature included): the
    policy.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; use greedy for the most probable token")
    part = None if rng_slice is None else (rng_slice[0] * count, rng_slice[1] * count)
    return autoregressive_decode(
        model, encoded, constraints, bos_id, count, generator, temperature, sampling=True, rng_slice=part
    )


def autoregressive_decode(
    model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int, count: int,
    generator: torch.Generator | None, temperature: float, *, sampling: bool = False, shared: bool = False,
    rng_slice: tuple[int, int] | None = None,
) -> Generated:  # fmt: skip
    """Greedy or sampled continuation of ``count`` hypotheses per study, without reordering: ids (B * count, T).

    ``shared`` uses the same Gumbel noise (count, vocabulary) of each step for every study.
    """
    limit, device, studies = model.config.max_length, encoded.source.device, encoded.source.shape[0]
    state = model.start(encoded, count)
    ids = torch.zeros(studies * count, limit, dtype=torch.int64, device=device)
    log_probs = torch.zeros(studies * count, limit, device=device)
    last = torch.full((studies * count,), bos_id, device=device)
    ended = torch.zeros(studies * count, dtype=torch.bool, device=device)
    rows = torch.arange(studies * count, device=device)  # of each hypothesis that is still in the batch
    for position in range(limit - 1):
        history = ids if len(rows) == len(ids) else ids[rows]
        scores = constraints.apply(state.step(last).float(), history, position)
        step_log_probs = (scores / temperature if sampling else scores).log_softmax(-1)
        if shared:
            gumbel = gumbel_noise(count, scores.shape[1], generator).to(device)
            chosen = (step_log_probs + gumbel.repeat(len(rows) // count, 1)).argmax(-1)
        elif sampling:
            chosen = _sampled(step_log_probs.exp(), generator, rng_slice)
        else:
            chosen = constraints.penalise(step_log_probs, history, position).argmax(-1)
        last = chosen.masked_fill(ended, 0)
        ids[rows, position] = last
        gained = step_log_probs.gather(1, chosen.unsqueeze(1)).squeeze(1)
        log_probs[rows, position] = gained.masked_fill(ended, 0)
        ended = ended | (last == constraints.eos_id)
        undone = (~ended.view(-1, count).all(dim=1)).nonzero().squeeze(1)
        if not len(undone):
            break
        if len(undone) <= _SHRINK_AT * (len(rows) // count) and not (sampling and not shared):
            kept = rows_of_studies(undone, count)
            rows, last, ended = rows[kept], last[kept], ended[kept]
            state.keep(undone)
    return Generated(ids, log_probs, log_probs.sum(1))


def gumbel_noise(count: int, vocabulary: int, generator: torch.Generator | None) -> Tensor:
    """Noise of one step of ``count`` hypotheses, (count, vocabulary), drawn on the CPU for every device."""
    uniform = torch.rand(count, vocabulary, generator=generator).clamp_(1e-9, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def _sampled(probabilities: Tensor, generator: torch.Generator | None, rng_slice: tuple[int, int] | None) -> Tensor:
    """One index per row, (N,), by exponential-race sampling, as in ``torch.multinomial``."""
    if rng_slice is None:
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    first, rows = rng_slice
    waits = probabilities.new_empty(rows, probabilities.shape[1]).exponential_(1, generator=generator)
    return (probabilities / waits[first : first + len(probabilities)]).argmax(-1)


@torch.no_grad()
def beam_search(
    model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int, beams: int, length_penalty: float,
    *, finished_beams_occupy_slots: bool = False,
) -> Generated:  # fmt: skip
    """The best finished hypothesis of each study, with ``beams`` live ones.

    Each step takes the 2*beams best continuations: those that end are candidates for the result,
    scored by log-probability / length**length_penalty; the best ``beams`` of the others stay live.
    With ``finished_beams_occupy_slots`` a step takes only the ``beams`` best, and those that end
    leave fewer live ones (the published R2Gen rule). A study is removed from the batch when no live
    hypothesis can exceed its best finished one.
    """
    limit, device, studies = model.config.max_length, encoded.source.device, encoded.source.shape[0]
    state = model.start(encoded, beams, branching=True)
    ids = torch.zeros(studies, beams, limit, dtype=torch.int64, device=device)
    token_log_probs = torch.zeros(studies, beams, limit, device=device)
    live = torch.full((studies, beams), NEVER, device=device)
    live[:, 0] = 0.0  # all beams start equal: only one may branch
    best_ids, best_log_probs = ids[:, 0].clone(), token_log_probs[:, 0].clone()
    best_score = torch.full((studies,), NEVER, device=device)
    last = torch.full((studies * beams,), bos_id, device=device)
    study = torch.arange(studies, device=device)  # of each row that is still in the batch
    max_length_divisor = (limit - 1 if length_penalty > 0 else 1) ** length_penalty
    for position in range(limit - 1):
        scores = constraints.apply(state.step(last).float(), ids.flatten(0, 1), position)
        step_log_probs = scores.log_softmax(-1)  # (N, vocabulary)
        ranked_by = constraints.penalise(step_log_probs, ids.flatten(0, 1), position).view(len(study), beams, -1)
        vocabulary = scores.shape[-1]
        taken = beams if finished_beams_occupy_slots else 2 * beams
        total, flat = (live.unsqueeze(-1) + ranked_by).flatten(1).topk(taken, dim=1)  # (B, taken)
        parent, token = flat // vocabulary, flat % vocabulary
        gained = step_log_probs.view(len(study), -1).gather(1, flat)
        length = position + 1
        ends = (token == constraints.eos_id) if length < limit - 1 else torch.ones_like(token, dtype=torch.bool)

        finished = (total / length**length_penalty).masked_fill(~ends, NEVER)
        score, winner = finished.max(dim=1)
        better = (score > best_score[study]).nonzero().squeeze(1)
        if len(better):
            winners, into = winner[better], study[better]
            source = parent[better, winners]
            best_ids[into], best_log_probs[into] = ids[better, source], token_log_probs[better, source]
            best_ids[into, position] = token[better, winners]
            best_log_probs[into, position] = gained[better, winners]
            best_score[into] = score[better]

        live = total.masked_fill(ends, NEVER)
        if not finished_beams_occupy_slots:
            live, kept = live.topk(beams, dim=1)  # (B, k)
            parent, token, gained = parent.gather(1, kept), token.gather(1, kept), gained.gather(1, kept)
        can_win = live / max_length_divisor > best_score[study].unsqueeze(1)
        undone = can_win.any(dim=1).nonzero().squeeze(1)
        if not len(undone):
            break
        history = parent.unsqueeze(2).expand_as(ids)
        ids, token_log_probs = ids.gather(1, history), token_log_probs.gather(1, history)
        ids[:, :, position], token_log_probs[:, :, position] = token, gained
        state.branch(parent)
        if len(undone) <= _SHRINK_AT * len(study):
            ids, token_log_probs, live, token = ids[undone], token_log_probs[undone], live[undone], token[undone]
            study = study[undone]
            state.keep(undone)
        last = token.flatten()
    return Generated(best_ids, best_log_probs, best_score)
