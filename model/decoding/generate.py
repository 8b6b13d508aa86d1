"""From encoded studies to reports by the configured method: beam or greedy search, reranking, or MBR decoding.

Reranking and MBR decoding start from candidates: the beam's report and sampled ones. Every study
draws from the same seeded noise, so its result does not depend on other studies in the batch or on
earlier calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from model.config import DecodingConfig, LanguageConfig
from model.decoding.attested import AttestedText
from model.decoding.mbr import MbrSearch, Reading, Sentence
from model.decoding.mbr_table import MbrTable
from model.decoding.search import NEVER, Constraints, Generated, autoregressive_decode, beam_search, greedy
from model.network.report_model import Encoded, ReportModel, inputs_of
from model.registry import DECODERS
from model.text.labeler import FINDINGS, NO_FINDING, label_report
from model.text.statements import ORGANS, claims, disagrees, is_fragment, organ_of, refers_to_prior
from model.text.tokenizer import COMMA, END_OF_SENTENCE, Tokenizer, split_sentences

CANDIDATE_SEED = 20


@dataclass(frozen=True)
class DecodeInputs:
    """What a decoder takes; see ``generate``. ``constraints`` are those of ``config``."""

    model: ReportModel
    encoded: Encoded
    tokenizer: Tokenizer
    config: DecodingConfig
    constraints: Constraints
    beam_size: int | None = None
    study: Tensor | None = None
    findings: Tensor | None = None
    mbr_table: MbrTable | None = None

    def embeddings(self) -> Tensor:
        """``study``; raises ValueError without retrieval."""
        if self.study is None:
            raise ValueError(
                f"decoding method {self.config.method!r} needs study embeddings; use 'beam' for a model without "
                "retrieval"
            )
        return self.study


def generate(
    model: ReportModel,
    encoded: Encoded,
    tokenizer: Tokenizer,
    config: DecodingConfig,
    *,
    beam_size: int | None = None,
    study: Tensor | None = None,
    findings: Tensor | None = None,
    mbr_table: MbrTable | None = None,
) -> Generated:
    """Decode a report for every study of ``encoded`` by the configured method.

    Args:
        model: in eval mode.
        encoded: B studies.
        tokenizer: of the model.
        config: method and constraints.
        beam_size: overrides the configured one.
        study: (B, E) study embeddings, unit length; ``rerank`` and ``consensus`` need them.
        findings: (B, 14) probabilities by the finding classifier, for ``consensus``, or None.
        mbr_table: of the training cases; ``consensus`` needs it.

    Raises:
        ValueError: ``rerank`` or ``consensus`` without their inputs.
    """
    constraints = Constraints.of(config, tokenizer, mbr_table)
    inputs = DecodeInputs(model, encoded, tokenizer, config, constraints, beam_size, study, findings, mbr_table)
    generated: Generated = DECODERS.get(config.method)(inputs)
    return generated


def decode_beam(inputs: DecodeInputs) -> Generated:
    """Methods ``beam`` and ``greedy``."""
    return beam_or_greedy(
        inputs.model, inputs.encoded, inputs.constraints, inputs.tokenizer.bos_id, inputs.config, inputs.beam_size
    )


def decode_rerank(inputs: DecodeInputs) -> Generated:
    """Method ``rerank``."""
    study, ids = inputs.embeddings(), _candidates(inputs)
    return _rerank(inputs.model, inputs.encoded, inputs.constraints, inputs.tokenizer.bos_id, inputs.config, study, ids)


def decode_consensus(inputs: DecodeInputs) -> Generated:
    """Method ``consensus``."""
    study = inputs.embeddings()
    if inputs.mbr_table is None:
        raise ValueError("decoding method 'consensus' needs the table of the training cases; use 'rerank' without it")
    return _mbr_decode(
        inputs.model, inputs.encoded, inputs.constraints, inputs.tokenizer, inputs.config, study, inputs.findings,
        inputs.mbr_table, _candidates(inputs),
    )  # fmt: skip


def _candidates(inputs: DecodeInputs) -> Tensor:
    """Ids (B, 1 + candidates, T): the beam's report and sampled ones."""
    best, bos_id = decode_beam(inputs), inputs.tokenizer.bos_id
    return draw_candidates(inputs.model, inputs.encoded, inputs.constraints, bos_id, inputs.config, best)


