"""EfficientNet-Lite: EfficientNet (Tan and Le 2019) without squeeze-excitation, with ReLU6, a stem and a head of fixed
width.

``efficientnet_lite`` computes the same as the published networks for TensorFlow, their padding
included. ``renamed`` reads the names of the published PyTorch weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Variant:
    """Multiples of the channels and layers of lite0, and the SHA-256 of the published ImageNet weights."""

    width: float
    depth: float
    sha256: str


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": Variant(1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": Variant(1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
LICENCE = "Apache-2.0"
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of the pixels that the published weights expect

_STAGES = (  # expansion, kernel, stride, channels, layers of lite0
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM, _HEAD = 32, 1280
_EPS = 1e-3  # of the batch normalisation


class _SameConv2d(nn.Conv2d):
    """A convolution padded as by TensorFlow: at stride 2 the odd pixel of padding goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._padding(size, axis) for axis, size in enumerate(x.shape[2:]))
        return super().forward(F.pad(x, (*columns, *rows)))

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def _layer(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Module:
    conv = nn.Conv2d if stride == 1 else _SameConv2d
    padding = kernel // 2 if stride == 1 else 0
    convolution = conv(before, after, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    layers = [convolution, nn.BatchNorm2d(after, eps=_EPS)]
    return nn.Sequential(*layers, *[nn.ReLU6(inplace=True)] * relu)


class _Block(nn.Module):
    """Inverted bottleneck: (N, before, h, w) -> (N, after, h / stride, w / stride)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            layers["expand"] = _layer(before, wide, 1)
        layers["depthwise"] = _layer(wide, wide, kernel, stride=stride, groups=wide)
        layers["project"] = _layer(wide, after, 1, relu=False)
        self.layers = nn.Sequential(layers)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.layers(x)
        return x + changed if self.residual else changed


def efficientnet_lite(name: str) -> nn.Sequential:
    """Untrained feature extractor: (N, 3, S, S) -> (N, 1280, S/32, S/32)."""
    variant, before = VARIANTS[name], _STEM
    layers: list[nn.Module] = [_layer(3, _STEM, 3, stride=2)]
    for stage, (expansion, kernel, stride, channels, count) in enumerate(_STAGES):
        after = _rounded(channels * variant.width)
        if 0 < stage < len(_STAGES) - 1:  # the first and the last stage are not scaled
            count = -(-count * round(10 * variant.depth) // 10)
        for number in range(count):
            layers.append(_Block(before, after, kernel, stride if number == 0 else 1, expansion))
            before = after
    return nn.Sequential(*layers, _layer(before, _HEAD, 1))


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, which is not 10 % smaller."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


_PARTS = {
    "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
    "_project_conv": "project.0", "_bn2": "project.1",
}  # fmt: skip
_PUBLISHED = re.compile(r"_blocks\.(?P<block>\d+)\.(?P<part>_\w+)\.(?P<name>\w+)")
CLASSIFIER = "_fc."  # of the published weights


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have the names of the published ones."""
    return "_conv_stem.weight" in state


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights, classifier left out, under the names of ``efficientnet_lite``."""
    blocks = 1 + max((int(match["block"]) for key in state if (match := _PUBLISHED.fullmatch(key))), default=-1)
    ends = {"_conv_stem": "0.0", "_bn0": "0.1", "_conv_head": f"{blocks + 1}.0", "_bn1": f"{blocks + 1}.1"}
    names: dict[str, Tensor] = {}
    for key, value in state.items():
        if match := _PUBLISHED.fullmatch(key):
            part = _PARTS.get(match["part"], match["part"])
            names[f"{int(match['block']) + 1}.layers.{part}.{match['name']}"] = value
        elif not key.startswith(CLASSIFIER):
            part, _, name = key.partition(".")
            names[f"{ends.get(part, part)}.{name}"] = value
    return names
