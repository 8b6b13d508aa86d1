"""Stage ``ce``: teacher-forced cross-entropy with retrieved cases, visual and Transformer rates apart.

Each step runs the serving data flow: images once through the backbone, study embedding, search, K report embeddings
beside the patch tokens. A study's own report is never retrieved for it. The index does not move: with a frozen backbone
nothing does; with a moving one the contrastive loss against the index's fixed vectors stays on, so that the study
embedding follows the backbone.

Selection, on val: how far the drafts score above the same drafts dealt out to other studies, in CIDEr plus label F1
(micro, 13 findings), each less its expectation over all deals (``training.scoring.permutation``).
One report for everybody scores 0 there,
whatever it says, so a constant cannot win against any epoch that looks. CIDEr + label F1
itself, the criterion before, one can win: a good constant has more CIDEr than a weak epoch has of both.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecodingConfig
from model.decoding.generate import generate
from model.decoding.mbr import MbrTable
from model.network.dual_encoder import pad_ids
from model.network.report_model import Encoded, Patches, ReportModel
from model.text.tokenizer import Tokenizer
from retrieval_index.index import ReportIndex
from training.config import CEConfig, RunContext
from training.data.features import PatchSource
from training.data.studies import Study
from training.scoring.metrics import comparable_pairs, validation_scores
from training.scoring.permutation import expected_under_permutation, lift_over_permutation
from training.stages.retriever import contrastive_loss, label_overlap, label_vectors
from training.trainer.loop import Loop, LoopConfig, autocast

log = logging.getLogger(__name__)

Retrieved = tuple[Tensor | None, Tensor | None]
_CONTRASTIVE_SCALE = 20.0
GENERATE_BATCH = 32


def retrieve(model: ReportModel, index: ReportIndex | None, patches: Patches, own: Sequence[str] | None) -> Retrieved:
    """Report embeddings (B, K, E) and their mask (B, K) of the cases nearest to a batch of studies.

    Args:
        model: embeds the studies; its ``retrieval_k`` says how many.
        index: None for a model without retrieval.
        patches: backbone output of the studies.
        own: ids of the studies, each excluded from its own result; None where none of them can be in the index.

    Raises:
        FloatingPointError: a study's embedding is not finite.
    """
    if index is None:
        return None, None
    with torch.no_grad():
        queries = model.embed_study(patches).float().cpu().numpy()
    if not np.isfinite(queries).all():
        raise FloatingPointError(
            f"embeddings of {int((~np.isfinite(queries)).any(1).sum())} of {len(queries)} studies are not finite. The "
            "last good checkpoint is kept. Go on with --resume and --precision fp32; where that does not help, remove "
            "the features-* files from cache/ in the work directory, which are then computed anew."
        )
    _, rows = index.search(queries, model.config.retrieval_k, exclude=own)
    device = patches.pooled.device
    return torch.from_numpy(index.vectors(rows)).to(device), torch.from_numpy(rows >= 0).to(device)


def train_ce(
    model: ReportModel,
    patches: PatchSource,
    index: ReportIndex | None,
    train: Sequence[Study],
    val: Sequence[Study],
    tokenizer: Tokenizer,
    config: CEConfig,
    decoding: DecodingConfig,
    context: RunContext,
    directory: Path,
    consensus: MbrTable | None = None,
) -> Mapping[str, float]:
    """Train the model in place, keep the selected epoch, return its row of the log.

    Raises:
        ValueError: no training study.
    """
    if not train:
        raise ValueError("cross-entropy training found no readable training study; check --root or --images")
    length = model.config.max_length
    ids = pad_ids([tokenizer.encode(study.report, length) for study in train], length)
    targets = mask_suppressed_targets(ids, decoding, tokenizer)
    labels = label_vectors(train)
    names = [study.study_id for study in train]
    text = torch.from_numpy(index.vectors(_rows_of(index, names))) if index is not None else None
    moving, processes = config.backbone_lr > 0, context.processes
    steps = -(-len(train) // config.batch_size)
    stage = FrozenPartsModule(model, moving)
    processes.synchronise_features(stage)

    def batches(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((context.seed, 29, epoch)).permutation(len(train))
        return np.array_split(order, steps)

    def train_step(batch: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        mine = processes.rows(len(batch))
        own = batch[mine]
        seen = patches.patches([train[i] for i in batch], generator, part=mine)
        cases, found = retrieve(model, index, seen, [names[i] for i in own])
        if found is not None:
            lost = torch.rand(len(batch), 1, generator=generator)[mine] < config.case_dropout
            found = found & ~lost.to(found.device)
        encoded = model.encode(seen, cases, found)
        nll = teacher_forced(model, encoded, ids[own], targets[own], words=count_targets(targets[batch]),
                             label_smoothing=config.label_smoothing)  # fmt: skip
        losses = {"loss": nll, "nll": nll}
        if moving and text is not None and config.contrastive_weight:
            studies = processes.gather(model.embed_study(seen), len(batch))
            similarity = studies @ text[batch].to(context.device).t()
            contrast = contrastive_loss(
                similarity, label_overlap(labels[batch].to(context.device)), _CONTRASTIVE_SCALE, 0.5
            ) / processes.count  # fmt: skip
            losses |= {"contrastive": contrast, "loss": nll + config.contrastive_weight * contrast}
        return losses

    chosen = val[: config.validate_limit]
    train_reports = [study.report for study in train]

    def validate() -> Mapping[str, float]:
        scores = validate_generation(
            model, patches, index, chosen, tokenizer, decoding, context, train_reports, consensus
        )
        return scores[0]

    optimizer = build_optimizer(
        model, backbone_lr=config.backbone_lr, head_lr=config.transformer_lr, weight_decay=config.weight_decay
    )
    loop = Loop(
        LoopConfig("ce", context.seed, precision=context.precision, select="selection" if chosen else None,
                   patience=config.patience if chosen else None, warmup=0.05, clip=1.0,
                   checkpoint_seconds=context.checkpoint_seconds),
        directory, stage, optimizer, device=context.device, processes=processes,
    )  # fmt: skip
    history = loop.fit(batches, [steps] * config.epochs, train_step, validate if chosen else None)
    return history.rows[history.best_epoch] if history.rows else {}


class FrozenPartsModule(nn.Module):
    """The model with the parts that this stage leaves alone kept in eval mode.

    The text tower never moves here, normalisation statistics of the backbone stay as they are, and the study head
    embeds as it will in serving.
    """

    def __init__(self, model: ReportModel, moving: bool) -> None:
        super().__init__()
        self.model = model
        model.requires_grad_(True)
        if not moving:
            model.backbone.requires_grad_(False)
        if model.config.retrieval_k:
            model.text_tower.requires_grad_(False)
            model.study_head.requires_grad_(moving)

    def train(self, mode: bool = True) -> FrozenPartsModule:
        super().train(mode)
        self.model.backbone.eval()
        if self.model.config.retrieval_k:
            self.model.text_tower.eval()
            self.model.study_head.eval()
        return self


def build_optimizer(
    model: ReportModel, *, backbone_lr: float, head_lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam with one learning rate for the backbone and one for the rest; frozen parameters are left out."""
    seeing = [p for p in model.backbone.parameters() if p.requires_grad]
    known = {id(p) for p in seeing}
    groups = [{"params": [p for p in model.parameters() if p.requires_grad and id(p) not in known], "lr": head_lr}]
    if seeing and backbone_lr > 0:
        groups.insert(0, {"params": seeing, "lr": backbone_lr})
    return torch.optim.Adam(groups, weight_decay=weight_decay, betas=(0.9, 0.98), amsgrad=True, fused=True)


