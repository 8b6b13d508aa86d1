"""Binary cross-entropy of findings, with options for rare ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_LARGEST_WEIGHT = 20.0  # of a positive target


def positive_weights(values: Tensor, mask: Tensor, power: float) -> Tensor | None:
    """(C,) weight of positive targets: negatives per positive among the known ones, to this power.

    ``values`` and ``mask`` are (N, C). A power of 1 gives both classes the same total weight (up to
    a limit of 20), 0 gives None.
    """
    if not power:
        return None
    positive = (values * mask).sum(0)
    ratio = (mask.sum(0) - positive) / positive.clamp(min=1e-6)
    return ratio.clamp(min=1e-6).pow(power).clamp(max=_LARGEST_WEIGHT)


def finding_loss(logits: Tensor, targets: Tensor, known: Tensor, weights: Tensor | None, focus: float) -> Tensor:
    """Binary cross-entropy of (B, C) logits, summed over the known targets.

    ``weights`` are those of ``positive_weights``. With ``focus`` above 0 a negative target counts
    less the lower its predicted probability is: by that probability to the power ``focus`` (Ridnik
    et al. 2021, "Asymmetric Loss For Multi-Label Classification", with γ− = ``focus``, γ+ = 0).
    """
    if not focus:
        return F.binary_cross_entropy_with_logits(logits, targets, weight=known, pos_weight=weights, reduction="sum")
    positive = targets * F.softplus(-logits) * (1.0 if weights is None else weights)
    negative = (1 - targets) * F.softplus(logits) * logits.sigmoid() ** focus
    return (known * (positive + negative)).sum()
