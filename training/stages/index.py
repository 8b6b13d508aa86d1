"""Stage ``index``: embed the training reports with the text tower and store them with their cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from model.network.dual_encoder import embed_reports
from model.network.report_model import ReportModel
from model.text.labeler import label_report
from model.text.tokenizer import Tokenizer
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from retrieval_index.openi import page_url
from training.data.studies import Study

log = logging.getLogger(__name__)


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
        Case(case_id=study.study_id, findings=study.report, labels=dict(label_report(study.report)),
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