def teacher_forced(
    model: ReportModel, encoded: Encoded, ids: Tensor, targets: Tensor, *, words: int, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of reports, summed and divided by ``words``.

    Args:
        model: writes.
        encoded: images and cases of B studies.
        ids: (B, T) from bos on.
        targets: (B, T), 0 where none is learnt.
        words: how many the whole batch learns; that of ``targets`` gives their mean.
        label_smoothing: share of the target spread over all words.
    """
    width = max(2, int((ids != 0).sum(1).max()))
    device = encoded.source.device
    logits = model(encoded, ids[:, : width - 1].to(device))
    gold = targets[:, 1:width].to(device)
    summed = F.cross_entropy(
        logits.float().flatten(0, 1), gold.flatten(), ignore_index=0, label_smoothing=label_smoothing, reduction="sum"
    )
    return summed / max(words, 1)


def count_targets(targets: Tensor) -> int:
    """How many words a batch learns: targets (B, T), the first of each being bos."""
    return int((targets[:, 1:] != 0).sum())


def mask_suppressed_targets(ids: Tensor, decoding: DecodingConfig, tokenizer: Tokenizer) -> Tensor:
    """Ids to learn: words that are never to be written (``xxxx``, ``<unk>``) are no targets, only context."""
    targets = ids.clone()
    for word in decoding.suppress:
        if word in tokenizer.tokens:
            targets[targets == tokenizer.id_of(word)] = 0
    return targets


def _rows_of(index: ReportIndex, names: Sequence[str]) -> np.ndarray:
    rows = {index.case(row).case_id: row for row in range(len(index))}
    return np.array([rows[name] for name in names], np.int64)


@torch.inference_mode()
def write_reports(
    model: ReportModel,
    patches: PatchSource,
    index: ReportIndex | None,
    studies: Sequence[Study],
    tokenizer: Tokenizer,
    decoding: DecodingConfig,
    context: RunContext,
    consensus: MbrTable | None = None,
) -> list[str]:
    """Reports of studies as lower-case tokens joined by spaces; for validation while training."""
    model.eval()
    texts: list[str] = []
    for start in range(0, len(studies), GENERATE_BATCH):
        batch = studies[start : start + GENERATE_BATCH]
        with autocast(context.device, context.precision):
            seen = patches.patches(batch, None)
            cases, found = retrieve(model, index, seen, [study.study_id for study in batch])
            embedded = model.embed_study(seen) if index is not None else None
            generated = generate(model, model.encode(seen, cases, found), tokenizer, decoding, study=embedded,
                                 findings=model.findings(seen), consensus=consensus)  # fmt: skip
        texts += [tokenizer.decode(row) for row in generated.ids.tolist()]
    return texts


def validate_generation(
    model: ReportModel,
    patches: PatchSource,
    index: ReportIndex | None,
    studies: Sequence[Study],
    tokenizer: Tokenizer,
    decoding: DecodingConfig,
    context: RunContext,
    train_reports: Sequence[str],
    consensus: MbrTable | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Scores of reports, and the reports; for validation while training.

    Beside the scores stand ``chance_CIDEr`` and ``chance_label_f1``, what the same reports score in expectation when
    dealt out to the studies anew, and ``selection``, how far the two scores together lie above that.

    Reports are greedy ones, and where ``decoding`` is by consensus those that will serve: it makes its report of what
    the model's samples hold, of which the greedy report tells little.
    """
    method = "greedy" if consensus is None else "consensus"
    decoding = decoding.model_copy(update={"method": method})
    texts = write_reports(model, patches, index, studies, tokenizer, decoding, context, consensus)
    pairs = comparable_pairs(zip((study.report for study in studies), texts, strict=True), train_reports)
    scores, by_chance = validation_scores(pairs), expected_under_permutation(pairs)
    return {
        **scores,
        "chance_CIDEr": by_chance["CIDEr"],
        "chance_label_f1": by_chance["label_f1_micro"],
        "selection": lift_over_permutation(scores, by_chance),
    }, texts
