"""Decoding: cached equals uncached, batched equals single, wide beams equal an exhaustive search."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from model.config import DecodingConfig
from model.decoding.generate import generate
from model.decoding.search import Constraints, Generated, beam_search, greedy, sample
from model.network.report_model import Encoded, ReportModel
from tests.support.tiny import IMAGE_SIZE, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FREE = Constraints.of(DecodingConfig(min_length=0), TOKENIZER)


def encoded(model: ReportModel, studies: int = 4) -> Encoded:
    """Random studies, the last one with its second view missing, the first with a case missing."""
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(studies, 2, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    views = torch.tensor([[0, 1]]).expand(studies, 2)
    mask = torch.ones(studies, 2, dtype=torch.bool)
    mask[-1, 1] = False
    cases = torch.nn.functional.normalize(torch.randn(studies, 3, 16, generator=generator), dim=-1)
    found = torch.ones(studies, 3, dtype=torch.bool)
    found[0, 2] = False
    with torch.no_grad():
        return model.encode(model.encode_images(images, views, mask), cases, found)


def uncached_log_probs(model: ReportModel, source: Encoded, ids: Tensor) -> Tensor:
    """Log-probabilities of every next token by the teacher-forced pass: ids (B, T) with bos -> (B, T, V)."""
    with torch.no_grad():
        return model(source, ids).log_softmax(-1)


@pytest.fixture(scope="module")
def model() -> ReportModel:
    return tiny_model(3)


@pytest.fixture(scope="module")
def source(model: ReportModel) -> Encoded:
    return encoded(model)


def test_cached_steps_equal_the_uncached_pass(model: ReportModel, source: Encoded) -> None:
    ids = torch.randint(4, len(TOKENIZER), (4, 20), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = TOKENIZER.bos_id
    state = model.start(source, 1)
    with torch.no_grad():
        stepped = torch.stack([state.step(ids[:, t]) for t in range(20)], dim=1)
        whole = model(source, ids)
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=1e-5)


RERANK = DecodingConfig(method="rerank", candidates=6, similarity_weight=5.0, min_length=0)


def study_embeddings(count: int = 4) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(8)), dim=-1)


@pytest.mark.parametrize(
    ("config", "beams"),
    [*((DecodingConfig(length_penalty=alpha), beams) for alpha in (0.0, 1.0) for beams in (1, 3, 5)), (RERANK, None)],
)
def test_batched_equals_single(model: ReportModel, source: Encoded, config: DecodingConfig, beams: int | None) -> None:
    study = study_embeddings()
    together = generate(model, source, TOKENIZER, config, beam_size=beams, study=study)
    for row in range(4):
        one, its_study = source.select(torch.tensor([row])), study[row : row + 1]
        alone = generate(model, one, TOKENIZER, config, beam_size=beams, study=its_study)
        assert torch.equal(alone.ids[0], together.ids[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_returned_log_probs_equal_the_uncached_pass(model: ReportModel, source: Encoded, beams: int) -> None:
    result = generate(model, source, TOKENIZER, DecodingConfig(suppress=(), min_length=0), beam_size=beams)
    ids = torch.cat([torch.full((4, 1), TOKENIZER.bos_id), result.ids[:, :-1]], dim=1)
    with torch.no_grad():
        logits = model(source, ids)
    logits[:, :, [TOKENIZER.pad_id, TOKENIZER.bos_id]] = float("-inf")
    expected = logits.log_softmax(-1).gather(2, result.ids.unsqueeze(-1)).squeeze(-1)
    expected = expected.masked_fill(result.ids == 0, 0.0)
    torch.testing.assert_close(result.log_probs, expected, atol=1e-4, rtol=1e-4)


LENGTH = 3


@pytest.fixture(scope="module")
def exhaustive() -> tuple[ReportModel, Encoded, list[tuple[list[list[int]], torch.Tensor]]]:
    """All reports of 1 to ``LENGTH`` tokens and their log-probabilities, by length, scored uncached."""
    model = tiny_model(1, max_length=LENGTH + 1)
    source = encoded(model, 2).select(torch.tensor([1]))
    words = [i for i in range(len(TOKENIZER)) if i not in FREE.suppress and i != TOKENIZER.eos_id]
    scored = []
    for count in range(LENGTH):
        ends = [TOKENIZER.eos_id] if count < LENGTH - 1 else [TOKENIZER.eos_id, *words]
        rows = [[*body, end] for body in itertools.product(words, repeat=count) for end in ends]
        ids = torch.tensor(rows)
        with torch.no_grad():
            logits = model(
                source.select(torch.zeros(len(rows), dtype=torch.int64)),
                torch.cat([torch.full((len(rows), 1), TOKENIZER.bos_id), ids[:, :-1]], dim=1),
            )
        logits[:, :, list(FREE.suppress)] = float("-inf")
        scored.append((rows, logits.log_softmax(-1).gather(2, ids.unsqueeze(-1)).squeeze(-1).sum(1)))
    return model, source, scored


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_wide_beam_equals_the_exhaustive_search(
    exhaustive: tuple[ReportModel, Encoded, list[tuple[list[list[int]], torch.Tensor]]], alpha: float
) -> None:
    model, source, scored = exhaustive
    best = [
        (float((sums / length**alpha).max()), rows[int(sums.argmax())]) for length, (rows, sums) in enumerate(scored, 1)
    ]
    expected_score, expected_ids = max(best)
    result = beam_search(model, source, FREE, TOKENIZER.bos_id, len(TOKENIZER) ** 2, alpha)
    assert [i for i in result.ids[0].tolist() if i] == expected_ids
    assert float(result.score[0]) == pytest.approx(expected_score, abs=1e-4)


def test_sampling_is_reproducible_and_follows_the_policy(model: ReportModel, source: Encoded) -> None:
    def draw(count: int) -> Generated:
        return sample(model, source, FREE, TOKENIZER.bos_id, count=count, generator=torch.Generator().manual_seed(7))

    assert torch.equal(draw(2).ids, draw(2).ids)
    first = draw(800).ids[:, 0].view(4, 800)
    start = torch.full((4, 1), TOKENIZER.bos_id)
    log_probs = uncached_log_probs(model, source, start)[:, 0]
    log_probs[:, list(FREE.suppress)] = float("-inf")
    for row in range(4):
        observed = torch.bincount(first[row], minlength=len(TOKENIZER)).float() / 800
        assert float((observed - log_probs[row].softmax(-1)).abs().max()) < 0.06


def test_suppressed_words_and_short_reports_are_never_generated(model: ReportModel, source: Encoded) -> None:
    free = greedy(model, source, FREE, TOKENIZER.bos_id)
    common = TOKENIZER.tokens[int(free.ids[0, 0])]
    config = DecodingConfig(suppress=(common,), min_length=8)
    for beams in (1, 3):
        result = generate(model, source, TOKENIZER, config, beam_size=beams)
        assert not bool((result.ids == TOKENIZER.id_of(common)).any())
        assert bool(((result.ids != 0).sum(1) >= 9).all())


def test_blocked_trigrams_do_not_repeat() -> None:
    model = tiny_model(6, max_length=60)
    source = encoded(model)
    result = generate(model, source, TOKENIZER, DecodingConfig(block_trigrams=True, min_length=40), beam_size=3)
    for row in result.ids.tolist():
        words = [i for i in row if i]
        grams = list(zip(words, words[1:], words[2:], strict=False))
        assert len(grams) == len(set(grams))


def test_decoding_does_not_change_the_model(model: ReportModel, source: Encoded) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generate(model, source, TOKENIZER, DecodingConfig())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- reranking by similarity to the images --------------------------------------------------------------------------


def test_reranking_takes_the_best_by_probability_and_similarity(model: ReportModel, source: Encoded) -> None:
    study = study_embeddings()
    chosen = generate(model, source, TOKENIZER, RERANK, study=study)
    beam = generate(model, source, TOKENIZER, RERANK.model_copy(update={"method": "beam"}))

    def value(row: int, ids: Tensor) -> float:
        ids = ids[ids != 0]
        inputs = torch.cat([torch.tensor([TOKENIZER.bos_id]), ids[:-1]])
        one = source.select(torch.tensor([row]))
        with torch.no_grad():
            logits = model(one, inputs.unsqueeze(0))[0]
            logits[:, list(Constraints.of(RERANK, TOKENIZER).suppress)] = float("-inf")
            mean = float(logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).mean())
            return mean + 5.0 * float(model.text_tower(torch.cat([inputs, ids[-1:]]).unsqueeze(0))[0] @ study[row])

    for row in range(4):
        assert float(chosen.score[row]) == pytest.approx(value(row, chosen.ids[row]), abs=1e-3)
        assert value(row, chosen.ids[row]) >= value(row, beam.ids[row]) - 1e-4
    assert not torch.equal(chosen.ids, beam.ids)


def test_reranking_needs_study_embeddings(model: ReportModel, source: Encoded) -> None:
    with pytest.raises(ValueError, match="use 'beam'"):
        generate(model, source, TOKENIZER, RERANK)
