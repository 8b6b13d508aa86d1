"""Cases of the training studies by retrievers that have not seen them.

A retriever finds much better cases for the studies of its training than for others, because it has
memorised these pairs. Stages that train with such cases learn to trust cases more than serving
allows. Here the studies are divided into folds. A retriever for each fold is trained on the other
folds and finds, among all other training reports, the cases of the studies of its fold.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.config import ModelConfig
from model.files import write_atomic
from model.network.dual_encoder import StudyHead, TextTower, dual_encoder, embed_reports
from model.text.tokenizer import Tokenizer
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from training.config import RetrieverConfig
from training.data.features import PatchSource
from training.data.studies import Study, one_study_a_report
from training.scoring.binary import folds
from training.stages.common import Rows, StudySplits
from training.stages.index import embed_studies
from training.stages.retriever import train_retriever
from training.trainer.context import RunContext
from training.trainer.loop import step_seed

log = logging.getLogger(__name__)

DRAWS = 8  # queries of each study: the images as they are, then augmented ones with missing views


def out_of_fold_cases(
    model: ModelConfig, width: int, tokenizer: Tokenizer, features: PatchSource, studies: StudySplits,
    config: RetrieverConfig, context: RunContext,
) -> Rows:  # fmt: skip
    """Train a retriever for each fold; returns the cases of each training study.

    Args:
        model: dimensions of the encoders.
        width: D of the backbone.

    Returns:
        (N, DRAWS, K) rows of the index, best first, -1 where there are fewer than K; draw 0 is of unchanged images.
    """
    train = studies.train
    fold_of = folds([study.group for study in train], config.folds, context.seed)
    found = np.full((len(train), DRAWS, model.retrieval_k), -1, np.int64)
    for fold in range(config.folds):
        held = np.flatnonzero(fold_of == fold)
        stage = f"retriever/fold-{fold + 1}"
        torch.manual_seed(step_seed(context.seed, stage, 0))
        encoders = dual_encoder(model, width)
        others = [study for study, number in zip(train, fold_of, strict=True) if number != fold]
        train_retriever(encoders, tokenizer, features, StudySplits(others, studies.val), config, context, stage)
        log.info("fold %d of %d: cases of %d studies", fold + 1, config.folds, len(held))
        found[held] = _search(encoders, tokenizer, features, train, held, model.retrieval_k, context.seed)
    return found


def _search(
    encoders: tuple[StudyHead, TextTower], tokenizer: Tokenizer, features: PatchSource, train: Sequence[Study],
    held: Rows, k: int, seed: int,
) -> Rows:  # fmt: skip
    """(n, DRAWS, k) rows of the index: the cases of the studies ``held`` (n,), without their own."""
    head, tower = encoders
    indexed = one_study_a_report(train)
    vectors = embed_reports(tower.eval(), tokenizer, [study.report for study in indexed])
    index = ReportIndex.build(vectors, [Case(study.case_id, None, {}, None) for study in indexed])
    queried = [train[row] for row in held.tolist()]
    found = np.full((len(held), DRAWS, k), -1, np.int64)
    for draw in range(DRAWS if queried else 0):
        random = torch.Generator().manual_seed(step_seed(seed, "cases", draw)) if draw else None
        queries = embed_studies(head, features, queried, random)
        found[:, draw] = index.search(queries, k, exclude=[study.case_id for study in queried])[1]
    return found


def save_cases(path: Path, cases: Rows) -> None:
    """Write the result of ``out_of_fold_cases``."""
    content = io.BytesIO()
    np.save(content, cases.astype(np.int32))
    write_atomic(path, content.getvalue())


def load_cases(path: Path, count: int) -> Rows:
    """Read the cases of ``count`` studies; raises ValueError where the file is missing or of another run."""
    try:
        cases: Rows = np.load(path, allow_pickle=False).astype(np.int64)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove {path.parent} to repeat stage retriever") from error
    if cases.ndim != 3 or len(cases) != count or cases.max(initial=-1) >= count:
        raise ValueError(f"{path} has cases of {len(cases)} studies, not of {count}; remove {path.parent} to repeat "
                         "stage retriever")  # fmt: skip
    return cases
