"""A cross-entropy step of 16 studies at the published size, without the CNN: time and memory.

Each implementation runs in a separate process, so that the peaks are separate: ``python -m
benchmarks.training_step plain|fp32|bf16 DEVICE`` prints seconds and bytes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import REFERENCE, Machine, Row, seconds
from benchmarks.published_size import draw_ids, features, pair, patches

BATCH = 16
GFLOP = 132  # products of forward and backward pass; attention, selection and optimizer not counted
SHARE = 0.6  # of the machine's matrix-product speed, the other form of the goal


def rows(machine: Machine, device: torch.device) -> list[Row]:
    """Time in float32 and bfloat16, and memory."""
    (plain, plain_bytes), (fp32, fp32_bytes), (bf16, bf16_bytes) = (
        _measure(which, device) for which in ("plain", "fp32", "bf16")
    )
    peer, value, note = machine.peer(plain, REFERENCE.step)
    found = []
    for name, taken, speed, goal, more in (
        ("float32", fp32, machine.fp32, 10, note),
        ("bfloat16", bf16, machine.bf16, 25, f"{GFLOP / bf16 / machine.bf16:.0%} of the reading"),
    ):
        limit = GFLOP / (SHARE * speed)
        goal_text, met = f"{goal} ×, or 60 % of the reading: {limit:.2f} s", value / taken >= goal or taken <= limit
        found.append(Row(f"training step of {BATCH}, {name}", taken, "s", peer, value, goal_text, met, more))
    return [*found, Row(
        f"training step of {BATCH}, peak memory, float32", fp32_bytes, "bytes", "published equations, plainly",
        plain_bytes, "4 ×", REFERENCE.step_bytes / fp32_bytes >= 4,
        f"reference: {REFERENCE.step_bytes / 1e9:.1f} GB; bfloat16 {bf16_bytes / 1e9:.2f} GB",
    )]  # fmt: skip


def _measure(which: str, device: torch.device) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.training_step", which, str(device)]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        raise RuntimeError(f"the training step ({which}) failed:\n{out.stderr[-2000:]}")
    taken, peak = json.loads(out.stdout)
    return taken, peak


def plain_step(device: torch.device) -> Callable[[], None]:
    """A step of the published equations with PyTorch's Adam, as in the published trainer."""
    both = pair(device, dropout=True)
    weights = both.plain.train()
    drawn, ids = features(BATCH, device), draw_ids(BATCH, device)
    return _step(weights.values(), lambda: both.plain.loss(drawn, ids), fused=False)


def our_step(device: torch.device, *, bf16: bool) -> Callable[[], None]:
    """A step of this model with the optimizer of stage ``ce``."""
    both = pair(device)
    model = both.ours.requires_grad_().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5 if module is model.to_model[2] else 0.1
    seen = patches(features(BATCH, device))
    ids = draw_ids(BATCH, device) + 2  # words of this vocabulary
    ids[:, 0] = both.tokenizer.bos_id

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(model.encode(seen), ids[:, :-1])
            return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    return _step(model.parameters(), loss, fused=True)


def _step(parameters: Iterable[Tensor], loss: Callable[[], Tensor], *, fused: bool) -> Callable[[], None]:
    trained = list(parameters)
    optimizer = torch.optim.Adam(trained, lr=1e-4, betas=(0.9, 0.98), weight_decay=5e-5, amsgrad=True, fused=fused)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def main() -> None:
    """Measure one implementation."""
    which, device = sys.argv[1], torch.device(sys.argv[2])
    is_plain = which == "plain"
    step = plain_step(device) if is_plain else our_step(device, bf16=which == "bf16")
    taken = seconds(step, repeats=1 if is_plain else 5, warm_up=1 if is_plain else 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([taken, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak]))


if __name__ == "__main__":
    main()