def beam_or_greedy(
    model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int, config: DecodingConfig,
    beam_size: int | None = None,
) -> Generated:  # fmt: skip
    """The most probable report that beam search finds; ``beam_size`` overrides the configured one, 1 is greedy."""
    beams = beam_size or (1 if config.method == "greedy" else config.beam_size)
    if beams == 1:
        return greedy(model, encoded, constraints, bos_id)
    if not config.trigram_penalty_in_beams:
        constraints = replace(constraints, trigram_penalty=0.0)
    return beam_search(
        model, encoded, constraints, bos_id, beams, config.length_penalty,
        finished_beams_occupy_slots=config.finished_beams_occupy_slots,
    )  # fmt: skip


@torch.no_grad()
def draw_candidates(
    model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int, config: DecodingConfig,
    best: Generated,
) -> Tensor:  # fmt: skip
    """``best`` and the sampled reports: (B, 1 + candidates, T)."""
    noise = torch.Generator().manual_seed(CANDIDATE_SEED)
    drawn = autoregressive_decode(
        model, encoded, constraints, bos_id, config.candidates, noise, config.temperature, sampling=True, shared=True
    )
    return torch.cat([best.ids.unsqueeze(1), drawn.ids.view(len(best.ids), config.candidates, -1)], dim=1)


@torch.no_grad()
def _rerank(
    model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int, config: DecodingConfig,
    study: Tensor, ids: Tensor,
) -> Generated:  # fmt: skip
    """The best of the candidates (B, n, T) by mean log-probability and similarity to the study."""
    log_probs, mean, image_text_similarity = score_candidates(model, encoded, constraints, bos_id, study, ids)
    score = mean + config.similarity_weight * image_text_similarity
    rows, winner = torch.arange(len(ids), device=ids.device), score.argmax(dim=1)
    return Generated(ids[rows, winner], log_probs[rows, winner], score[rows, winner])


