"""Visual extractor: the last feature map of a torchvision CNN, as patch tokens.

DenseNet-121 gives D = 1,024 channels, ResNet-101 D = 2,048; at S = 224 both give a 7 x 7 grid, 49
patch tokens. Any torchvision classifier whose features are one spatial map works by name:
densenet*, resnet*, efficientnet*, convnext* and others.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Allow torchvision to import one function of PyTorch's compiler without the compiler, which costs 2 s and 140 MB.

    A call of the function, or the import of any other name of the module, imports the compiler.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)

    def attribute_of_real(attribute: str) -> Any:
        if attribute.startswith("__"):  # a query of the import system
            raise AttributeError(attribute)
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    vars(stand_in)["__getattr__"] = attribute_of_real
    vars(stand_in)["is_compile_supported"] = lambda kind: attribute_of_real("is_compile_supported")(kind)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


with _without_compiler():
    from torchvision import models

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST_CLASSIFIER = 130_000_000  # weights, of vgg


class Backbone(nn.Module):
    """Grey pixels in, patch tokens out. The normalisation constants are buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, weights: str = "none") -> None:
        """Build the extractor.

        Args:
            name: a torchvision model name, e.g. ``densenet121`` or ``resnet101``.
            weights: ``none``; ``imagenet`` (downloaded by torchvision); or a path to a state dict
                of that model (.pth read with weights_only, or .safetensors), classifier keys
                ignored.

        Raises:
            ValueError: the model is unknown, or the weights cannot be loaded or do not match; names
                the remedy.
        """
        super().__init__()
        if name not in models.list_models(module=models):
            raise ValueError(f"backbone {name!r} is not a torchvision model; try 'densenet121' or 'resnet101'")
        network = _build(name, weights)
        self.name = name
        self.features = _headless(network)
        self.relu = name.startswith("densenet")  # torchvision's DenseNet applies its last ReLU outside `features`
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        with torch.inference_mode():
            was_training = self.training
            self.eval()
            self.width = self.feature_map(torch.zeros(1, 1, 64, 64)).shape[1]
            self.train(was_training)

    def feature_map(self, images: Tensor) -> Tensor:
        """(N, 1, S, S) or (N, 3, S, S) grey in 0..1 -> (N, D, S/32, S/32)."""
        rgb = images.expand(-1, 3, -1, -1)
        normalised = (rgb - self.mean) / self.std
        if images.is_cuda or images.device.type == "cpu":
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.features(normalised)
        return F.relu(features) if self.relu else features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: (N, 1, S, S) float, 0 black to 1 white.

        Returns:
            Patch tokens (N, P, D), row-major from the top left, P = (S/32)**2, and pooled features
            (N, D), their mean.
        """
        tokens = self.feature_map(images).flatten(2).transpose(1, 2)  # (N, P, D)
        return tokens, tokens.mean(dim=1)


def least_weights(name: str) -> int:
    """A lower bound of the number of weights of a backbone, without building it; 0 for an unknown name."""
    if name not in models.list_models(module=models):
        return 0
    published = next(iter(models.get_model_weights(name)))
    return max(int(published.meta["num_params"]) - _LARGEST_CLASSIFIER, 0)


def _build(name: str, weights: str) -> nn.Module:
    if weights == "none":
        return _untrained(name)
    if weights == "imagenet":
        try:
            network: nn.Module = models.get_model(name, weights="DEFAULT")
        except Exception as error:
            raise ValueError(
                f"ImageNet weights of {name} could not be downloaded ({type(error).__name__}: {error}). "
                "Give a file (--backbone-weights FILE) or train from scratch (--backbone-weights none)."
            ) from error
        return network
    network = _untrained(name)
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"backbone weights {weights!r}: no such file; use 'imagenet', 'none' or a file")
    missing, unexpected = network.load_state_dict(_without_classifier(_read_state(path)), strict=False)
    missing = [key for key in missing if not _is_classifier(key)]
    if missing or unexpected:
        raise ValueError(
            f"{path.name} does not match {name}: {len(missing)} keys missing (first {missing[:1]}), "
            f"{len(unexpected)} unknown (first {unexpected[:1]})"
        )
    return network


def _untrained(name: str) -> nn.Module:
    network: nn.Module = models.get_model(name, weights=None)
    return network


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    state = torch.load(path, map_location="cpu", weights_only=True)
    inner = state.get("state_dict", state) if isinstance(state, dict) else state
    return {key.removeprefix("module."): value for key, value in inner.items()}


_CLASSIFIERS = ("classifier.", "fc.", "head.", "heads.")


def _is_classifier(key: str) -> bool:
    return key.startswith(_CLASSIFIERS)


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not _is_classifier(key)}


def _headless(network: nn.Module) -> nn.Module:
    """The part of a torchvision classifier up to its last spatial map."""
    features = getattr(network, "features", None)  # densenet, efficientnet, convnext, mobilenet, vgg
    if isinstance(features, nn.Module):
        return features
    children = list(network.children())
    if hasattr(network, "layer4"):  # resnet family: drop avgpool and fc
        return nn.Sequential(*children[:-2])
    raise ValueError(
        f"{type(network).__name__} has no single spatial feature map; use a densenet*, resnet* or efficientnet*"
    )
