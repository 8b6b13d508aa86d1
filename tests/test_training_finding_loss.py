"""The loss of pretraining and its options for rare findings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.config import PretrainConfig
from training.stages.finding_loss import finding_loss, positive_weights

LOGITS = torch.tensor([[2.0, -1.0], [-3.0, 0.5]])
TARGETS = torch.tensor([[1.0, 0.0], [0.25, 1.0]])
KNOWN = torch.tensor([[1.0, 1.0], [1.0, 0.0]])


def test_without_options_it_is_binary_cross_entropy() -> None:
    assert (PretrainConfig().positive_power, PretrainConfig().focus) == (0, 0)
    assert positive_weights(TARGETS, KNOWN, 0) is None
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGETS, weight=KNOWN, reduction="sum")
    assert torch.equal(finding_loss(LOGITS, TARGETS, KNOWN, None, 0), expected)
    torch.testing.assert_close(finding_loss(LOGITS, TARGETS, KNOWN, None, 1e-7), expected)


def test_positive_weights_balance_the_classes() -> None:
    values = torch.zeros(10, 3)
    values[:2, 0], values[:9, 1] = 1, 1
    mask = torch.ones(10, 3)
    mask[8:, 0] = 0  # two positive and six negative targets are known
    weights = positive_weights(values, mask, 1.0)
    assert weights is not None
    assert weights.tolist() == pytest.approx([3, 1 / 9, 20])  # a finding without cases has the largest weight
    half = positive_weights(values, mask, 0.5)
    assert half is not None
    assert half[:2].tolist() == pytest.approx([3**0.5, 1 / 3])


def test_focus_lowers_the_weight_of_easy_negatives() -> None:
    weights = torch.tensor([2.0, 5.0])
    sigmoid = LOGITS.sigmoid()
    easy = (sigmoid[1, 0] ** 2 * -torch.log(1 - sigmoid[1, 0])) * 0.75
    expected = -2 * torch.log(sigmoid[0, 0]) - torch.log(1 - sigmoid[0, 1]) * sigmoid[0, 1] ** 2
    expected = expected - 0.25 * 2 * torch.log(sigmoid[1, 0]) + easy
    torch.testing.assert_close(finding_loss(LOGITS, TARGETS, KNOWN, weights, 2.0), expected)
    plain = finding_loss(LOGITS, TARGETS, KNOWN, weights, 0)
    assert float(expected) < float(plain)
