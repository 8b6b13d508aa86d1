"""What each CPU kernel of ``model.network.cpu_kernels`` saves against plain PyTorch, and the time by operator.

Each workload runs in turn with the kernel and without it; the least processor time of each counts, which other
processes disturb less than wall-clock time. A kernel stays in the project where it saves 1.25 × on one workload.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import in_turn, markdown
from benchmarks.naive_server import load_drafter
from benchmarks.published_size import our_step, ready_pair, writers
from benchmarks.server import BUNDLE
from model.network import cpu_kernels, norm
from model.types import StudyView, View

ROUNDS, OPERATORS = 4, 14
HEADER = ("kernel", "workload", "with", "plain PyTorch", "ratio")


def plain_read(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The published addressing: queries (H, N, d_h), keys and values (H, M, d_h) -> (H, N, d_h), weights, slots."""
    best, chosen = (queries @ keys.transpose(1, 2)).topk(k, dim=-1)  # (H, N, k)
    weights = best.float().softmax(-1)
    rows = values.gather(1, chosen.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return (weights.to(values.dtype).unsqueeze(-1) * rows.view(*chosen.shape, -1)).sum(2), weights, chosen


class _PlainRead:
    """Top-k addressing by gathered rows and autograd, in place of the function with its own gradient."""

    @staticmethod
    def apply(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
        return plain_read(queries, keys, values, k)[0]


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The published norm: x (..., d) -> (..., d)."""
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias


# What replaces each kernel by plain PyTorch: object, attribute, replacement.
KERNELS: dict[str, list[tuple[object, str, object]]] = {
    "linear layers on oneDNN": [(cpu_kernels, "_HAS_ONEDNN", False)],
    "top-k addressing of the memory": [(cpu_kernels, "_read", plain_read), (cpu_kernels, "_Read", _PlainRead)],
    "norm of published checkpoints": [(norm, "normalise", plain_norm)],
    "dropout masks": [(cpu_kernels.Dropout, "forward", nn.Dropout.forward)],
}


def workloads() -> dict[str, Callable[[], object]]:
    """A draft of the shipped bundle, and decoding and training at the published size."""
    device = torch.device("cpu")
    step = our_step(device, bf16=False)
    return {
        "draft of the shipped bundle": _shipped_draft(),
        **writers(ready_pair(device)),
        "training step of 16, float32": step,
    }


def _shipped_draft() -> Callable[[], object]:
    drafter = load_drafter(BUNDLE, "cpu")
    size, noise = drafter.image_size, np.random.default_rng(0)
    study = [StudyView(noise.integers(0, 255, (size, size), np.uint8), view) for view in View]
    return lambda: drafter.draft([study])


def plainly(call: Callable[[], object], replacements: list[tuple[object, str, object]]) -> None:
    """Run ``call`` with plain PyTorch in place of a kernel."""
    with ExitStack() as stack:
        for target, name, replacement in replacements:
            stack.enter_context(patch.object(target, name, replacement))
        call()


def as_markdown() -> str:
    """Measure every kernel on every workload: a table."""
    rows = []
    for workload, call in workloads().items():
        for kernel, replacements in KERNELS.items():
            calls: list[Callable[[], object]] = [call, partial(plainly, call, replacements)]
            ours, plain = map(min, in_turn(calls, rounds=ROUNDS, warm_up=0, clock=time.process_time))
            rows.append((kernel, workload, f"{ours:.3f} s", f"{plain:.3f} s", f"{plain / ours:.2f} ×"))
    return markdown(HEADER, rows)


def print_profiles(device: torch.device) -> None:
    """Print the operators that take most of the time, one table per workload of the published size."""
    calls: dict[str, Callable[[], object]] = {
        f"decode, {name}": call for name, call in writers(ready_pair(device)).items()
    }
    for bf16 in (False, True):
        calls[f"training step of 16, {'bfloat16' if bf16 else 'float32'}"] = our_step(device, bf16=bf16)
    for title, call in calls.items():
        call()
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        with profile(activities=activities) as seen:
            call()
        print(f"\n{title}\n{seen.key_averages().table(sort_by='self_cpu_time_total', row_limit=OPERATORS)}")
