"""What consensus decoding needs of the training reports: their n-gram vectors and their embeddings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.consensus import ORDERS, Consensus, Phrases
from model.text_tower import pad_ids
from model.tokenizer import Tokenizer
from training.studies import Study
from training.targets import label_vector

log = logging.getLogger(__name__)

MIN_REPORTS = 3  # training reports that must hold a phrase for it to be kept
FREQUENT = 0.2  # share of them from which on a phrase is kept by itself
Floats = npt.NDArray[np.float32]


def build_consensus(
    studies: Sequence[Study], vectors: Floats, tokenizer: Tokenizer, *, directions: int, max_length: int, seed: int
) -> Consensus:
    """Take from training reports what ``model.consensus`` reads.

    Args:
        studies: training studies, N.
        vectors: (N, E) text embeddings of their reports, unit length.
        tokenizer: of the model that will write.
        directions: R, of the singular value decomposition; no more than there are reports or phrases.
        max_length: tokens at which reports are cut, as in training.
        seed: of the decomposition.
    """
    ids = pad_ids([tokenizer.encode(study.report, max_length) for study in studies], max_length).numpy()
    tokens = np.where(ids == tokenizer.eos_id, 0, ids)[:, 1:]  # neither bos nor eos
    phrases = Phrases.of(tokens)
    keys, place, frequency = np.unique(phrases.key, return_inverse=True, return_counts=True)
    idf = np.log(len(studies)) - np.log(frequency)
    weight = phrases.count * idf[place]
    slot = phrases.text * ORDERS + phrases.order
    norm = np.sqrt(np.bincount(slot, weight**2, len(studies) * ORDERS))
    part = (weight / np.maximum(norm[slot], 1e-9)).astype(np.float32)

    kept = np.flatnonzero(frequency >= MIN_REPORTS)
    column = np.full(len(keys), -1)
    column[kept] = np.arange(len(kept))
    held = column[place] >= 0
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([phrases.text[held], column[place[held]]])),
        torch.from_numpy(part[held]),
        (len(studies), len(kept)),
        check_invariants=True,
    ).coalesce()
    rank = min(directions, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, scale, right = torch.svd_lowrank(matrix, q=min(rank + 32, *matrix.shape), niter=4)
    frequent = np.flatnonzero(frequency[kept] >= FREQUENT * len(studies))
    holds = np.zeros((len(studies), len(kept)), np.uint8)
    holds[phrases.text[held], column[place[held]]] = 1
    order = np.zeros(len(keys), np.int8)
    order[place] = phrases.order
    log.info(
        "consensus: %d reports, %d phrases, %d directions hold %.0f %% of their vectors", len(studies), len(kept), rank,
        100 * float((scale[:rank] ** 2).sum() / matrix.values().pow(2).sum()),
    )  # fmt: skip
    return Consensus(
        keys=keys[kept],
        order=order[kept],
        idf=np.append(idf[kept], np.log(len(studies))).astype(np.float32),
        basis=right[:, :rank].T.numpy().astype(np.float16),
        vectors=vectors.astype(np.float16),
        coordinates=(left * scale)[:, :rank].numpy().astype(np.float16),
        norms=norm.reshape(-1, ORDERS).astype(np.float32),
        lengths=(tokens > 0).sum(1).astype(np.int16),
        frequent=frequent.astype(np.int32),
        holds=holds[:, frequent],
        findings=np.stack([label_vector(study.report)[0] for study in studies]).astype(np.uint8),
    )
