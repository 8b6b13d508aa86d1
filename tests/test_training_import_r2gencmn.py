"""Imported R2GenCMN weights give the published outputs: fixtures, oracles of several sizes, vocabulary."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.decoding.generate import generate
from model.network.report_model import Patches, ReportModel
from model.text.tokenizer import UNK, Tokenizer, clean_report_r2gen
from tests.support import reference_cmn
from tests.support.reference_cmn import END, GivenFeatures, ReferenceCMN, made_up_words, published_state
from tests.support.tiny import REPORTS
from training.import_r2gencmn import PUBLISHED_DECODING, Published, import_model
from training.import_r2gencmn.convert import _names
from training.protocols import IU_XRAY

State = dict[str, Tensor]
PENALTY = reference_cmn.PUBLISHED_TRIGRAM_PENALTY
DECODINGS = [(beams, penalty) for beams in (1, 2, 3, 5) for penalty in (0.0, PENALTY)]  # 1: greedy


@dataclass(frozen=True)
class Both:
    """One state dict in both implementations."""

    plain: ReferenceCMN
    model: ReportModel
    words: tuple[str, ...]
    layers: int
    beams: dict[int, Tensor] = field(default_factory=dict)  # beam size -> what the oracle wrote

    @classmethod
    def of(cls, state: State, words: tuple[str, ...], published: Published) -> Both:
        width = state["encoder_decoder.att_embed.0.weight"].shape[1]
        plain = ReferenceCMN(state, heads=published.heads, top_k=published.top_k, max_length=published.max_length)
        model = import_model(state, words, published, backbone=GivenFeatures(width))
        return cls(plain, model, words, model.config.encoder_layers)

    @property
    def tokenizer(self) -> Tokenizer:
        return IU_XRAY.tokenizer(self.words)

    def to_model(self, ids: Tensor, first: int) -> Tensor:
        """Ids of the model for published ids; 0 becomes ``first``."""
        table = torch.tensor([first, *(self.tokenizer.id_of(word) for word in self.words)])
        return table[ids]

    def to_published(self, ids: Tensor, length: int) -> Tensor:
        """Published ids (B, length) for ids of the model (B, T); 0 for special tokens."""
        numbers = {word: number for number, word in enumerate(self.words, 1)}
        table = torch.tensor([numbers.get(token, END) for token in self.tokenizer.tokens])
        return nn.functional.pad(table[ids], (0, max(0, length - ids.shape[1])))[:, :length]

    @torch.no_grad()
    def log_probs(self, features: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced, over published ids: (B, T), the first 0 -> (B, T, words + 1)."""
        inputs = self.to_model(ids, self.tokenizer.pad_id)
        inputs[:, 0] = self.tokenizer.bos_id
        order = self.to_model(torch.arange(len(self.words) + 1), self.tokenizer.eos_id)
        return self.model(self.model.encode(patches(features)), inputs).log_softmax(-1)[..., order]

    def write(self, features: Tensor, beams: int, penalty: float) -> Tensor:
        """Published ids (B, max_length), decoded as an imported bundle is."""
        decoding = PUBLISHED_DECODING.model_copy(update={"trigram_penalty": penalty})
        with torch.inference_mode():
            found = generate(
                self.model, self.model.encode(patches(features)), self.tokenizer, decoding, beam_size=beams
            )
        return self.to_published(found.ids, self.plain.max_length)

    def write_by_oracle(self, features: Tensor, beams: int, penalty: float) -> Tensor:
        """The same by the oracle, for the same features each time."""
        with torch.inference_mode():
            if beams == 1:
                return self.plain.greedy(features, trigram_penalty=penalty)
            if beams not in self.beams:  # the published beam search has no penalty
                self.beams[beams] = self.plain.beam(features, beams)
            return self.beams[beams]


def patches(features: Tensor) -> Patches:
    """(B, S, D) as the backbone output of two images."""
    tokens = features.view(len(features), 2, -1, features.shape[2])
    views = torch.tensor([[0, 1]] * len(features))
    return Patches(tokens, tokens.mean(2), views, torch.ones_like(views, dtype=torch.bool))


# --- the fixtures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture(published_fixtures: Path) -> tuple[Both, dict[str, Tensor]]:
    """The published tiny model, and its inputs and outputs."""
    facts = json.loads((published_fixtures / "r2gencmn_tiny.json").read_text())
    sizes, names = facts["args"], facts["idx2token"]
    words = tuple(names[str(number)] for number in range(1, len(names) + 1))
    state = load_file(published_fixtures / "r2gencmn_tiny_weights.safetensors")
    published = Published(sizes["num_heads"], sizes["topk"], sizes["max_seq_length"])
    return Both.of(state, words, published), load_file(published_fixtures / "r2gencmn_tiny_io.safetensors")


@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize(("beams", "name"), [(1, "greedy_ids"), (3, "beam3_ids")])
def test_fixture_outputs_are_equal(
    fixture: tuple[Both, dict[str, Tensor]], beams: int, name: str, prepared: bool
) -> None:
    both, io = fixture
    both.model.train().eval()  # clears the tables of an earlier test
    if prepared:
        both.model.precompute_inference_tables()
    assert torch.equal(both.write(io["att_feats"], beams, 0.0), io[name].long())


