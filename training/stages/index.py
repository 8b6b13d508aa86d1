"""Stage ``index``: embed the training reports, store them with their cases, measure how well images retrieve them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.network.dual_encoder import StudyHead, TextTower, embed_reports
from model.network.report_model import ReportModel
from model.text.labeler import label_report
from model.text.tokenizer import Tokenizer
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from retrieval_index.openi import page_url
from training.data.features import PatchSource
from training.data.studies import Study
from training.data.targets import label_vector
from training.protocols import IU_XRAY, Protocol
from training.scoring.cider import CiderD
from training.scoring.protocol import comparable_reference, comparable_vocabulary
from training.stages.common import Rows

log = logging.getLogger(__name__)
_BATCH = 64


def build_index(
    model: ReportModel, train: Sequence[Study], tokenizer: Tokenizer, directory: Path, *, public: bool
) -> ReportIndex:
    """Embed the reports of ``train`` and save the index as ``reports.faiss`` and ``cases.jsonl``.

    ``public`` links each case to its page of Open-i.

    Raises:
        ValueError: a study of another split.
    """
    foreign = [study.study_id for study in train if study.split != "train"]
    if foreign:
        raise ValueError(f"only training studies may enter the index; found {foreign[:3]} of other splits")
    cases = [
        Case(case_id=study.case_id, findings=study.report, labels=dict(label_report(study.report)),
             source_url=page_url(study.images[0].key) if public else None)
        for study in train
    ]  # fmt: skip
    model.eval()
    vectors = embed_reports(model.text_tower, tokenizer, [study.report for study in train])
    index = ReportIndex.build(vectors, cases)
    directory.mkdir(parents=True, exist_ok=True)
    index.save(directory)
    log.info("index: %d cases of width %d", len(index), index.dim)
    return index


# --- metrics ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def embed_studies(
    head: StudyHead, features: PatchSource, studies: Sequence[Study], random: torch.Generator | None = None
) -> npt.NDArray[np.float32]:
    """Embed studies by their images: (N, E) float32, L2-normalised.

    ``random`` draws augmented images and missing views, as in training; None embeds as in serving.
    """
    head.eval()
    batches = (studies[i : i + _BATCH] for i in range(0, len(studies), _BATCH))
    patches = (features.patches(batch, random, tokens=False) for batch in batches)
    return np.concatenate([head(each.pooled, each.views, each.view_mask).float().cpu().numpy() for each in patches])


def report_similarity(
    tower: TextTower, queries: npt.NDArray[np.float32], studies: Sequence[Study], tokenizer: Tokenizer
) -> Tensor:
    """(N, N) similarity, on the CPU, of ``embed_studies`` (rows) to the report of each study (columns)."""
    reports = embed_reports(tower.eval(), tokenizer, [study.report for study in studies])
    return torch.from_numpy(queries) @ torch.from_numpy(reports).t()


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
    index: ReportIndex, rows: Rows, studies: Sequence[Study], seed: int, protocol: Protocol = IU_XRAY
) -> dict[str, float]:
    """Agreement of cases with the reports of the studies that retrieved them, and of random cases.

    ``rows`` (N, K) are the cases of each study, without its own. The agreement is that of findings
    (``label_agreement``) and CIDEr-D, 0 to 10, on the strings of the comparable row.
    """
    k = rows.shape[1]
    drawn = np.random.default_rng(seed).integers(0, len(index), rows.shape)
    own = np.array([study.case_id for study in studies])[:, None]
    ids = np.array([index.case(row).case_id for row in range(len(index))])
    texts = [index.case(row).findings or "" for row in range(len(index))]
    reports = [study.report for study in studies]
    scores: dict[str, float] = {}
    for name, table in ((f"top{k}", rows), ("random", np.where(ids[drawn] == own, -1, drawn))):
        found = [[texts[row] for row in row_set if row >= 0] for row_set in table]
        scores[f"label_agreement_{name}"] = label_agreement(found, reports)
        scores[f"cider_{name}"] = _cider(found, reports, texts, protocol)
    return scores


def _cider(found: Sequence[Sequence[str]], reports: Sequence[str], train: Sequence[str], protocol: Protocol) -> float:
    """Mean CIDEr-D of the texts found for each report, with the document frequencies of the training reports."""
    prepared = partial(comparable_reference, vocabulary=comparable_vocabulary(train, protocol), protocol=protocol)
    documents, references = (list(map(prepared, texts)) for texts in (train, reports))
    candidates = [(prepared(text), row) for row, texts in enumerate(found) for text in texts]
    texts, rows = zip(*candidates, strict=True) if candidates else ((), ())
    return float(CiderD(references, documents).scores(texts, rows).mean()) if candidates else 0.0
