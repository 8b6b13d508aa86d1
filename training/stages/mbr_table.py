"""The table for MBR decoding: n-gram vectors and embeddings of the training reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.decoding.attested import attested_keys, sentence_keys
from model.decoding.mbr_table import ORDERS, MbrTable, NgramCounts, without_word
from model.network.dual_encoder import pad_ids
from model.text.tokenizer import END_OF_SENTENCE, Tokenizer
from training.data.studies import Study
from training.data.targets import label_vector

log = logging.getLogger(__name__)

MIN_REPORTS = 5  # training reports that must contain a phrase for it to be kept
LONGEST = 1024  # words of a report that are read for its sentences
FREQUENT = 0.2  # share of reports from which a phrase has its own column
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Analysis:
    """The fields of ``MbrTable`` that come from the words of N reports, not yet quantised."""

    keys: npt.NDArray[np.int64]
    order: npt.NDArray[np.int8]
    idf: Floats
    basis: Floats
    coordinates: Floats  # (N, R), rows of length 2 at most
    norms: Floats
    frequent: npt.NDArray[np.int32]
    holds: npt.NDArray[np.uint8]


def report_tokens(studies: Sequence[Study], tokenizer: Tokenizer, max_length: int) -> Ints:
    """(N, T) word ids of the studies' training texts, cut as in training, without bos and eos, 0-padded."""
    ids = pad_ids([tokenizer.encode(study.training_text, max_length) for study in studies], max_length).numpy()
    tokens: Ints = np.where(ids == tokenizer.eos_id, 0, ids)[:, 1:]
    return tokens


def attested_sentences(studies: Sequence[Study], tokenizer: Tokenizer) -> dict[str, Any]:
    """The arrays of ``MbrTable`` that say which sentences stand in the training texts, uncut."""
    tokens, stop = report_tokens(studies, tokenizer, LONGEST), tokenizer.id_of(END_OF_SENTENCE)
    return {"attested": attested_keys(tokens, stop), "sentences": sentence_keys(tokens, stop)}


def analyse(tokens: Ints, directions: int, seed: int) -> Analysis:
    """Latent semantic analysis of the CIDEr vectors of reports, (N, T) tokens.

    ``directions`` is R of the singular value decomposition, at most the number of reports or phrases.
    """
    count = len(tokens)
    phrases = NgramCounts.of(tokens)
    keys, key_of, frequency = np.unique(phrases.key, return_inverse=True, return_counts=True)
    idf = np.log(count) - np.log(frequency)
    weight = phrases.count * idf[key_of]
    slot = phrases.text * ORDERS + phrases.order
    norm = np.sqrt(np.bincount(slot, weight**2, count * ORDERS))
    part = (weight / np.maximum(norm[slot], 1e-9)).astype(np.float32)

    kept = np.flatnonzero(frequency >= MIN_REPORTS)
    column = np.full(len(keys), -1)
    column[kept] = np.arange(len(kept))
    held = column[key_of] >= 0
    text, phrase = phrases.text[held], column[key_of[held]]
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([text, phrase])), torch.from_numpy(part[held]), (count, len(kept)),
        check_invariants=True,
    ).coalesce()  # fmt: skip
    rank = min(directions, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, scale, right = torch.svd_lowrank(matrix, q=min(rank + 32, *matrix.shape), niter=4)
    share = float((scale[:rank] ** 2).sum() / matrix.values().pow(2).sum())
    log.info("%d reports, %d phrases; %d directions hold %.0f %% of their vectors", count, len(kept), rank, 100 * share)

    frequent = np.flatnonzero(frequency[kept] >= FREQUENT * count)
    holds = np.zeros((count, len(kept)), np.uint8)
    holds[text, phrase] = 1
    order = np.zeros(len(keys), np.int8)
    order[key_of] = phrases.order
    return Analysis(
        keys=keys[kept],
        order=order[kept],
        idf=np.append(idf[kept], np.log(count)).astype(np.float32),
        basis=right[:, :rank].T.numpy(),
        coordinates=(left * scale)[:, :rank].numpy(),
        norms=norm.reshape(-1, ORDERS).astype(np.float32),
        frequent=frequent.astype(np.int32),
        holds=holds[:, frequent],
    )


def in_steps(values: Floats, axis: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Values quantised to int8 with a scale along ``axis``, and that scale."""
    step = np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-9).astype(np.float32) / np.float32(127)
    return np.rint(values / step).astype(np.int8), step


def build_consensus(
    studies: Sequence[Study], vectors: Floats, tokenizer: Tokenizer, *, directions: int, max_length: int, seed: int
) -> MbrTable:
    """Build the table that ``model.decoding.mbr`` reads from N training studies.

    Its statistics are of the words without commas, as scores are; the attested sentences have them.
    ``vectors`` (N, E) are text embeddings of their reports, of unit length; ``max_length`` is the
    number of tokens at which reports are cut, as in training.
    """
    tokens = report_tokens(studies, tokenizer, max_length)
    scored = without_word(tokens, tokenizer.comma_id)
    found = analyse(scored, directions, seed)
    basis, basis_step = in_steps(found.basis, 1)
    coordinates, coordinate_step = in_steps(found.coordinates, 0)
    return MbrTable(
        **{**vars(found), "basis": basis, "coordinates": coordinates},
        basis_step=basis_step,
        coordinate_step=coordinate_step,
        vectors=in_steps(vectors, 1)[0],
        lengths=(scored > 0).sum(1).astype(np.int16),
        findings=np.stack([label_vector(study.report)[0] for study in studies]).astype(np.uint8),
        **attested_sentences(studies, tokenizer),
    )
