"""What the stages share: inputs of a run, retrieval, targets, optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecodingConfig
from model.decoding.mbr_table import MbrTable
from model.network.dual_encoder import pad_ids
from model.network.report_model import Encoded, Patches, ReportModel
from model.text.tokenizer import Tokenizer
from retrieval_index.index import ReportIndex
from training.data.features import PatchSource
from training.data.studies import Source, Study
from training.data.targets import ExternalLabels
from training.protocols import IU_XRAY, Protocol
from training.registries import Loss
from training.trainer.loop import Batches

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunInputs:
    """The data of a run, and where its results go."""

    source: Source
    out: Path  # the bundle to write
    keep_texts: bool = True  # whether the bundle's cases hold the report texts
    soft_scores: Path | None = None  # CSV of another network's probabilities by image, for pretraining
    external_labels: ExternalLabels | None = None  # of the images of another source, for pretraining
    label_table: Mapping[str, frozenset[str]] | None = None  # study uid -> findings present, for AUROC in pretraining
    cache_dir: Path | None = None  # default <work>/cache; runs on one data set may share it, one at a time
    data_licence: str | None = None  # as the user states it
    evaluate_limit: int | None = None  # val studies scored at the end; None: as many as validation uses


@dataclass(frozen=True)
class StudySplits:
    """Studies with readable images. Only ``train`` takes part in gradient steps."""

    train: Sequence[Study]
    val: Sequence[Study]


@dataclass(frozen=True)
class ReportGenerator:
    """Everything that turns the images of a study into a report, as in serving."""

    model: ReportModel
    tokenizer: Tokenizer
    patches: PatchSource
    index: ReportIndex | None  # None for a model without retrieval
    decoding: DecodingConfig
    mbr: MbrTable | None = None  # for ``consensus`` decoding
    cases: Rows | None = None  # (N, draws, K) of the training studies, by ``training.stages.out_of_fold``
    target_ids: int | None = None  # ids that a training report is cut to; None: the model's ``max_length``
    protocol: Protocol = IU_XRAY  # of the scores while training


def shuffled_batches(count: int, steps: int, *seed: int, size: int | None = None) -> Batches:
    """Epoch -> a permutation of ``count`` rows in ``steps`` parts, from ``seed`` and the epoch.

    The parts are nearly equal; with ``size`` all but the last have this many rows.
    """
    parts = steps if size is None else range(size, count, size)

    def batches(epoch: int) -> list[Rows]:
        return np.array_split(np.random.default_rng((*seed, epoch)).permutation(count), parts)

    return batches


def retrieve(
    model: ReportModel, index: ReportIndex | None, patches: Patches, exclude: Sequence[str] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Report embeddings (B, K, E) and mask (B, K) of the cases nearest to the studies of ``patches``;
    None without an index.

    ``exclude`` has the ids of the studies, each left out of its own result; None where none of them
    is in the index.

    Raises:
        FloatingPointError: a study's embedding is not finite.
    """
    if index is None:
        return None, None
    with torch.no_grad():
        queries = model.embed_study(patches).float()
    _check_finite(queries)
    _, rows = index.search(queries.cpu().numpy(), model.config.retrieval_k, exclude=exclude)
    return _case_vectors(index, rows, patches.pooled.device)


def _check_finite(embeddings: Tensor) -> None:
    """Raise FloatingPointError unless all embeddings (B, E) of studies are finite."""
    bad = int((~embeddings.isfinite()).any(1).sum())
    if bad:
        raise FloatingPointError(
            f"embeddings of {bad} of {len(embeddings)} studies are not finite. The last good checkpoint is kept. "
            "Continue with --resume and --precision fp32; if that does not help, remove the features-* files from "
            "cache/ in the work directory, which are then computed again."
        )


