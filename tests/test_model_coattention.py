"""The writer ``coattention`` against its paper, and what its flat sequence of tokens promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecodingConfig
from model.decoding.generate import generate
from model.network.report_model import inputs_of
from model.network.writers.coattention import SEMANTIC_TAGS, CoAttentionNetwork
from tests.support.tiny import REPORTS, random_patches, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.id_of(".")


def writer(seed: int = 0, **changes: object) -> CoAttentionNetwork:
    model = tiny_model(seed, writer="coattention", **changes)
    assert isinstance(model, CoAttentionNetwork)
    nn.init.constant_(model.stop[2].bias, -3.0)  # several sentences
    return model


def split(layer: nn.Linear, width: int) -> tuple[Tensor, Tensor]:
    """Two matrices that the model applies to one joined vector."""
    return layer.weight[:, :width], layer.weight[:, width:]


def published(model: CoAttentionNetwork, v: Tensor, patches: int, sentences: list[list[int]]) -> list[Tensor]:
    """Log-probabilities of each next token by the loops of the paper: v (S, D), words of each sentence with its "."."""
    d = model.config.d_model
    mlc = model.tag_classifier(v[:patches].mean(0))  # eq. 1
    a = model.tag_embedding(mlc.sort(descending=True).indices[:SEMANTIC_TAGS])
    h_sent, cell, stop = torch.zeros(d), torch.zeros(d), None
    found = []
    for words in sentences:
        alpha_v = torch.stack([  # eq. 2
            model.visual_score(torch.tanh(model.visual_key(one) + model.visual_query(h_sent)))[0] for one in v
        ]).softmax(0)  # fmt: skip
        alpha_a = torch.stack([  # eq. 3
            model.semantic_score(torch.tanh(model.semantic_key(one) + model.semantic_query(h_sent)))[0] for one in a
        ]).softmax(0)  # fmt: skip
        context = model.visual_context(alpha_v @ v) + model.semantic_context(alpha_a @ a)  # W [v_att, a_att]
        before = h_sent
        h_sent, cell = (state[0] for state in model.sentence_lstm(context[None], (h_sent[None], cell[None])))
        of_state, of_context = split(model.topic, d)
        topic = torch.tanh(of_state @ h_sent + of_context @ context + model.topic.bias)  # eq. 4
        inputs = [topic, model.word_embedding.weight[TOKENIZER.bos_id], *model.word_embedding.weight[words]]
        hidden, _ = model.word_lstm(torch.stack(inputs)[None])
        for position, state in enumerate(hidden[0, 1 : len(words) + 1]):
            logits = model.to_words(state)  # eq. 6
            logits[TOKENIZER.eos_id] = float("-inf")
            log_probs = logits.log_softmax(0)
            if position == 0 and stop is not None:
                log_probs = log_probs + (1 - stop).log()
                log_probs[TOKENIZER.eos_id] = stop.log()
            found.append(log_probs)
        of_before, of_state = split(model.stop[0], d)
        stop = model.stop[2](torch.tanh(of_before @ before + of_state @ h_sent + model.stop[0].bias))[0].sigmoid()
    return found  # eq. 5 is the stop of the sentence before


@torch.no_grad()
def test_log_probabilities_equal_the_equations_of_the_paper() -> None:
    model = writer()
    patches, cases = random_patches(model, 2, seed=1), torch.rand(2, 3, 16)
    case_mask = torch.tensor([[True, True, True], [True, False, False]])
    encoded, (sequence, mask) = (step(patches, cases, case_mask) for step in (model.encode, model.sequence))
    reports = [TOKENIZER.encode(REPORTS[row], 24) for row in (1, 4)]  # bos, three or two sentences, eos
    ids = torch.tensor([report[:14] for report in reports])
    log_probs = model(encoded, ids)
    for row, report in enumerate(reports):
        rest, sentences = list(report[1:]), []
        while END in rest:
            sentences.append(rest[: rest.index(END) + 1])
            rest = rest[rest.index(END) + 1 :]
        expected = published(model, sequence[row][mask[row]], patches=4, sentences=[*sentences, [TOKENIZER.eos_id]])
        for position in range(14):
            words = [token for token in range(len(TOKENIZER)) if token != TOKENIZER.eos_id or ids[row, position] == END]
            torch.testing.assert_close(log_probs[row, position, words], expected[position][words], atol=1e-5, rtol=0)


@torch.no_grad()
def test_probabilities_sum_to_one_and_a_report_ends_only_after_a_sentence() -> None:
    model = writer()
    ids = torch.tensor([TOKENIZER.encode(report, 14) for report in REPORTS[:4]])
    probabilities = model(model.encode(random_patches(model, 4, seed=2)), ids).exp()
    torch.testing.assert_close(probabilities.sum(2), torch.ones(ids.shape), atol=1e-5, rtol=0)
    stops = probabilities[..., TOKENIZER.eos_id]
    assert float(stops[ids != END].max()) < 1e-12
    assert float(stops[ids == END].min()) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("beam_size", [1, 3])
def test_drafts_have_the_log_probabilities_of_teacher_forcing(beam_size: int) -> None:
    model = writer()
    model.to_words.bias[END] += 3.0
    encoded = model.encode(random_patches(model, 5, seed=3))
    drafts = generate(model, encoded, TOKENIZER, DecodingConfig(beam_size=beam_size, min_length=0, suppress=()))
    texts = [TOKENIZER.decode(row) for row in drafts.ids.tolist()]
    assert max(text.count(".") for text in texts) > 1
    forced = model(encoded, inputs_of(drafts.ids, TOKENIZER.bos_id))
    forced[..., [TOKENIZER.pad_id, TOKENIZER.bos_id]] = float("-inf")  # never generated
    gained = forced.log_softmax(2).gather(2, drafts.ids.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(drafts.log_probs, gained.masked_fill(drafts.ids == 0, 0.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("report", [
    [1, 10, 11, END, 12, 13],  # cut within a sentence
    [1, 10, 11, 12, TOKENIZER.eos_id],  # ends without a "."
    [1, END, END, TOKENIZER.eos_id],  # empty sentences
])  # fmt: skip
def test_loss_of_an_irregular_report_is_finite(report: list[int]) -> None:
    model = writer()
    ids = torch.tensor([report])
    logits = model(model.encode(random_patches(model, 1, seed=4)), ids[:, :-1])
    loss = F.cross_entropy(logits[0], ids[0, 1:])
    loss.backward()
    assert 0 < float(loss.detach()) < 50
    assert all(weights.grad is None or bool(weights.grad.isfinite().all()) for weights in model.parameters())


@torch.no_grad()
def test_attention_is_that_of_the_sentence_of_each_word() -> None:
    model = writer()
    patches = random_patches(model, 2, seed=5)
    encoded = model.encode(patches, torch.rand(2, 3, 16), torch.tensor([[True] * 3, [False] * 3]))
    ids = torch.tensor([[1, 10, 11, END, 12, 13, END, 14]] * 2)
    weights = model.attention(encoded, ids)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 8))
    assert torch.equal(weights[1, :, 4:], torch.zeros(8, 3))  # no case
    assert torch.equal(weights[:, 0], weights[:, 2])
    assert torch.equal(weights[:, 3], weights[:, 5])  # after ".", the next word belongs to the next sentence
    assert not torch.equal(weights[:, 2], weights[:, 3])


def test_tag_loss_is_the_cross_entropy_with_shares_of_the_tags() -> None:
    model = writer(tags=("opacity", "cardiomegaly", "nodule"))
    encoded = model.encode(random_patches(model, 3, seed=6))
    tags = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    log_probs = encoded.tag_logits.log_softmax(1)
    expected = -(log_probs[0, 0] + log_probs[0, 1]) / 2 - log_probs[1, 2]
    torch.testing.assert_close(model.auxiliary_losses(encoded, tags), {"tags": expected})
    assert tiny_model().auxiliary_losses(encoded, tags) == {}


@pytest.mark.parametrize(("missing", "named"), [({"sentence_end": None}, "sentence_end"), ({"tags": ()}, "tags")])
def test_refuses_a_configuration_without_sentence_end_or_tags(missing: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"writer 'coattention' needs {named}"):
        writer(**missing)
