"""Precomputed inference tables change no output and are cleared when weights change."""

from __future__ import annotations

import pytest
import torch

from model.config import DecodingConfig
from model.decoding.generate import generate
from model.decoding.search import Generated, beam_search, greedy, sample
from model.network.report_model import Encoded, ReportModel, build_model
from model.network.writers import cmn
from tests.support.decoding import (
    BOS,
    LIMIT,
    MODELS,
    PENALTY,
    STUDIES,
    TOKENIZER,
    Features,
    constraints_of,
    encoded_by,
    lengths,
    model_of,
)


def fresh(seed: int = 2, ends: float = 2.0) -> ReportModel:
    """A model that a test may change."""
    original = model_of(seed, ends)
    model = build_model(original.config, backbone=Features())  # type: ignore[arg-type]
    model.load_state_dict(original.state_dict())
    return model.eval()


@torch.no_grad()
def all_decodings(model: ReportModel, encoded: Encoded) -> list[Generated]:
    rule = constraints_of(trigram_penalty=PENALTY)
    return [
        greedy(model, encoded, rule, BOS),
        beam_search(model, encoded, rule, BOS, 3, 0.0, finished_beams_occupy_slots=True),
        beam_search(model, encoded, rule, BOS, 4, 1.0),
        sample(model, encoded, rule, BOS, count=3, generator=torch.Generator().manual_seed(4)),
        generate(model, encoded, TOKENIZER, DecodingConfig()),
    ]


@pytest.mark.parametrize(("seed", "ends"), MODELS)
def test_inference_tables_change_no_output(seed: int, ends: float) -> None:
    model = fresh(seed, ends)
    encoded = encoded_by(model)
    ids = torch.randint(4, len(TOKENIZER), (STUDIES, LIMIT), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = all_decodings(model, encoded), model(encoded, ids)
    model.precompute_inference_tables()
    assert model.word_table is not None
    assert model.word_table.shape == (LIMIT, len(TOKENIZER), 32)
    with torch.no_grad():
        torch.testing.assert_close(model(encoded, ids), logits, atol=1e-5, rtol=1e-5)
        for found, wanted in zip(all_decodings(model, encoded), expected, strict=True):
            assert torch.equal(found.ids, wanted.ids)
            torch.testing.assert_close(found.log_probs, wanted.log_probs, atol=1e-4, rtol=1e-4)


def test_a_decoding_step_with_inference_tables_reads_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    encoded = encoded_by(model)
    model.precompute_inference_tables()
    monkeypatch.setattr(model.memory, "forward", None)  # calling it would fail
    assert len(set(lengths(generate(model, encoded, TOKENIZER, DecodingConfig())))) > 1


@pytest.mark.parametrize("mode", [True, False])
def test_train_clears_inference_tables(mode: bool) -> None:
    model = fresh()
    model.precompute_inference_tables()
    model.train(mode)
    assert model.word_table is None


def test_loading_weights_clears_inference_tables() -> None:
    model = fresh()
    model.precompute_inference_tables()
    other = fresh(5)
    model.load_state_dict(other.state_dict())
    assert model.word_table is None
    encoded = encoded_by(other)
    expected = [result.ids for result in all_decodings(other, encoded)]
    for _ in range(2):
        assert all(map(torch.equal, (result.ids for result in all_decodings(model, encoded)), expected))
        model.precompute_inference_tables()


def test_gradients_do_not_use_inference_tables() -> None:
    model = fresh()
    encoded = encoded_by(model)
    model.precompute_inference_tables()
    model(encoded, torch.tensor([[BOS, 5, 6]]).expand(STUDIES, 3))[..., 7].sum().backward()
    assert model.word_table is not None
    for weight in (model.word_embedding.weight, model.memory.query.weight):
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0


def test_inference_tables_are_not_in_the_state_dict() -> None:
    model = fresh()
    keys = list(model.state_dict())
    model.precompute_inference_tables()
    assert list(model.state_dict()) == keys


def test_omits_a_word_table_above_the_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    needed = 4 * LIMIT * len(TOKENIZER) * 32  # bytes
    monkeypatch.setattr(cmn, "LARGEST_WORD_TABLE", needed - 1)
    model.precompute_inference_tables()
    assert model.word_table is None
    monkeypatch.setattr(cmn, "LARGEST_WORD_TABLE", needed)
    model.precompute_inference_tables()
    assert model.word_table is not None
