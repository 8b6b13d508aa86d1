"""Small training stages on phantoms, which ``test_training_parallel`` runs in one process and in two."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.config import DecodingConfig
from model.network.report_model import ReportModel, build_model
from model.text.tokenizer import Tokenizer
from tests.support.tiny import IMAGE_SIZE, tiny_config
from training.config import CEConfig, RetrieverConfig, ScstConfig
from training.data.augment import to_float
from training.data.features import OnlineFeatures, cache_features
from training.data.openi import open_openi
from training.data.pixel_cache import PixelCache, build_pixel_cache
from training.run import main as run
from training.stages.common import ReportGenerator, StudySplits
from training.stages.contrastive import contrastive_loss
from training.stages.cross_entropy import train_cross_entropy
from training.stages.index import build_index
from training.stages.retriever import train_retriever
from training.stages.scst import train_scst
from training.trainer.context import RunContext
from training.trainer.distributed import ProcessGroup, join
from training.trainer.loop import Loop, LoopConfig

BATCH = 5  # shared by two processes: 2 rows and 3


class Pair(nn.Module):
    """Two encoders and the temperature of their similarities."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.ones(3))


def train_pair(processes: ProcessGroup, out: Path) -> None:
    """Trained with SGD: unlike Adam it depends on the scale of gradients."""
    torch.manual_seed(4)
    net, x = Pair(), torch.randn(15, 2, 6)

    def step(batch: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        noisy = x[batch] + 0.1 * torch.randn(len(batch), 2, 6, generator=generator)
        part = noisy[processes.rows(len(batch))]
        left, right = (processes.gather(tower(rows), len(batch)) for tower, rows in
                       ((net.left, part[:, 0]), (net.right, part[:, 1])))  # fmt: skip
        loss = contrastive_loss(left @ right.t(), torch.eye(len(batch)), net.scale, 0.5)
        return {"loss": loss / processes.count}

    context = RunContext(torch.device("cpu"), 1, "fp32", out, processes)
    loop = Loop(LoopConfig("pair", clip=1e9), context, net, torch.optim.SGD(net.parameters(), lr=0.1))
    loop.fit(lambda epoch: np.array_split(np.arange(15), 3), epochs=2, steps=3, train_step=step)
    assert net.unused.grad is None
    if processes.main:
        torch.save(net.state_dict(), out / "pair.pt")


def stage_inputs(root: Path, folder: Path, **changes: object) -> tuple[PixelCache, StudySplits, Tokenizer, ReportModel]:
    """The decoded studies of a data set, and a tiny model for them."""
    source = open_openi(root)
    cache = build_pixel_cache(source, source.studies, IMAGE_SIZE, folder)
    studies = StudySplits(cache.readable(source.split("train")), cache.readable(source.split("val")))
    tokenizer = Tokenizer.build((study.report for study in studies.train), min_count=1)
    torch.manual_seed(0)
    return cache, studies, tokenizer, build_model(tiny_config(len(tokenizer), max_length=40, **changes))


def train_stages(processes: ProcessGroup, root: Path, out: Path) -> None:
    """Retriever, cross-entropy with a moving backbone, self-critical training; dropout off."""
    context = RunContext(torch.device("cpu"), 1, "fp32", out, processes)
    with processes.main_process_first():
        cache, studies, tokenizer, model = stage_inputs(root, out / "cache", dropout=0.0)
    fit_statistics(model.backbone, torch.from_numpy(np.array(cache.array)))
    with processes.main_process_first():
        frozen = cache_features(model.backbone, cache, [*studies.train, *studies.val], 2, context, out / "cache",
                                view_dropout=0.3, name="frozen")  # fmt: skip
    decoding = DecodingConfig()
    config = RetrieverConfig(epochs=2, batch_size=BATCH, dropout=0.0)
    train_retriever((model.study_head, model.text_tower), tokenizer, frozen, studies, config, context)
    index = build_index(model, studies.train, tokenizer, out / f"index{processes.rank}", public=False)
    live = OnlineFeatures(model, cache, context.device, view_dropout=0.3)
    train_cross_entropy(ReportGenerator(model, tokenizer, live, index, decoding), studies,
                        CEConfig(epochs=2, batch_size=BATCH, backbone_lr=1e-4), context)  # fmt: skip
    train_scst(ReportGenerator(model, tokenizer, frozen, index, decoding), studies,
               ScstConfig(epochs=1, batch_size=BATCH, samples=3, lr=1e-3), context)  # fmt: skip


def fit_statistics(backbone: nn.Module, pixels: Tensor) -> None:
    """Set the statistics of an untrained backbone; with the initial ones all features are nearly equal."""
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        backbone.train()(to_float(pixels))
    backbone.eval()


def main(root: Path, out: Path) -> None:
    """Train everything, in one process or several."""
    processes, _ = join("cpu")
    train_pair(processes, out)
    train_stages(processes, root, out)
    processes.leave()


def member(arguments: list[str]) -> int:
    """Train as one of two processes, with the environment that torchrun sets: RANK PORT ROOT OUT, or a command."""
    rank, port, *more = arguments
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    if len(more) > 2:
        return run(more)
    main(*map(Path, more))
    return 0
