"""Every writer: overfits, decodes batched as alone, survives its bundle, resumes training, is served; its equations."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.raw_http import events
from model.bundle import load_bundle, write_bundle
from model.config import BundleConfig, DecodingConfig, PreprocessingConfig
from model.decoding.generate import generate
from model.decoding.search import Constraints, sample
from model.network.dual_encoder import pad_ids
from model.network.report_model import Encoded, Patches, ReportModel, build_model
from model.registry import WRITERS
from model.types import DraftOptions, View
from tests.support.decoding import WIDTH, Features
from tests.support.reference_r2gen import ReferenceR2Gen, published_names
from tests.support.service import png, ready_client
from tests.support.tiny import (
    IMAGE_SIZE,
    REPORTS,
    noise_study,
    open_drafter,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    write_tiny_bundle,
)
from tests.test_training_scst import Drawn, studies
from training.config import CEConfig
from training.stages.common import ReportGenerator, StudySplits
from training.stages.cross_entropy import train_cross_entropy
from training.stages.scst import policy_log_probs
from training.trainer.context import RunContext

TOKENIZER = tiny_tokenizer()
ATTENTIVE = frozenset(WRITERS.built_in()) - {"cnn-rnn"}
each_writer = pytest.mark.parametrize("writer", WRITERS.built_in())


def drawn_patches(width: int) -> Patches:
    """Four studies of two views, as a trained backbone separates them."""
    tokens = torch.randn(4, 2, 4, width, generator=torch.Generator().manual_seed(2))
    views, mask = torch.tensor([[0, 1]]).expand(4, 2), torch.ones(4, 2, dtype=torch.bool)
    return Patches(tokens, tokens.mean(2), views, mask)


@cache
def overfitted(writer: str) -> ReportModel:
    """A model that learned the reports of the four studies; tests must not change it."""
    model = tiny_model(writer=writer, dropout=0.0, retrieval_k=0, encoder_layers=1, decoder_layers=1)
    patches = drawn_patches(model.backbone.width)
    ids = pad_ids([TOKENIZER.encode(report, 24) for report in REPORTS[:4]])
    optimizer = torch.optim.Adam((p for n, p in model.named_parameters() if "backbone" not in n), lr=1e-2)
    for _ in range(300):
        logits = model(model.encode(patches), ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    return model.requires_grad_(False)


def encoded(model: ReportModel) -> Encoded:
    return model.encode(drawn_patches(model.backbone.width))


def words(ids: Tensor) -> list[str]:
    return [TOKENIZER.decode(row) for row in ids.tolist()]


# --- words ------------------------------------------------------------------------------------------------------------


@each_writer
def test_four_studies_can_be_overfitted(writer: str) -> None:
    model = overfitted(writer)
    written = words(generate(model, encoded(model), TOKENIZER, DecodingConfig(), beam_size=3).ids)
    assert written == [TOKENIZER.decode(TOKENIZER.encode(report, 24)) for report in REPORTS[:4]]


@each_writer
@pytest.mark.parametrize("beams", [1, 4])
def test_batched_equals_single(writer: str, beams: int) -> None:
    model = overfitted(writer)
    source = encoded(model)
    config = DecodingConfig(min_length=0)
    together = generate(model, source, TOKENIZER, config, beam_size=beams)
    assert len({row.index(TOKENIZER.eos_id) for row in together.ids.tolist()}) > 1  # studies leave the batch
    for row in range(4):
        alone = generate(model, source.select(torch.tensor([row])), TOKENIZER, config, beam_size=beams)
        assert torch.equal(alone.ids[0], together.ids[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-4, rtol=1e-4)


@each_writer
def test_log_probs_of_sampling_have_a_gradient_in_the_policy(writer: str) -> None:
    model = tiny_model(writer=writer, retrieval_k=0)
    source, constraints = encoded(model), Constraints.of(DecodingConfig(min_length=3), TOKENIZER)
    drafts = sample(model, source, constraints, TOKENIZER.bos_id, count=3, generator=torch.Generator().manual_seed(1))
    found = policy_log_probs(model, source, drafts, constraints, TOKENIZER.bos_id, 3)
    torch.testing.assert_close(found, drafts.log_probs[:, : found.shape[1]], atol=1e-4, rtol=1e-4)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith(("word_embedding", "to_words")))


@each_writer
def test_missing_views_and_cases_have_no_effect(writer: str) -> None:
    model = tiny_model(3, writer=writer)
    patches = drawn_patches(model.backbone.width)
    patches = patches._replace(view_mask=torch.tensor([[True, False]]).expand(4, 2))
    cases, found = torch.randn(4, 3, 16), torch.tensor([[True, True, False]]).expand(4, 3)
    ids = torch.arange(4, 20).repeat(4, 1)
    other = patches._replace(tokens=patches.tokens.clone()), cases.clone()
    other[0].tokens[:, 1], other[1][:, 2] = 7.0, 9.0
    with torch.no_grad():
        sources = [model.encode(patches, cases, found), model.encode(*other, found)]
        torch.testing.assert_close(*(model(source, ids) for source in sources))
        moved = model.encode(patches, 2 - cases, found)
        assert not torch.allclose(model(moved, ids), model(sources[0], ids), atol=1e-4)
        weights = model.attention(sources[0], ids)
    if weights is not None:
        assert weights.shape == (4, 16, sources[0].mask.shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 16))
        assert not bool(weights[..., 4:8].any())
        assert not bool(weights[..., -1].any())
    assert (weights is not None) == (writer in ATTENTIVE)


# --- bundle and service -----------------------------------------------------------------------------------------------


@each_writer
def test_bundle_round_trip_drafts_the_same_words(writer: str, tmp_path: Path) -> None:
    model = overfitted(writer)
    config = BundleConfig(name="B", model=model.config, preprocessing=PreprocessingConfig(image_size=IMAGE_SIZE))
    write_bundle(tmp_path / "B", config=config, model=model, tokenizer=TOKENIZER, weights_dtype="fp32")
    bundle = load_bundle(tmp_path / "B")
    assert (bundle.config.model.writer, type(bundle.model)) == (writer, type(model))
    bundle.model.precompute_inference_tables()
    found, expected = (generate(each, encoded(each), TOKENIZER, DecodingConfig()) for each in (bundle.model, model))
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=1e-5)
    for precision in ("fp32", "bf16"):
        (draft,) = open_drafter(tmp_path / "B", precision=precision).draft(
            [noise_study(1, View.FRONTAL, View.LATERAL)], DraftOptions(attention=True)
        )
        assert draft.sentences
        assert {sentence.attention is not None for sentence in draft.sentences} == {writer in ATTENTIVE}


@each_writer
def test_bound_of_the_weights_holds(writer: str) -> None:
    model = tiny_model(writer=writer)
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    assert model.config.embedding_dim < type(model).least_weights(model.config) <= weights


@each_writer
def test_service_drafts_with_it(writer: str, tmp_path: Path) -> None:
    decoding = DecodingConfig(method="consensus", candidates=4, min_length=8)
    path = write_tiny_bundle(tmp_path / "tiny", decoding=decoding, full_stops=3.0, finding_head=True, writer=writer)
    files, form = {"frontal": ("f", png()), "lateral": ("l", png(70, 70))}, {"include": "attention,evidence"}
    with ready_client(path) as client:
        answer = client.post("/report", files=files, data=form).json()
        with client.stream("POST", "/report", files=files, data={**form, "stream": "true"}) as stream:
            *_, (_, report) = events(stream.iter_lines())
        text = client.post("/export", json={"report": answer}, headers={"Accept": "text/plain"})
        problem = client.post("/report", files=files, data={"include": "maps"}).json()
    assert answer["sentences"]
    assert report["sentences"] == answer["sentences"]
    for sentence in answer["sentences"]:
        assert (sentence["attention"] is not None) == (writer in ATTENTIVE)
        assert (sentence["evidence"] is None) == (sentence["labels"] == {})
    assert answer["sentences"][0]["text"] in text.text
    assert problem["code"] == "unknown_value"


# --- training ---------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for the process ending here."""


