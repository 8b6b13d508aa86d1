"""Evidence maps: class activation maps of the finding classifier (Zhou et al. 2016).

The classifier is linear, and its input is the mean of a view's patch tokens. So the logit of a
finding is exactly the sum of what each patch contributes, and the logit of a reference::

    logit(view) = logit(reference) + sum over patches p of  w . (token[p] - reference) / P

The reference is the mean patch token of the training images (``feature_norm``), or 0 without it.

Much of a contribution is common to all findings: the patch looks abnormal. A map therefore shows
the contributions to the *specific logit* of a finding, which is its logit minus ``SHARED`` times
the mean logit of the 13 findings: the same sum with w minus ``SHARED`` times the mean w. A positive
contribution speaks for the finding, a negative one against it. All findings, studies and views
share this one scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from model.decoding.attention_maps import grids_by_view
from model.network.report_model import Patches, ReportModel
from model.text.labeler import FINDINGS, SCORED_FINDINGS
from model.types import Label, SentenceEvidence

SHARED: Final = 0.75
"""Chosen on val: with 0, maps of different findings are alike; with 1, to erase what a map shows lowers the finding's
probability less."""

_SCORED = [FINDINGS.index(name) for name in SCORED_FINDINGS]


@dataclass(frozen=True)
class FindingEvidence:
    """Contributions of the patches of a batch to the logits of the findings.

    Attributes:
        contributions: (B, V, P, 14) float32; 0 where a view is missing.
        reference: (14,) logits of the reference.
    """

    contributions: Tensor
    reference: Tensor

    @property
    def specific(self) -> Tensor:
        """Contributions to the specific logits: (B, V, P, 14)."""
        return self.contributions - SHARED * self.contributions[..., _SCORED].mean(dim=-1, keepdim=True)

    def of_sentence(self, study: int, labels: Mapping[str, Label], views: Sequence[str]) -> SentenceEvidence | None:
        """The map of one finding of a sentence, for a study with images of ``views``, in this order.

        Of the present and uncertain findings it is the one that the images support most; if all
        are absent, the one that they support least. None for a sentence without a finding.

        Args:
            study: row of the batch.
            labels: findings that the sentence names.
            views: names of the images.
        """
        if not labels:
            return None
        values = self.specific[study]  # (V, P, 14)
        support = dict(zip(FINDINGS, values.sum(dim=(0, 1)).tolist(), strict=True))
        stated = [name for name, label in labels.items() if label != "absent"]
        finding = max(stated, key=support.__getitem__) if stated else min(labels, key=support.__getitem__)
        grid = math.isqrt(values.shape[1])
        return SentenceEvidence(finding, grids_by_view(values[..., FINDINGS.index(finding)].flatten(), grid, views))


@torch.no_grad()
def evidence_of(model: ReportModel, patches: Patches) -> FindingEvidence | None:
    """Contributions of each patch to each finding; None for a model without the finding classifier."""
    head, norm = model.finding_head, model.feature_norm
    if head is None:
        return None
    mean = patches.tokens.new_zeros(patches.tokens.shape[-1]) if norm is None else norm.running_mean
    reference = head(mean)
    of_tokens = (head(patches.tokens) - reference) / patches.tokens.shape[2]  # (B, V, P, 14); the bias cancels
    contributions = model.backbone.onto_patches(of_tokens.transpose(2, 3)).transpose(2, 3)
    missing = ~patches.view_mask[:, :, None, None]
    return FindingEvidence(contributions.masked_fill(missing, 0.0).cpu(), reference.cpu())
