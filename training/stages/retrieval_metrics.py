"""How well images retrieve reports: recall of a study's report, agreement of the retrieved cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.network.dual_encoder import embed_reports
from model.network.report_model import ReportModel
from model.text.tokenizer import Tokenizer
from retrieval_index.index import ReportIndex
from training.data.features import PatchSource
from training.data.studies import Study
from training.data.targets import label_vector

_BATCH = 64


@torch.inference_mode()
def embed_studies(model: ReportModel, patches: PatchSource, studies: Sequence[Study]) -> npt.NDArray[np.float32]:
    """Embed studies by their images, as in serving: (N, E) float32, L2-normalised."""
    batches = (studies[i : i + _BATCH] for i in range(0, len(studies), _BATCH))
    return np.concatenate(
        [model.embed_study(patches.patches(batch, None, tokens=False)).float().cpu().numpy() for batch in batches]
    )


@torch.inference_mode()
def study_report_similarity(
    model: ReportModel, patches: PatchSource, studies: Sequence[Study], tokenizer: Tokenizer
) -> Tensor:
    """(N, N) similarity, on the CPU, of each study's images (rows) to each report (columns)."""
    model.eval()
    queries = torch.from_numpy(embed_studies(model, patches, studies))
    reports = embed_reports(model.text_tower, tokenizer, [study.report for study in studies])
    return queries @ torch.from_numpy(reports).t()


def recall(similarity: Tensor) -> dict[str, float]:
    """Share of studies whose report ranks among the best 1, 5 and 10, and the mean reciprocal rank
    ``mrr``; ``similarity`` (N, N) is of study i to report j. Ties do not lower a rank.
    """
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    metrics = {f"recall_{k}": float((rank < k).float().mean()) for k in (1, 5, 10)}
    return {**metrics, "mrr": float((1 / (rank + 1)).mean())}


def label_agreement(retrieved: Sequence[Sequence[str]], reports: Sequence[str]) -> float:
    """Mean Jaccard overlap of the present findings of reports and of those retrieved for them."""
    total = []
    for report, others in zip(reports, retrieved, strict=True):
        expected = label_vector(report)[0] > 0
        for other in others:
            found = label_vector(other)[0] > 0
            union = (expected | found).sum()
            total.append(float((expected & found).sum() / union) if union else 1.0)
    return float(np.mean(total)) if total else 0.0


def retrieval_scores(
    model: ReportModel, index: ReportIndex, patches: PatchSource, studies: Sequence[Study], k: int, seed: int
) -> dict[str, float]:
    """Label agreement of the top-k cases of ``studies``, and that of random cases."""
    model.eval()
    queries = embed_studies(model, patches, studies)
    _, rows = index.search(queries, k, exclude=[study.study_id for study in studies])
    reports = [study.report for study in studies]
    drawn = np.random.default_rng(seed).integers(0, len(index), rows.shape)
    found, random = (
        [[index.case(int(row)).findings or "" for row in row_set if row >= 0] for row_set in table]
        for table in (rows, drawn)
    )
    return {f"label_agreement_top{k}": label_agreement(found, reports),
            "label_agreement_random": label_agreement(random, reports)}  # fmt: skip