@torch.no_grad()
def score_candidates(
    model: ReportModel, encoded: Encoded, constraints: Constraints, bos_id: int, study: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Score candidates for reranking.

    The similarity is the cosine of the study embedding and the text tower's embedding of the
    candidate, for which the retriever was trained. A phrase that fits every patient is probable,
    but not similar to the study's images.

    Args:
        model: in eval mode.
        encoded: B studies.
        constraints: with which the candidates were generated.
        bos_id: of the tokenizer.
        study: (B, E) study embeddings, unit length.
        ids: (B, n, T) candidates.

    Returns:
        Log-probability of each word (B, n, T), its mean over each candidate (B, n), and the
        similarity (B, n).
    """
    texts = inputs_of(ids, bos_id).flatten(0, 1)
    log_probs = _log_probs(model, encoded, constraints, texts, ids).view(ids.shape)
    length = (ids != 0).sum(-1).clamp(min=1)
    reports = model.text_tower(texts).view(*ids.shape[:2], -1)  # the tower reads bos, words, eos, at most 60
    return log_probs, log_probs.sum(-1) / length, (reports * study.unsqueeze(1)).sum(-1)


@torch.no_grad()
def _mbr_decode(
    model: ReportModel, encoded: Encoded, constraints: Constraints, tokenizer: Tokenizer, config: DecodingConfig,
    study: Tensor, findings: Tensor | None, mbr_table: MbrTable, ids: Tensor,
) -> Generated:  # fmt: skip
    """The report of the highest expected reward that the sentences of the candidates (B, n, T) can form."""
    chosen, rewards = mbr_search(tokenizer, config, study, findings, mbr_table, ids)
    one = chosen.unsqueeze(1)
    log_probs = _log_probs(model, encoded, constraints, inputs_of(chosen, tokenizer.bos_id), one)
    return Generated(chosen, log_probs, rewards)


def mbr_search(
    tokenizer: Tokenizer, config: DecodingConfig, study: Tensor, findings: Tensor | None, mbr_table: MbrTable,
    ids: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Find the report of the highest expected reward for each study.

    Args:
        tokenizer: of the model.
        config: ``consensus`` holds the weights and bounds of the search.
        study: (B, E) study embeddings, unit length.
        findings: (B, 14) probabilities by the finding classifier, or None.
        mbr_table: of the training cases.
        ids: (B, n, T) candidates.

    Returns:
        Reports (B, T) and their expected rewards (B,).
    """
    embedded = study.float().cpu().numpy()
    classified = None if findings is None else findings.float().cpu().numpy()
    allowed = partial(_is_allowed, tokenizer, config.language, Constraints.of(config, tokenizer, mbr_table).attested)
    chosen = torch.zeros_like(ids[:, 0])
    rewards = []
    for row, candidates in enumerate(ids.tolist()):
        search = MbrSearch(
            mbr_table.expected_statistics(embedded[row], config.consensus.temperature),
            None if classified is None else classified[row],
            lambda sentence: _read(tokenizer, sentence),
            config.consensus,
            config.language,
            tokenizer.comma_id,
        )
        reports = [written for words in candidates if (written := tuple(filter(allowed, _sentences(tokenizer, words))))]
        if not reports:  # no candidate has a complete sentence that may be used: keep the first unchanged
            chosen[row] = ids[row, 0]
            rewards.append(0.0)
            continue
        report, reward = search.compose(reports, ids.shape[2] - 1)
        words = [*(word for sentence in report for word in sentence), tokenizer.eos_id]
        chosen[row, : len(words)] = torch.tensor(words, device=ids.device)
        rewards.append(reward)
    return chosen, torch.tensor(rewards, device=ids.device)


def _sentences(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Sentence, ...]:
    """Complete sentences of a report; a truncated last one is dropped."""
    end = next((position for position, token in enumerate(ids) if token in (0, tokenizer.eos_id)), len(ids))
    words = [tokenizer.tokens[token] for token in ids[:end]]
    return tuple(tuple(ids[a:b]) for a, b in split_sentences(words) if words[b - 1] == "." and b - a > 1)


@lru_cache(maxsize=50_000)
def _is_allowed(
    tokenizer: Tokenizer, language: LanguageConfig, attested: AttestedText | None, sentence: Sentence
) -> bool:
    """Whether a draft may hold a sentence."""
    text = _words(tokenizer, sentence).removesuffix(END_OF_SENTENCE)
    if language.no_priors and (refers_to_prior(text) or is_fragment(text) or disagrees(text)):
        return False
    return attested is None or attested.holds(sentence)


@lru_cache(maxsize=50_000)
def _read(tokenizer: Tokenizer, sentence: Sentence) -> Reading:
    labels = label_report(tokenizer.decode(sentence))
    present, absent = (
        frozenset(row for row, name in enumerate(FINDINGS) if name != NO_FINDING and labels[name] == state)
        for state in ("present", "absent")
    )
    text = _words(tokenizer, sentence)
    organ = organ_of(text)
    return Reading(present, absent, claims(text), len(ORGANS) if organ is None else ORGANS.index(organ))


def _words(tokenizer: Tokenizer, sentence: Sentence) -> str:
    """A sentence without its commas, as ``model.text.statements`` reads it."""
    return tokenizer.decode(sentence).replace(f" {COMMA}", "")


def _log_probs(model: ReportModel, encoded: Encoded, constraints: Constraints, inputs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities at temperature 1 of given reports: inputs (B*n, T) shifted, ids (B, n, T) -> (B*n, T)."""
    each = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(ids.shape[1])
    logits: Tensor = model(encoded.select(each), inputs).float()
    logits[..., list(constraints.suppress)] = NEVER
    flat = ids.flatten(0, 1)
    gained = logits.log_softmax(-1).gather(2, flat.unsqueeze(-1)).squeeze(-1)
    log_probs: Tensor = gained.masked_fill(flat == 0, 0.0)
    return log_probs
