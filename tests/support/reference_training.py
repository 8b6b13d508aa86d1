"""The published R2GenCMN training in plain PyTorch: the reference for the preset ``r2gencmn``.

``main_train.py``, ``modules/optimizers.py``, ``modules/loss.py`` and ``modules/trainer.py`` of the
published code: Adam with AMSGrad and two rates, StepLR, no clipping, the visual extractor in
training mode on one position of the studies at a time. Dropout is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.support.reference_cmn import ReferenceCMN

MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def visual_extractor(seed: int, width: int = 48) -> nn.Sequential:
    """A small stand-in for the ResNet, (N, 3, S, S) -> (N, width, S/32, S/32), with drawn weights.

    It is smooth: rounding turns the sign of single ReLU inputs of a ResNet, and the losses of two
    equal programs drift apart.
    """
    torch.manual_seed(seed)
    first, second = nn.Conv2d(3, 16, 8, 8, bias=False), nn.Conv2d(16, width, 4, 4, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.Tanh(), second, nn.BatchNorm2d(width), nn.Softplus())


@dataclass(frozen=True)
class Batch:
    """Images (B, V, 1, S, S) in 0..1 and published ids (B, T): 0, words, 0, padded by 0."""

    images: Tensor
    ids: Tensor


class ReferenceTraining:
    """The published training steps; ``weights`` are those of ``plain`` by published names."""

    def __init__(self, visual: nn.Sequential, plain: ReferenceCMN, *, step_size: int) -> None:
        self.visual, self._plain = visual.train(), plain
        self.weights = plain.train()
        rates = ((visual.parameters(), 1e-4), (self.weights.values(), 5e-4))
        groups = [{"params": list(weights), "lr": rate} for weights, rate in rates]
        self._optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), eps=1e-9, weight_decay=5e-5, amsgrad=True)
        self._scheduler = torch.optim.lr_scheduler.StepLR(self._optimizer, step_size, 0.8)

    def epoch(self, batches: Sequence[Batch]) -> list[float]:
        """The loss of each step."""
        losses = [self._step(batch) for batch in batches]
        self._scheduler.step()
        return losses

    def _step(self, batch: Batch) -> float:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        views = [
            self.visual((batch.images[:, view].expand(-1, 3, -1, -1) - mean) / std).flatten(2).transpose(1, 2)
            for view in range(batch.images.shape[1])
        ]
        loss = self._plain.loss(torch.cat(views, dim=1), batch.ids)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())
