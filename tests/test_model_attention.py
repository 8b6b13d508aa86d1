"""Attention maps: the weights of the last layer, in image orientation; drafts do not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import DecodingConfig
from model.decoding.attention_maps import WordAttention
from model.drafter import Drafter
from model.network.backbone import Backbone
from model.network.transformer import DecoderLayer
from model.network.writers.cmn import CrossModalMemoryNetwork
from model.types import DraftOptions, Precision, View
from tests.support.tiny import IMAGE_SIZE, noise_study, open_drafter, tiny_model, write_tiny_bundle
from tests.test_model_decoding import encoded

WITH_ATTENTION = DraftOptions(attention=True)
SIDE = IMAGE_SIZE // 32


def drafter_of(path: Path, precision: Precision = "fp32", **changes: object) -> Drafter:
    decoding = DecodingConfig.model_validate({"candidates": 4, "min_length": 14, "block_trigrams": True, **changes})
    return open_drafter(write_tiny_bundle(path, decoding=decoding, full_stops=5.0), precision=precision)


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Drafter:
    return drafter_of(tmp_path_factory.mktemp("bundles") / "tiny")


# --- the weights ------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_last_layer() -> None:
    """PyTorch's attention over one-hot values returns its weights."""
    model = tiny_model(4)
    source = encoded(model)
    assert not bool(source.mask.all())  # a view is missing
    ids = torch.randint(4, 30, (len(source.source), 9), generator=torch.Generator().manual_seed(2))
    read: list[Tensor] = []

    def keep(layer: DecoderLayer, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        x, memory, mask = inputs
        cross = layer.cross_attention
        _, queries = layer.self_attend_and_query(x)
        keys, _ = cross.keys_values(memory)
        one_each = torch.eye(keys.shape[2]).expand(*keys.shape[:2], -1, -1)
        read.append(F.scaled_dot_product_attention(queries, keys, one_each, attn_mask=mask).mean(dim=1))

    model.decoder.layers[-1].register_forward_hook(keep)
    with torch.no_grad():
        model(source, ids)
        weights = model.attention(source, ids)
    torch.testing.assert_close(weights, read[0], atol=1e-5, rtol=1e-4)
    assert bool((weights[~source.mask.unsqueeze(1).expand_as(weights)] == 0).all())
    assert float(weights.std()) > 1e-4  # not all the same


def test_word_weights_come_from_the_position_before_the_word(drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention pass starts with the begin token, not with the first word."""
    fed: list[Tensor] = []
    original = CrossModalMemoryNetwork.attention

    def attention(model: CrossModalMemoryNetwork, source: object, ids: Tensor) -> Tensor:
        fed.append(ids)
        return original(model, source, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(CrossModalMemoryNetwork, "attention", attention)
    (draft,) = drafter.draft([noise_study(1, View.FRONTAL)], WITH_ATTENTION)
    tokenizer = drafter.bundle.tokenizer
    assert int(fed[0][0, 0]) == tokenizer.bos_id
    words = " ".join(sentence.text for sentence in draft.sentences).lower().replace(".", " .")
    assert words.startswith(tokenizer.decode(fed[0][0].tolist())[:20])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["greedy", "beam", "rerank", "consensus"])
def test_weights_of_a_sentence_sum_to_one_and_the_text_is_unchanged(
    method: str, precision: Precision, tmp_path: Path
) -> None:
    drafter = drafter_of(tmp_path / "tiny", precision, method=method)
    studies = [noise_study(1, View.FRONTAL, View.LATERAL), noise_study(2, View.LATERAL)]
    plain, drafts = drafter.draft(studies), drafter.draft(studies, WITH_ATTENTION)
    seen = set()
    for before, draft, views in zip(plain, drafts, (["frontal", "lateral"], ["lateral"]), strict=True):
        assert [dataclasses.replace(sentence, attention=None) for sentence in draft.sentences] == list(before.sentences)
        assert draft.findings == before.findings
        assert "attention" in draft.timings_ms.keys() - before.timings_ms.keys()
        for sentence in draft.sentences:
            assert sentence.attention is not None
            grids, cases = sentence.attention.patches, sentence.attention.cases
            assert list(grids) == views
            assert all(np.shape(grid) == (SIDE, SIDE) for grid in grids.values())
            assert len(cases) == 3
            assert sum(cases) + sum(np.sum(grid) for grid in grids.values()) == pytest.approx(1, abs=1e-5)
            seen.add(cases)
    assert len(seen) > 2


def test_cases_in_the_model_input_have_weights_however_many_are_shown(drafter: Drafter) -> None:
    found = [
        drafter.draft([noise_study(1, View.FRONTAL)], DraftOptions(top_k=top_k, attention=True))[0] for top_k in (2, 8)
    ]
    assert [len(draft.reference_cases) for draft in found] == [2, 8]
    assert found[0].sentences == found[1].sentences
    assert all(sentence.attention and len(sentence.attention.cases) == 3 for sentence in found[0].sentences)


def test_bundle_without_retrieval_has_weights_on_images_only(tmp_path: Path) -> None:
    drafter = open_drafter(write_tiny_bundle(tmp_path / "plain", retrieval=False))
    (draft,) = drafter.draft([noise_study(1, View.FRONTAL)], WITH_ATTENTION)
    for sentence in draft.sentences:
        assert sentence.attention is not None
        assert sentence.attention.cases == ()
        assert np.sum(sentence.attention.patches["frontal"]) == pytest.approx(1, abs=1e-5)


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 6), (6, 0), (6, 6), (1, 5)])
def test_patch_tokens_are_row_major_from_the_top_left(top: int, left: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone("resnet18").eval()
    images = torch.full((2, 1, 224, 224), 0.4)
    images[1, 0, top * 32 : (top + 1) * 32, left * 32 : (left + 1) * 32] = 1.0
    with torch.no_grad():
        tokens, _ = backbone(images)
    changed = (tokens[1] - tokens[0]).norm(dim=1)
    row, column = divmod(int(changed.argmax()), 7)
    assert abs(row - top) <= 1  # an untrained network smears by one; mirrored or turned would be four away
    assert abs(column - left) <= 1


def test_grids_follow_the_tokens() -> None:
    weights = torch.arange(2 * 9 + 4).float().expand(1, 3, -1)
    attention = WordAttention(weights, patches=18, grid=3, cases=(2,)).of_sentence(0, 0, 3, ["frontal", "lateral"])
    assert attention.patches["frontal"] == ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    assert attention.patches["lateral"][2] == (15, 16, 17)
    assert attention.cases == (18, 19)


def test_sentence_weights_are_the_mean_of_its_words_and_equal_views_are_numbered() -> None:
    weights = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]])
    attention = WordAttention(weights, patches=2, grid=1, cases=(0,))
    found = attention.of_sentence(0, 1, 3, ["frontal", "frontal"])
    assert found.patches == {"frontal": ((0.75,),), "frontal-2": ((0.25,),)}


def test_attention_does_not_depend_on_the_order_of_views(drafter: Drafter) -> None:
    both = noise_study(3, View.FRONTAL, View.LATERAL)
    (one,), (other,) = (drafter.draft([sent], WITH_ATTENTION) for sent in (both, both[::-1]))
    assert [sentence.attention for sentence in one.sentences] == [sentence.attention for sentence in other.sentences]
    assert one.sentences[0].attention is not None
    assert one.sentences[0].attention.patches["frontal"] != one.sentences[0].attention.patches["lateral"]


def test_weights_move_to_where_the_tokens_look(tmp_path: Path) -> None:
    drafter = drafter_of(tmp_path / "tiny")
    study = noise_study(1, View.FRONTAL, View.LATERAL)
    backbone = drafter.bundle.model.backbone
    (before,) = drafter.draft([study], WITH_ATTENTION)
    backbone.offset = 0.5
    (after,) = drafter.draft([study], WITH_ATTENTION)
    for one, other in zip(before.sentences, after.sentences, strict=True):
        assert one.attention is not None
        assert other.attention is not None
        assert other.attention.cases == one.attention.cases
        for view, grid in one.attention.patches.items():
            moved = backbone.onto_patches(torch.tensor(grid).flatten()).view(SIDE, SIDE)
            np.testing.assert_allclose(other.attention.patches[view], moved.numpy(), atol=1e-6)
            assert np.ptp(grid) > 1e-4
