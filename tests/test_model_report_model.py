"""The report model: shapes, masks, inference tables that follow the weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision import models

from model.config import ModelConfig
from model.network.backbone import Backbone
from model.network.report_model import build_model
from tests.support.paths import REPOSITORY
from tests.support.tiny import IMAGE_SIZE, random_patches, tiny_config, tiny_model


@pytest.mark.parametrize(("backbone", "width"), [("densenet121", 1024), ("resnet101", 2048)])
def test_sequence_has_the_shapes_of_the_design(backbone: str, width: int) -> None:
    config = ModelConfig(
        backbone=backbone, vocab_size=20, d_model=64, d_ff=64, memory_dim=64, memory_slots=64, memory_top_k=4
    )
    model = build_model(config).eval()
    assert model.backbone.width == width
    images = torch.rand(1, 2, 1, 224, 224)
    with torch.no_grad():
        both = model.encode_images(images, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
        one = model.encode_images(images[:, :1], torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool))
        cases = torch.rand(1, 5, config.embedding_dim)
        assert both.tokens.shape == (1, 2, 49, width)
        assert model.sequence(both, cases, None)[0].shape == (1, 103, width)
        assert model.sequence(one, cases, None)[0].shape == (1, 54, width)
        assert model.sequence(one, None, None)[0].shape == (1, 49, width)
        assert model.encode(both, cases).source.shape == (1, 103, 64)
        assert model.embed_study(both).norm() == pytest.approx(1.0, abs=1e-5)


def test_default_dimensions_equal_the_paper() -> None:
    config = ModelConfig(vocab_size=800)
    assert (config.memory_slots, config.memory_dim, config.memory_heads, config.memory_top_k) == (2048, 512, 8, 32)
    assert (config.encoder_layers, config.decoder_layers, config.d_model, config.max_length) == (3, 3, 512, 60)
    assert config.retrieval_k == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"d_model": 30}, "not divisible"), ({"memory_top_k": 65}, "exceeds"), ({"vocab_size": 2}, "vocab_size"),
     ({"colour": 3}, "colour")],
)  # fmt: skip
def test_config_rejects_impossible_dimensions(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(30, **changes)


def test_a_missing_view_has_no_effect() -> None:
    model = tiny_model()
    images = torch.rand(1, 2, 1, IMAGE_SIZE, IMAGE_SIZE)
    other = torch.cat([images[:, :1], torch.rand(1, 1, 1, IMAGE_SIZE, IMAGE_SIZE)], dim=1)
    views, mask = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    ids = torch.arange(5).unsqueeze(0)
    with torch.no_grad():
        padded = [model(model.encode(model.encode_images(x, views, mask)), ids) for x in (images, other)]
        alone = model(model.encode(model.encode_images(images[:, :1], views[:, :1], mask[:, :1])), ids)
    torch.testing.assert_close(padded[0], padded[1])
    torch.testing.assert_close(padded[0], alone, atol=1e-5, rtol=1e-5)


def test_a_missing_case_has_no_effect() -> None:
    model = tiny_model()
    patches, cases = random_patches(model, 1), torch.randn(1, 3, 16)
    found = torch.tensor([[True, True, False]])
    ids = torch.arange(5).unsqueeze(0)
    changed = cases.clone()
    changed[:, 2] = 9.0
    with torch.no_grad():
        results = [model(model.encode(patches, c, found), ids) for c in (cases, changed)]
        fewer = model(model.encode(patches, cases[:, :2]), ids)
        moved = model(model.encode(patches, changed), ids)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], fewer, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(results[0], moved, atol=1e-3)


def test_views_have_different_embeddings() -> None:
    model = tiny_model()
    with torch.no_grad():
        assert model.view_embedding is not None
        model.view_embedding.weight.normal_()
    images, mask = torch.rand(1, 1, 1, IMAGE_SIZE, IMAGE_SIZE), torch.ones(1, 1, dtype=torch.bool)
    ids = torch.arange(5).unsqueeze(0)
    with torch.no_grad():
        frontal, lateral = (
            model(model.encode(model.encode_images(images, torch.tensor([[view]]), mask)), ids) for view in (0, 1)
        )
    assert not torch.allclose(frontal, lateral, atol=1e-3)


def test_backbone_rejects_an_unknown_name_and_a_missing_file() -> None:
    with pytest.raises(ValueError, match="not a torchvision model"):
        Backbone("densenet999")
    with pytest.raises(ValueError, match="no such file"):
        Backbone("mobilenet_v3_small", weights="nowhere.pth")


def test_backbone_loads_torchvision_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(4)
    network = models.get_model("resnet18", weights=None)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = Backbone("resnet18", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(backbone.features[0].weight, network.conv1.weight)
    with pytest.raises(ValueError, match="does not match"):
        Backbone("resnet34", weights=str(tmp_path / "weights.pth"))


def test_inference_tables_follow_the_weights() -> None:
    model = tiny_model(retrieval_k=0)
    patches, ids = random_patches(model, 2), torch.full((2,), 7)

    def written() -> tuple[torch.Tensor, torch.Tensor]:
        encoded = model.encode(patches)
        return encoded.source, model.start(encoded, 1).step(ids)

    def change_the_matrix() -> None:
        model.memory.matrix.add_(1.0)

    def load_the_memory() -> None:
        model.memory.load_state_dict(tiny_model(seed=3).memory.state_dict())

    def train_the_words() -> None:
        with torch.enable_grad():
            optimizer = torch.optim.Adam([model.word_embedding.weight], lr=0.5, fused=True)
            model.word_embedding(ids).square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    with torch.no_grad():
        for change in (change_the_matrix, load_the_memory, train_the_words):
            model.precompute_inference_tables()
            before = written()
            assert model.memory_bank_table is not None
            change()
            found = written()
            model.clear_inference_tables()
            for now, fresh in zip(found, written(), strict=True):
                torch.testing.assert_close(now, fresh, atol=1e-5, rtol=1e-5)
            assert not torch.allclose(found[1], before[1], atol=1e-3)


# --- images -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_encodes_two_or_three_images_at_once_on_a_cpu() -> None:
    backbone, sizes = Backbone("mobilenet_v3_small").eval(), list[int]()
    backbone.features.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    images = torch.rand(7, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    tokens, pooled = backbone(images)
    assert sizes == [3, 2, 2]
    whole = backbone.feature_map(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, whole)
    torch.testing.assert_close(pooled, whole.mean(dim=1))


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import service.app; assert 'torch._dynamo' not in sys.modules\n"  # the service needs no compiler
        "from torchvision.ops import roi_align\n"
        "assert roi_align.__globals__['is_compile_supported']('cpu') in (True, False)\n"
        "assert 'torch._dynamo' in sys.modules",
        "from model.network.torchvision_models import _without_compiler\n"
        "with _without_compiler(): from torch._dynamo.utils import counters, is_compile_supported\n"
        "assert counters is sys.modules['torch._dynamo.utils'].counters",
    ],
    ids=["a call imports it", "another name imports it"],
)
def test_imports_the_compiler_only_when_it_is_needed(code: str) -> None:
    subprocess.run([sys.executable, "-c", f"import sys\n{code}"], cwd=REPOSITORY, check=True)