def test_fixture_log_probabilities_agree(fixture: tuple[Both, dict[str, Tensor]]) -> None:
    """At every position whose target is a word or the end."""
    both, io = fixture
    expected = io["forward_log_probs"]
    ids = io["report_ids"].long()[:, : expected.shape[1]]
    predicted = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids[:, 1:] > 0], dim=1)
    assert int(predicted.sum()) > 30
    found = both.log_probs(io["att_feats"], ids)
    torch.testing.assert_close(found[predicted], expected[predicted], atol=1e-4, rtol=0)


def test_oracle_equals_the_published_code(fixture: tuple[Both, dict[str, Tensor]]) -> None:
    """The other tests use the oracle as reference."""
    both, io = fixture
    ids = io["report_ids"].long()[:, : io["forward_log_probs"].shape[1]]
    found = both.plain.log_probs(both.plain.encode(io["att_feats"]), ids)
    torch.testing.assert_close(found, io["forward_log_probs"], atol=1e-5, rtol=0)
    assert torch.equal(both.write_by_oracle(io["att_feats"], 1, 0.0), io["greedy_ids"].long())
    assert torch.equal(both.write_by_oracle(io["att_feats"], 3, 0.0), io["beam3_ids"].long())


# --- any size ---------------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        # words, d_model, d_ff, features, layers, slots, heads, top_k, longest
        (30, 64, 96, 48, 2, 40, 4, 8, 20),
        (11, 32, 20, 17, 1, 9, 2, 9, 7),
        (120, 48, 64, 40, 3, 300, 6, 5, 30),
        (75, 64, 128, 96, 1, 2048, 8, 32, 14),
    ],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def both(request: pytest.FixtureRequest) -> Both:
    words, d_model, d_ff, features, layers, slots, heads, top_k, longest = request.param
    state = published_state(
        words=words, d_model=d_model, d_ff=d_ff, features=features, layers=layers, slots=slots, seed=words
    )
    return Both.of(state, made_up_words(words), Published(heads, top_k, longest))


def drawn_features(both: Both) -> Tensor:
    return torch.randn(5, 14, both.plain.feature_width, generator=torch.Generator().manual_seed(3)).relu()


def drawn_ids(both: Both) -> Tensor:
    ids = torch.randint(1, len(both.words) + 1, (5, both.plain.max_length), generator=torch.Generator().manual_seed(4))
    ids[:, 0] = 0
    return ids


def test_any_size_gives_the_log_probabilities_of_the_published_equations(both: Both) -> None:
    features, ids = drawn_features(both), drawn_ids(both)
    with torch.no_grad():
        expected = both.plain.log_probs(both.plain.encode(features), ids)
    torch.testing.assert_close(both.log_probs(features, ids), expected, atol=1e-4, rtol=0)


def test_any_size_has_the_gradients_of_the_published_equations(both: Both) -> None:
    """Memory, norms and products have gradients written by hand; the oracle has autograd's."""
    both = copy.deepcopy(both)  # gradients stay out of the other tests
    features, ids = drawn_features(both), drawn_ids(both)
    published_weights = both.plain.train()
    both.plain.loss(features, ids).backward()  # type: ignore[no-untyped-call]
    inputs = both.to_model(ids, both.tokenizer.pad_id)
    inputs[:, 0] = both.tokenizer.bos_id
    logits = both.model(both.model.encode(patches(features)), inputs[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in both.model.named_parameters()}
    for name, published in _names(both.layers).items():
        expected = published_weights[published].grad
        assert gradients[name] is not None
        assert expected is not None
        torch.testing.assert_close(gradients[name], expected, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("beams", "penalty"), DECODINGS)
def test_any_size_writes_what_the_published_equations_write(both: Both, beams: int, penalty: float) -> None:
    features = drawn_features(both)
    assert torch.equal(both.write(features, beams, penalty), both.write_by_oracle(features, beams, penalty))


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def test_the_published_vocabulary_rule() -> None:
    reports = ["Zebra lungs. heart-size", "zebra, LUNGS; heart-size", "Zebra / lungs [x] heart-size twice", "twice"]
    assert IU_XRAY.words(reports) == (".", UNK, "heart-size", "lungs", "zebra")
    assert replace(IU_XRAY, min_count=2).words(reports) == (".", UNK, "heart-size", "lungs", "twice", "zebra")
    assert "<unk>" in IU_XRAY.words(["<unk> <unk> <unk>"])  # counted or not


def test_imported_vocabulary_has_special_tokens_then_the_published_words() -> None:
    words = replace(IU_XRAY, min_count=1).words(REPORTS)
    tokenizer = IU_XRAY.tokenizer(words)
    assert tokenizer.tokens[4:] == tuple(word for word in words if word != UNK)
    assert tokenizer.cleaning == "r2gen"
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer
    report = "The heart: normal [in] size. . No  never-seen-word."
    known = " ".join(word if word in words else UNK for word in clean_report_r2gen(report).split())
    assert tokenizer.decode(tokenizer.encode(report, 60)) == known


def test_vocabulary_of_the_real_training_reports(real_data: Path) -> None:
    entries = json.loads((real_data / "openi" / "annotation.json").read_text())
    words = IU_XRAY.words(entry["report"] for entry in entries["train"])
    assert len(words) == 760  # the size of published IU X-Ray checkpoints' tables, less the one of id 0
    assert words[0] == "." or words[0].isdigit()
