"""Beam search on masked caches and shrinking batches equals an uncached search."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.decoding.search import Constraints, Generated, beam_search, greedy
from model.network.report_model import Encoded, ReportModel
from model.network.writers.cmn import CmnState
from model.registry import WRITERS
from tests.support.decoding import (
    BOS,
    EOS,
    LIMIT,
    MODELS,
    PENALTY,
    STUDIES,
    TOKENIZER,
    constraints_of,
    encoded_by,
    lengths,
    model_of,
)

# --- the slow search --------------------------------------------------------------------------------------------------


def repeats(words: list[int]) -> dict[int, int]:
    """How often each continuation of ``words`` would repeat a trigram, as the published code counts."""
    trigrams: dict[tuple[int, int], list[int]] = {}
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        trigrams.setdefault((first, second), []).append(third)
    found = trigrams.get((words[-2], words[-1]), []) if len(words) >= 3 else []
    return {word: found.count(word) for word in found}


@torch.no_grad()
def next_log_probs(model: ReportModel, encoded: Encoded, rows: list[int], prefixes: list[list[int]]) -> Tensor:
    """Logits after whole prefixes by the teacher-forced pass: of study ``rows[i]`` after ``prefixes[i]``."""
    ids = torch.tensor([[BOS, *words] for words in prefixes])
    return model(encoded.select(torch.tensor(rows)), ids)[:, -1]


def constrained(logits: Tensor, words: list[int], rule: Constraints) -> tuple[list[float], list[float]]:
    """Log-probabilities of the next words, and those minus the penalty, which decide the choice."""
    logits = logits.clone()
    logits[list(rule.suppress)] = -math.inf
    if len(words) < rule.min_length:
        logits[EOS] = -math.inf
    again = repeats(words)
    if rule.block_trigrams:
        logits[list(again)] = -math.inf
    log_probs = logits.log_softmax(-1)
    chosen_by = log_probs.clone()
    for word, times in again.items():
        chosen_by[word] -= rule.trigram_penalty * times
    return log_probs.tolist(), chosen_by.tolist()


Hypotheses = list[tuple[float, list[int]]]


def slow_beams(
    model: ReportModel, encoded: Encoded, rule: Constraints, beams: int, alpha: float,
    finished_beams_occupy_slots: bool,
) -> list[tuple[list[int], float]]:  # fmt: skip
    """Ids (with eos) and score of each study, without a cache and without early stopping."""
    studies = range(len(encoded.source))
    live: list[Hypotheses] = [[(0.0, [])] for _ in studies]
    best: list[tuple[list[int], float]] = [([], -math.inf)] * len(studies)
    for length in range(1, LIMIT):
        rows = [(study, total, words) for study in studies for total, words in live[study]]
        if not rows:
            break
        logits = next_log_probs(model, encoded, [study for study, _, _ in rows], [words for _, _, words in rows])
        candidates: list[list[tuple[float, list[int], int]]] = [[] for _ in studies]
        for (study, total, words), row in zip(rows, logits, strict=True):
            gains, tokens = torch.tensor(constrained(row, words, rule)[1]).topk(2 * beams)
            candidates[study] += [
                (total + gain, words, token) for gain, token in zip(gains.tolist(), tokens.tolist(), strict=True)
            ]
        for study in studies:
            ranked = sorted(candidates[study], key=lambda found: -found[0])[
                : beams if finished_beams_occupy_slots else 2 * beams
            ]
            live[study] = []
            for total, before, token in ranked:
                words = [*before, token]
                if token == EOS or length == LIMIT - 1:
                    score = total / length**alpha
                    if score > best[study][1]:
                        best[study] = words, score
                elif len(live[study]) < beams and total > -math.inf:
                    live[study].append((total, words))
    return best


RULES = {  # finished beams free their slots, or occupy them as in the published code: constraints, alpha, occupy
    "free": ({}, 1.0, False),
    "free by sum": ({}, 0.0, False),
    "free without repeated trigrams": ({"block_trigrams": True}, 0.7, False),
    "free with penalty": ({"trigram_penalty": 0.4}, 1.0, False),
    "published": ({}, 0.0, True),
    "published with penalty": ({"trigram_penalty": PENALTY, "suppress": ()}, 0.0, True),
    "published by length": ({}, 1.0, True),
}


@pytest.mark.parametrize(("seed", "ends"), MODELS)
@pytest.mark.parametrize(
    ("name", "beams"), [*((name, 3) for name in RULES), ("free", 2), ("free", 5), ("published", 2), ("published", 5)]
)
def test_batched_beam_search_equals_the_uncached_search(seed: int, ends: float, name: str, beams: int) -> None:
    changes, alpha, finished_beams_occupy_slots = RULES[name]
    model, rule = model_of(seed, ends), constraints_of(**changes)
    encoded = encoded_by(model)
    result = beam_search(
        model, encoded, rule, BOS, beams, alpha, finished_beams_occupy_slots=finished_beams_occupy_slots
    )
    expected = slow_beams(model, encoded, rule, beams, alpha, finished_beams_occupy_slots)
    assert [[i for i in row if i] for row in result.ids.tolist()] == [ids for ids, _ in expected]
    assert result.score.tolist() == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("studies", [1, 2, 4])
def test_beam_search_with_other_batch_sizes_and_the_published_norm(studies: int) -> None:
    model, rule = model_of(5, 2.0, "r2gen"), constraints_of()
    encoded = encoded_by(model, studies)
    result = beam_search(model, encoded, rule, BOS, 4, 0.0, finished_beams_occupy_slots=True)
    expected = slow_beams(model, encoded, rule, 4, 0.0, True)
    assert [[i for i in row if i] for row in result.ids.tolist()] == [ids for ids, _ in expected]


def test_the_two_rules_for_finished_beams_differ() -> None:
    model = model_of(5, 2.0)
    kept, freed = (
        beam_search(model, encoded_by(model), constraints_of(), BOS, 3, 0.0, finished_beams_occupy_slots=occupy).ids
        for occupy in (True, False)
    )
    assert not torch.equal(kept, freed)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS.built_in())
def test_steps_of_branching_hypotheses_equal_whole_prefixes(writer: str) -> None:
    """Random parents, words and finished studies: a step reads the words of its ancestors and no others."""
    model, beams = model_of(2, 2.0, writer=writer), 4
    encoded, draw = encoded_by(model), torch.Generator().manual_seed(3)
    state = model.start(encoded, beams, branching=True)
    study = torch.arange(STUDIES)
    prefixes = torch.full((STUDIES, beams, 1), BOS)
    with torch.no_grad():
        for length in range(1, LIMIT):
            stepped = state.step(prefixes[..., -1].flatten())
            whole = model(encoded.select(study.repeat_interleave(beams)), prefixes.flatten(0, 1))[:, -1]
            torch.testing.assert_close(stepped, whole, atol=2e-5, rtol=1e-4)
            parents = torch.randint(beams, (len(study), beams), generator=draw)
            state.branch(parents)
            prefixes = prefixes.gather(1, parents.unsqueeze(2).expand_as(prefixes))
            words = torch.randint(4, len(TOKENIZER), (len(study), beams, 1), generator=draw)
            prefixes = torch.cat([prefixes, words], dim=2)
            if length in (3, 4, 11):
                left = torch.randperm(len(study), generator=draw)[: len(study) * 3 // 4]
                state.keep(left)
                prefixes, study = prefixes[left], study[left]
    assert len(study) == 3


@pytest.mark.parametrize("writer", WRITERS.built_in())
def test_steps_of_single_hypotheses_equal_whole_prefixes_in_a_shrinking_batch(writer: str) -> None:
    model, count = model_of(2, 2.0, writer=writer), 3
    encoded = encoded_by(model)
    state = model.start(encoded, count)
    ids = torch.randint(4, len(TOKENIZER), (STUDIES, count, 8), generator=torch.Generator().manual_seed(1))
    ids[..., 0] = BOS
    study = torch.arange(STUDIES)
    with torch.no_grad():
        for position in range(8):
            if position in (2, 5):
                left = torch.arange(len(study) - 1, -1, -2)  # in another order
                state.keep(left)
                ids, study = ids[left], study[left]
            stepped = state.step(ids[..., position].flatten())
            whole = model(encoded.select(study.repeat_interleave(count)), ids[..., : position + 1].flatten(0, 1))
            torch.testing.assert_close(stepped, whole[:, -1], atol=2e-5, rtol=1e-4)


# --- finished studies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "ends"), [(2, 3.0), (7, 4.0), (9, 4.0)])  # of each some end early, some late
@pytest.mark.parametrize("method", ["greedy", "free", "published"])
def test_removing_finished_studies_from_the_batch_changes_no_other_study(
    seed: int, ends: float, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def keep(self: CmnState, studies: Tensor) -> None:
        sizes.append(len(studies))
        original(self, studies)

    def write(encoded: Encoded) -> Generated:
        if method == "greedy":
            return greedy(model, encoded, constraints_of(trigram_penalty=PENALTY), BOS)
        return beam_search(
            model, encoded, constraints_of(), BOS, 3, 1.0, finished_beams_occupy_slots=method == "published"
        )

    model = model_of(seed, ends)
    encoded = encoded_by(model)
    alone = [write(encoded.select(torch.tensor([row]))) for row in range(STUDIES)]
    original = CmnState.keep
    monkeypatch.setattr(CmnState, "keep", keep)
    together = write(encoded)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes, "no study left the batch, the test shows nothing"
    assert len(set(lengths(together))) >= 3
    for row, single in enumerate(alone):
        assert torch.equal(single.ids[0], together.ids[row])
        torch.testing.assert_close(single.log_probs[0], together.log_probs[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(single.score[0], together.score[row], atol=1e-4, rtol=1e-4)


# --- trigrams ---------------------------------------------------------------------------------------------------------


def test_penalises_each_earlier_occurrence_of_a_trigram() -> None:
    rule = constraints_of(trigram_penalty=0.5)
    a, b, c, d = range(5, 9)
    history = torch.tensor([
        [a, b, c, a, b, c, a, b, 0],  # c followed (a, b) twice
        [a, b, c, a, b, d, a, b, 0],  # c once, d once
        [a, a, a, a, a, a, a, a, 0],  # (a, a, a) occurs six times
        [a, b, c, d, b, c, a, c, 0],  # (a, c) is new
    ])  # fmt: skip
    before = torch.randn(4, len(TOKENIZER))
    deducted = before - rule.penalise(before, history, 8)
    expected = torch.zeros(4, len(TOKENIZER))
    expected[0, c], expected[1, c], expected[1, d], expected[2, a] = 1.0, 0.5, 0.5, 3.0
    torch.testing.assert_close(deducted, expected, atol=1e-5, rtol=0)
    assert [dict(repeats(row[:8])) for row in history.tolist()] == [{c: 2}, {c: 1, d: 1}, {a: 6}, {}]
    for length in (0, 1, 2):
        assert torch.equal(rule.penalise(before, history, length), before)
    assert torch.equal(constraints_of().penalise(before, history, 8), before)
    # words after the length are not read
    assert torch.equal(rule.penalise(before, history, 5), rule.penalise(before, history[:, :5], 5))


@pytest.mark.parametrize(("seed", "ends"), MODELS)
@pytest.mark.parametrize("penalty", [0.0, 0.2, PENALTY])
def test_greedy_equals_the_uncached_search_with_each_trigram_penalty(seed: int, ends: float, penalty: float) -> None:
    model, rule = model_of(seed, ends), constraints_of(trigram_penalty=penalty, suppress=())
    encoded = encoded_by(model)
    result = greedy(model, encoded, rule, BOS)
    most = 0
    written: list[list[int]] = [[] for _ in range(STUDIES)]
    gained: list[list[float]] = [[] for _ in range(STUDIES)]
    while live := [row for row, words in enumerate(written) if len(words) < LIMIT - 1 and EOS not in words]:
        for study, logits in zip(
            live, next_log_probs(model, encoded, live, [written[row] for row in live]), strict=True
        ):
            words = written[study]
            log_probs, chosen_by = constrained(logits, words, rule)
            most = max([most, *repeats(words).values()])
            words.append(max(range(len(TOKENIZER)), key=lambda token: chosen_by[token]))
            gained[study].append(log_probs[words[-1]])
    for study, (words, gains) in enumerate(zip(written, gained, strict=True)):
        assert [i for i in result.ids[study].tolist() if i] == words
        assert result.log_probs[study, : len(words)].tolist() == pytest.approx(gains, abs=1e-4)  # without the penalty
        assert float(result.score[study]) == pytest.approx(sum(gains), abs=1e-3)
    if penalty == 0.2:
        assert most >= 2  # a trigram stood twice and was still considered
    without = greedy(model, encoded, constraints_of(suppress=()), BOS).ids
    assert torch.equal(result.ids, without) == (penalty == 0)