class Breaking(Drawn):
    """Ends the process when features are read for the ``calls``-th time."""

    calls = 0

    def patches(self, *args: object, **more: object) -> Patches:
        self.calls -= 1
        if not self.calls:
            raise KilledError
        return super().patches(*args, **more)  # type: ignore[arg-type]


def trained(writer: str, work: Path, *, stop_at: int = 0) -> ReportModel:
    """An epoch of cross-entropy with dropout; the process ends at the ``stop_at``-th of its four batches."""
    model, train = tiny_model(writer=writer, retrieval_k=0), studies("train")
    context = RunContext(torch.device("cpu"), 1, "fp32", work, checkpoint_seconds=0.0)
    features = Breaking(model, train)
    features.calls = stop_at
    generator = ReportGenerator(model, TOKENIZER, features, None, DecodingConfig())
    config = CEConfig(epochs=1, batch_size=2, backbone_lr=0.0)
    train_cross_entropy(generator, StudySplits(train, []), config, context)
    return model


@each_writer
def test_training_resumes_to_the_same_weights(writer: str, tmp_path: Path) -> None:
    expected = trained(writer, tmp_path / "unbroken").state_dict()
    with pytest.raises(KilledError):
        trained(writer, tmp_path / "broken", stop_at=3)
    assert (tmp_path / "broken" / "ce" / "checkpoint.pt").exists()
    found = trained(writer, tmp_path / "broken").state_dict()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert not torch.equal(expected["to_words.weight"], tiny_model(writer=writer).state_dict()["to_words.weight"])


