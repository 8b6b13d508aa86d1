"""Visual extractor: the last feature map of a CNN, as patch tokens.

DenseNet-121 gives D = 1,024 channels, EfficientNet-Lite 1,280 and ResNet-101 2,048; at S = 224 each
gives a 7 x 7 grid, 49 patch tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.pretrained import feature_extractor, input_statistics

_PROBE, _GRID = 64, (2, 2)  # pixels of a side, and the feature map that they must give
_OFFSETS = {"efficientnet_lite": 0.5, "resnet": -0.5}  # of names that begin so; padding moves each layer of stride 2
_IMAGES_AT_ONCE = 2  # or 3, on a CPU: more are not faster, and 16 need 400 MB for their feature maps


class Backbone(nn.Module):
    """Grey pixels in, patch tokens out. The normalisation constants are buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, weights: str = "none") -> None:
        """Build the extractor.

        Args:
            name: ``densenet121``, ``resnet101``, another torchvision classifier whose features are
                one map of stride 32, or ``efficientnet_lite0``, ``1`` or ``2``.
            weights: ``none``; ``imagenet`` (``model.network.pretrained``); or a path to a state
                dict of that model (.pth read with weights_only, or .safetensors), classifier keys
                ignored, or of a report model: ``model.safetensors`` of a bundle, ``result.pt`` of a
                stage.

        Raises:
            ValueError: the model is unknown or has another stride, or the weights cannot be loaded
                or do not match; names the remedy.
        """
        super().__init__()
        self.features = feature_extractor(name, weights)
        self.name = name
        self.relu = name.startswith("densenet")  # torchvision's DenseNet applies its last ReLU outside `features`
        for buffer, values in zip(("mean", "std"), input_statistics(name), strict=True):
            self.register_buffer(buffer, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        with torch.inference_mode():
            was_training = self.training
            self.eval()
            shape = self.feature_map(torch.zeros(1, 1, _PROBE, _PROBE)).shape  # (1, D, 2, 2)
            self.train(was_training)
        if shape[2:] != _GRID:
            raise ValueError(
                f"backbone {name!r} turns {_PROBE} x {_PROBE} pixels into features of shape {tuple(shape)}, not into a "
                "map of stride 32; use a densenet*, resnet*, convnext* or efficientnet*"
            )
        self.width = shape[1]
        self.offset = next((offset for start, offset in _OFFSETS.items() if name.startswith(start)), 0.0)

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
        few = images.device.type == "cpu" and not self.training and not torch.is_grad_enabled()
        parts = images.tensor_split(max(1, len(images) // _IMAGES_AT_ONCE)) if few else [images]
        maps = torch.cat([self.feature_map(part) for part in parts])  # (N, D, S/32, S/32)
        tokens = maps.flatten(2).transpose(1, 2)  # (N, P, D)
        return tokens, tokens.mean(dim=1)

    def onto_patches(self, values: Tensor) -> Tensor:
        """Values of patch tokens as values of the patches of the image: (..., P) -> (..., P), with the same sum.

        The receptive field of a token is centred ``offset`` patches below and right of its patch, so
        its value is shared by the patches around that centre; values beyond the edge stay on it.
        """
        if not self.offset:
            return values
        grid, whole = math.isqrt(values.shape[-1]), math.floor(self.offset)
        shares = values.new_zeros(grid, grid)  # (patch, token); columns sum to 1
        for step, share in ((whole, 1 - (self.offset - whole)), (whole + 1, self.offset - whole)):
            for token in range(grid):
                shares[min(max(token + step, 0), grid - 1), token] += share
        moved: Tensor = shares @ values.reshape(*values.shape[:-1], grid, grid) @ shares.T
        return moved.flatten(-2)
