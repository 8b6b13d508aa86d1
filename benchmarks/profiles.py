"""PyTorch's profiler over decoding and training steps of the published size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.decoding import report_writer
from benchmarks.published_size import features, pair
from benchmarks.training_step import our_step

ROWS = 14


def print_all(device: torch.device) -> None:
    """Print the operators that take most of the time, one table per workload."""
    both = pair(device)
    both.ours.precompute_inference_tables()
    with torch.inference_mode():
        for batch, beams in ((1, 3), (16, 3), (16, 1)):
            _print(f"decode, batch {batch}, beam {beams}", report_writer(both, features(batch, device), beams))
    for bf16 in (False, True):
        _print(f"training step of 16, {'bfloat16' if bf16 else 'float32'}", our_step(device, bf16=bf16))


def _print(title: str, call: Callable[[], object]) -> None:
    call()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as seen:
        call()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{title}: {total / 1e3:.0f} ms of operators")
    for event in events[:ROWS]:
        taken = event.self_cpu_time_total
        print(f"  {taken / total:6.1%} {taken / 1e3:9.1f} ms {event.count:6} ×  {event.key}")