def _case_vectors(index: ReportIndex, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(index.vectors(rows)).to(device), torch.from_numpy(rows >= 0).to(device)


def encode_reports(reports: Sequence[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """(N, T) word ids of reports, cut at ``length``."""
    return pad_ids([tokenizer.encode(report, length) for report in reports], length)


def mask_suppressed_targets(ids: Tensor, decoding: DecodingConfig, tokenizer: Tokenizer) -> Tensor:
    """Word ids with 0 for words that decoding never writes (``xxxx``, ``<unk>``)."""
    targets = ids.clone()
    for word in decoding.suppress:
        if word in tokenizer.tokens:
            targets[targets == tokenizer.id_of(word)] = 0
    return targets


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """The ``Loss`` of the published models."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, label_smoothing=label_smoothing,
                           reduction="sum")  # fmt: skip


class TrainingReports:
    """The inputs and targets of a generator's training studies, by rows of ``train``.

    Attributes:
        names: ids of the studies as cases.
        reports: as they are published, with which drafts are compared; or their headings.
        texts: as the model learns them.
    """

    def __init__(self, generator: ReportGenerator, train: Sequence[Study]) -> None:
        self._generator, self._train = generator, train
        self.names = [study.case_id for study in train]
        self.reports = [study.reference for study in train]
        self.texts = [study.training_text for study in train]
        length = generator.target_ids or generator.model.config.max_length
        self._ids = encode_reports(self.texts, generator.tokenizer, length)
        self._targets = mask_suppressed_targets(self._ids, generator.decoding, generator.tokenizer)

    def inputs(
        self, batch: Rows, local: slice, random: torch.Generator
    ) -> tuple[Patches, Tensor | None, Tensor | None]:
        """Patches, cases and their mask of the ``local`` rows of ``batch``.

        The cases are a random draw of the generator's ``cases``, or where it has none, those that
        ``retrieve`` finds.
        """
        generator = self._generator
        patches = generator.patches.patches([self._train[i] for i in batch], random, part=local)
        if generator.cases is None or generator.index is None:
            return patches, *retrieve(generator.model, generator.index, patches, [self.names[i] for i in batch[local]])
        _check_finite(patches.pooled.flatten(1))
        draws = torch.randint(generator.cases.shape[1], (len(batch),), generator=random).numpy()
        return patches, *_case_vectors(generator.index, generator.cases[batch, draws][local], patches.pooled.device)

    def nll(
        self, encoded: Encoded, batch: Rows, local: slice, label_smoothing: float = 0.0, loss: Loss | None = None
    ) -> Tensor:
        """Teacher-forced negative log-likelihood, summed over the words of the ``local`` reports and
        divided by the number of words of all reports of ``batch``.

        ``label_smoothing`` is the share of the target spread over all words; ``loss`` replaces
        ``cross_entropy``.
        """
        ids, targets, device = self._ids[batch[local]], self._targets[batch[local]], encoded.source.device
        width = max(2, int((ids != 0).sum(1).max()))
        logits = self._generator.model(encoded, ids[:, : width - 1].to(device))
        summed = (loss or cross_entropy)(logits.float(), targets[:, 1:width].to(device), label_smoothing)
        words = int((self._targets[batch][:, 1:] != 0).sum())  # the first of each row is bos
        return summed / max(words, 1)


class FrozenPartsModule(nn.Module):
    """The report model with its frozen parts in eval mode.

    The text tower is always frozen, and the backbone keeps its normalisation statistics unless
    ``batch_statistics``. The study head embeds as in serving; it is trained only if the backbone is trained.
    """

    def __init__(self, model: ReportModel, train_backbone: bool, batch_statistics: bool = False) -> None:
        super().__init__()
        self.model, self._batch_statistics = model, batch_statistics
        model.requires_grad_(True)
        if not train_backbone:
            model.backbone.requires_grad_(False)
        if model.config.retrieval_k:
            model.text_tower.requires_grad_(False)
            model.study_head.requires_grad_(train_backbone)

    def train(self, mode: bool = True) -> FrozenPartsModule:
        super().train(mode)
        if not self._batch_statistics:
            self.model.backbone.eval()
        if self.model.config.retrieval_k:
            self.model.text_tower.eval()
            self.model.study_head.eval()
        return self


def build_optimizer(
    model: ReportModel, *, backbone_lr: float, head_lr: float, weight_decay: float, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam with one learning rate for the backbone and one for the rest, without frozen weights."""
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    known = {id(p) for p in backbone}
    groups = [{"params": [p for p in model.parameters() if p.requires_grad and id(p) not in known], "lr": head_lr}]
    if backbone and backbone_lr > 0:
        groups.insert(0, {"params": backbone, "lr": backbone_lr})
    return torch.optim.Adam(groups, weight_decay=weight_decay, betas=(0.9, 0.98), eps=eps, amsgrad=True, fused=True)