def test_recurrent_layers_stay_in_training_mode() -> None:
    """SCST takes a gradient of a model in eval mode, which cuDNN refuses for layers in eval mode."""
    for writer in ("cnn-rnn", "coattention"):
        recurrent = [part for part in tiny_model(writer=writer).modules() if isinstance(part, torch.nn.RNNBase)]
        assert recurrent
        assert all(part.training and not part.dropout for part in recurrent)


# --- equations --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def given_features(seed: int = 0, **changes: object) -> ReportModel:
    """A model whose sequence is its features, with random weights in all parts."""
    torch.manual_seed(seed)
    config = tiny_config(len(TOKENIZER), retrieval_k=0, feature_norm=False, view_embeddings=False, **changes)
    model = build_model(config, backbone=Features()).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("slots", [1, 3])
def test_r2gen_equals_the_published_network(slots: int) -> None:
    model = given_features(writer="r2gen", norm="r2gen", relational_slots=slots)
    plain = ReferenceR2Gen(published_names(model.state_dict()), heads=4, memory_heads=8, slots=slots, layers=2)
    patches, ids = drawn_patches(WIDTH), torch.randint(4, len(TOKENIZER), (4, 20))
    with torch.no_grad():
        found = model(model.encode(patches), ids).log_softmax(-1)
        expected = plain.log_probs(patches.tokens.flatten(1, 2), ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std(dim=0).mean()) > 0.05  # it depends on the images


def test_cnn_rnn_is_an_lstm_that_starts_from_the_mean_feature() -> None:
    model = given_features(writer="cnn-rnn")
    state = model.state_dict()
    patches, ids = drawn_patches(WIDTH), torch.randint(4, len(TOKENIZER), (4, 6))
    image = F.linear(patches.tokens.flatten(1, 2).mean(1), state["to_state.weight"], state["to_state.bias"])
    hidden, cell, expected = [image] * 2, [image] * 2, []
    for t in range(6):
        x = state["word_embedding.weight"][ids[:, t]]
        for layer in range(2):
            gates = sum(
                F.linear(y, state[f"lstm.weight_{kind}_l{layer}"], state[f"lstm.bias_{kind}_l{layer}"])
                for kind, y in (("ih", x), ("hh", hidden[layer]))
            )
            assert isinstance(gates, Tensor)
            write, keep, new, show = gates.chunk(4, dim=1)
            cell[layer] = keep.sigmoid() * cell[layer] + write.sigmoid() * new.tanh()
            hidden[layer] = x = show.sigmoid() * cell[layer].tanh()
        expected.append(F.linear(x, state["to_words.weight"], state["to_words.bias"]))
    with torch.no_grad():
        found = model(model.encode(patches), ids)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_initial_weights_are_the_published_ones() -> None:
    r2gen = build_model(tiny_config(len(TOKENIZER), writer="r2gen"))
    for key, value in r2gen.state_dict().items():
        if key.endswith(("_hidden.bias", "_change.bias")):
            assert bool((value == 0.1).all()), key
    bound = math.sqrt(6 / (32 + 64))
    assert float(r2gen.state_dict()["memory.gates_of_word.weight"].abs().max()) == pytest.approx(bound, rel=0.02)
    cnn_rnn = build_model(tiny_config(len(TOKENIZER), writer="cnn-rnn")).state_dict()
    assert float(cnn_rnn["lstm.weight_hh_l1"].abs().max()) == pytest.approx(0.08, rel=0.02)
    assert bool((cnn_rnn["lstm.bias_ih_l0"][32:64] == 1).all())


def test_relational_heads_matter_to_r2gen_alone() -> None:
    assert tiny_config(30, writer="cmn", relational_heads=7).relational_heads == 7
    with pytest.raises(ValueError, match="d_model=32 is not divisible by relational_heads=7"):
        tiny_config(30, writer="r2gen", relational_heads=7)
