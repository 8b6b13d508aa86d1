"""What each CPU kernel of ``model.network.cpu_kernels`` saves against plain PyTorch, figure by figure.

Each figure runs in turn with the kernel and without it; the least processor time of each counts, which other
processes disturb less than wall-clock time. A kernel stays in the project where it saves 1.25 × on one figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding import report_writer
from benchmarks.published_size import features, pair
from benchmarks.server import BUNDLE
from benchmarks.table import markdown
from benchmarks.training_step import our_step
from model.bundle import INDEX_DIR, load_bundle
from model.drafter import Drafter
from model.network import cpu_kernels
from model.types import StudyView, View
from retrieval_index.index import ReportIndex

ROUNDS = 4
HEADER = ("kernel", "figure", "with", "plain PyTorch", "ratio")


class _PlainRead:
    """Top-k addressing by gathered rows and autograd, in place of the function with its own gradient."""

    @staticmethod
    def apply(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
        return plain_read(queries, keys, values, k)[0]


def plain_read(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The published addressing: queries (H, N, d_h), keys and values (H, M, d_h) -> (H, N, d_h), weights, slots."""
    best, chosen = (queries @ keys.transpose(1, 2)).topk(k, dim=-1)  # (H, N, k)
    weights = best.float().softmax(-1)
    rows = values.gather(1, chosen.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return (weights.to(values.dtype).unsqueeze(-1) * rows.view(*chosen.shape, -1)).sum(2), weights, chosen


KERNELS: Mapping[str, Callable[[], list[AbstractContextManager[object]]]] = {
    "linear layers on oneDNN": lambda: [patch.object(cpu_kernels, "_HAS_ONEDNN", False)],
    "top-k addressing of the memory": lambda: [
        patch.object(cpu_kernels, "_read", plain_read), patch.object(cpu_kernels, "_Read", _PlainRead),
    ],
}  # fmt: skip


@contextmanager
def without(kernel: str) -> Iterator[None]:
    """Replace a kernel by plain PyTorch."""
    with ExitStack() as stack:
        for replaced in KERNELS[kernel]():
            stack.enter_context(replaced)
        yield


def figures() -> dict[str, Callable[[], object]]:
    """A call for each figure: a draft of the shipped bundle, and decoding and training at the published size."""
    device = torch.device("cpu")
    both = pair(device)
    both.ours.precompute_inference_tables()
    calls: dict[str, Callable[[], object]] = {"draft of the shipped bundle": _shipped_draft()}
    for name, batch, beams in (("beam 3, batch 1", 1, 3), ("beam 3, batch 16", 16, 3), ("greedy, batch 16", 16, 1)):
        calls[name] = torch.inference_mode()(report_writer(both, features(batch, device), beams))
    return {**calls, "training step of 16, float32": our_step(device, bf16=False)}


def _shipped_draft() -> Callable[[], object]:
    bundle = load_bundle(BUNDLE)
    bundle.model.precompute_inference_tables()
    drafter = Drafter(bundle, ReportIndex.load(BUNDLE / INDEX_DIR, expected_sha256=bundle.index_sha256()))
    size, noise = drafter.image_size, np.random.default_rng(0)
    study = [StudyView(noise.integers(0, 255, (size, size), np.uint8), view) for view in View]
    return lambda: drafter.draft([study])


def as_markdown() -> str:
    """Measure every kernel on every figure: a table."""
    rows = []
    for figure, call in figures().items():
        for kernel in KERNELS:
            taken: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS):
                taken[0].append(_processor_seconds(call))
                with without(kernel):
                    taken[1].append(_processor_seconds(call))
            ours, plain = min(taken[0]), min(taken[1])
            rows.append((kernel, figure, f"{ours:.3f} s", f"{plain:.3f} s", f"{plain / ours:.2f} ×"))
    return markdown(HEADER, rows)


def _processor_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
