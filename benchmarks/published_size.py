"""Decoding and training at the published size against the published equations, with the same random weights.

Each implementation of the training step runs in a separate process, so that the peaks of memory are
separate: ``python -m benchmarks.published_size DEVICE plain|fp32|bf16`` prints seconds and bytes. A dry run has one
process: ``DEVICE tiny plain fp32 bf16``.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import REFERENCE, SIDE, Machine, Row, at_least, seconds
from model.decoding.generate import generate
from model.decoding.search import Constraints, sample
from model.files import write_atomic
from model.network.cpu_kernels import matmul_dtype
from model.network.report_model import Patches
from model.network.writers.cmn import CrossModalMemoryNetwork
from model.text.tokenizer import UNK, Tokenizer
from tests.support.reference_cmn import ReferenceCMN, published_state
from training.import_r2gencmn import PUBLISHED_DECODING, Published, import_model
from training.protocols import IU_XRAY

log = logging.getLogger(__name__)
VIEWS, GRID, WIDTH = 2, 49, 2048  # 98 patch tokens of ResNet-101
VOCABULARY = 760  # words of the published IU X-Ray vocabulary
LENGTH, HEADS, TOP_K = 60, 8, 32
GREEDY = PUBLISHED_DECODING.model_copy(update={"trigram_penalty": 0.0})  # as the reference was timed
Workload = tuple[str, int, int, float, float]
WORKLOADS: tuple[Workload, ...] = (  # name, batch, beams, goal, seconds of the published code
    ("beam 3, batch 1", 1, 3, 30.0, REFERENCE.beam3_batch1),
    ("beam 3, batch 16", 16, 3, 60.0, REFERENCE.beam3_batch16),
    ("greedy, batch 16", 16, 1, 40.0, REFERENCE.greedy_batch16),
)
USUAL = {"words": LENGTH, "beams": 3, "slots": 2048, "batch": 1}
AXES = {
    "words": (15, 30, 45, 60), "beams": (1, 2, 3, 4, 6, 8), "slots": (512, 1024, 2048, 4096, 8192),
    "batch": (1, 2, 4, 8, 16, 32),
}  # fmt: skip
Point = tuple[str, int, float, float]  # axis, value, ms per report before the first word, ms per report
BATCH = 16
STEPS = ("plain", "fp32", "bf16")
GFLOP = 132  # products of forward and backward pass; attention, selection and optimizer not counted
SHARE = 0.6  # of the machine's matrix-product speed, the other form of the goal


@dataclass(frozen=True)
class Size:
    """How large the model and the batches are; the table is of ``PUBLISHED``, ``TINY`` is for dry runs."""

    slots: int = 2048
    length: int = LENGTH
    batch: int = BATCH
    matmul: int = SIDE
    d_model: int = 512
    layers: int = 3


PUBLISHED, TINY = Size(), Size(slots=128, length=6, batch=2, matmul=256, d_model=32, layers=1)


class _NoBackbone(nn.Module):
    """Replaces ResNet-101: features are drawn, no image is read."""

    width = WIDTH


@dataclass(frozen=True)
class Pair:
    """Both implementations with the same weights. Neither writes an end: each report has 60 words."""

    plain: ReferenceCMN
    ours: CrossModalMemoryNetwork
    tokenizer: Tokenizer
    device: torch.device

    def published_ids(self, ids: Tensor) -> Tensor:
        """This model's ids (B, T) as published ids."""
        words = sorted([UNK, *self.tokenizer.tokens[4:]])
        numbers = {word: number for number, word in enumerate(words, 1)}
        table = torch.tensor([numbers.get(token, 0) for token in self.tokenizer.tokens], device=ids.device)
        return table[ids]


def pair(device: torch.device, size: Size = PUBLISHED, *, dropout: bool = False) -> Pair:
    """Build both; ``dropout`` as the published model trains, 0.1 and 0.5 after the embedded features."""
    state = published_state(
        words=VOCABULARY, features=WIDTH, slots=size.slots, d_model=size.d_model, d_ff=size.d_model, layers=size.layers
    )
    state["encoder_decoder.logit.bias"][0] = -1e4  # the end
    state = {key: value.to(device) for key, value in state.items()}
    words = tuple(sorted([UNK, *(f"w{number:04}" for number in range(VOCABULARY - 1))]))
    ours = import_model(state, words, Published(HEADS, TOP_K, size.length), backbone=_NoBackbone())
    ours.requires_grad_(False)
    plain = ReferenceCMN(
        state, heads=HEADS, top_k=TOP_K, max_length=size.length, dropout=0.1 if dropout else 0.0,
        feature_dropout=0.5 if dropout else 0.0,
    )  # fmt: skip
    return Pair(plain, ours.to(device), IU_XRAY.tokenizer(words), device)


def ready_pair(device: torch.device, size: Size = PUBLISHED) -> Pair:
    """``pair`` with the inference tables computed."""
    both = pair(device, size)
    both.ours.precompute_inference_tables()
    return both


def features(batch: int, device: torch.device, seed: int = 1) -> Tensor:
    """Patch features of ``batch`` studies, (B, 98, 2048), not negative, as those of a ResNet."""
    drawn = torch.randn(batch, VIEWS * GRID, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn.relu().to(device)


def patches(drawn: Tensor) -> Patches:
    """Drawn features as the output of a backbone."""
    batch, device = len(drawn), drawn.device
    views = torch.tensor([[0, 1]] * batch, device=device)
    tokens = drawn.view(batch, VIEWS, GRID, WIDTH)
    return Patches(tokens, tokens.mean(2), views, torch.ones_like(views, dtype=torch.bool))


def draw_ids(batch: int, device: torch.device, length: int = LENGTH) -> Tensor:
    """Published ids of reports of 59 words, (B, 60), the first 0."""
    ids = torch.randint(1, VOCABULARY + 1, (batch, length), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 0
    return ids.to(device)


# --- decoding ---------------------------------------------------------------------------------------------------------


def report_writer(both: Pair, drawn: Tensor, beams: int) -> Callable[[], Tensor]:
    """A call that encodes studies and decodes their reports, to this model's ids (B, T)."""
    seen = patches(drawn)

    @torch.inference_mode()
    def write() -> Tensor:
        encoded = both.ours.encode(seen)
        decoding = PUBLISHED_DECODING if beams > 1 else GREEDY
        return generate(both.ours, encoded, both.tokenizer, decoding, beam_size=beams).ids

    return write


def writers(both: Pair, size: Size = PUBLISHED) -> dict[str, Callable[[], Tensor]]:
    """``report_writer`` of each workload, by name."""
    return {
        name: report_writer(both, features(min(batch, size.batch), both.device), beams)
        for name, batch, beams, *_ in WORKLOADS
    }


@torch.inference_mode()
def decoding_rows(machine: Machine, device: torch.device, size: Size = PUBLISHED) -> list[Row]:
    """Beam search and greedy decoding in float32, checked against the published equations, and bfloat16; sampling."""
    both = ready_pair(device, size)
    compared = [
        row
        for workload, ours in zip(WORKLOADS, writers(both, size).values(), strict=True)
        for row in _compared(both, machine, workload, ours, size)
    ]
    return [*compared, _sampling(both, size)]


def _compared(both: Pair, machine: Machine, workload: Workload, ours: Callable[[], Tensor], size: Size) -> list[Row]:
    name, batch, beams, goal, reference = workload
    batch = min(batch, size.batch)
    log.info("%s", name)
    drawn = features(batch, both.device)
    written: list[Tensor] = []

    def plain() -> None:
        written[:] = [both.plain.greedy(drawn) if beams == 1 else both.plain.beam(drawn, beams)]

    taken = seconds(plain, repeats=3 if batch == 1 else 1, warm_up=0) / batch
    equal = int((both.published_ids(ours())[:, : size.length] == written[0]).all(dim=1).sum())
    if equal < batch and both.device.type == "cpu":  # a GPU adds in another order, so near ties may differ
        raise RuntimeError(f"{name}: {batch - equal} of {batch} reports differ from those of the published equations")
    fp32 = seconds(ours, repeats=5) / batch
    with matmul_dtype(torch.bfloat16):
        bf16 = seconds(ours, repeats=5) / batch
    peer, value, note = machine.peer(taken, reference)
    if both.device.type != "cpu":
        note += f"; {equal} of {batch} reports equal"
    return [
        at_least(goal, Row(f"{name}, a report, float32", fp32, "s", peer, value, note=note)),
        Row(f"{name}, a report, bfloat16 products", bf16, "s", "ours in float32", fp32, "beyond float32", bf16 < fp32),
    ]


def _sampling(both: Pair, size: Size) -> Row:
    """SCST draws five samples per image from one encoding."""
    seen = patches(features(size.batch, both.device))
    constraints = Constraints.of(GREEDY, both.tokenizer)

    def drawn(count: int) -> Callable[[], object]:
        return lambda: sample(both.ours, both.ours.encode(seen), constraints, both.tokenizer.bos_id, count=count)

    one, five = seconds(drawn(1)), seconds(drawn(5))
    return Row(
        f"SCST sampling, 5 samples of each of {size.batch} studies", five, "s", "5 × one sample of each", 5 * one,
        "well under 5 × one", five < 4 * one, f"{five / one:.1f} × one",
    )  # fmt: skip


@torch.inference_mode()
def growth(device: torch.device) -> list[Point]:
    """Milliseconds per report along each of ``AXES``; what is not varied stays ``USUAL``."""
    usual = ready_pair(device)
    points: list[Point] = []
    for axis, values in AXES.items():
        for value in values:
            chosen = {**USUAL, axis: value}
            size = Size(slots=chosen["slots"], length=chosen["words"])
            both = usual if size == PUBLISHED else ready_pair(device, size)
            drawn = features(chosen["batch"], device)
            calls = (partial(both.ours.encode, patches(drawn)), report_writer(both, drawn, chosen["beams"]))
            encoding, report = (seconds(call) / chosen["batch"] * 1e3 for call in calls)
            points.append((axis, value, encoding, report))
            log.info("%s %d: %.1f ms a report", *points[-1][:2], report)
    return points


def write_growth(points: Sequence[Point], out: Path) -> None:
    """``growth.csv`` and ``growth.png`` in ``out``."""
    from benchmarks import plots  # matplotlib would add to the peak memory of a training step

    lines = [f"{axis},{value},{before:.2f},{taken:.2f}" for axis, value, before, taken in points]
    write_atomic(out / "growth.csv", "\n".join(["axis,value,encode_ms,report_ms", *lines, ""]).encode())
    plots.growth(points, out / "growth.png")


# --- a training step --------------------------------------------------------------------------------------------------


def training_rows(machine: Machine, device: torch.device, size: Size = PUBLISHED) -> list[Row]:
    """Time in float32 and bfloat16, and memory."""
    (plain, plain_bytes), (fp32, fp32_bytes), (bf16, bf16_bytes) = _measure(device, size)
    peer, value, note = machine.peer(plain, REFERENCE.step)
    found = []
    for name, taken, speed, goal, more in (
        ("float32", fp32, machine.fp32, 10, note),
        ("bfloat16", bf16, machine.bf16, 25, f"{GFLOP / bf16 / machine.bf16:.0%} of the matmul speed"),
    ):
        limit = GFLOP / (SHARE * speed)
        goals, met = f"{goal} ×, or 60 % of the matmul speed: {limit:.2f} s", value / taken >= goal or taken <= limit
        found.append(Row(f"training step of {size.batch}, {name}", taken, "s", peer, value, goals, met, more))
    return [*found, Row(
        f"training step of {size.batch}, peak memory, float32", fp32_bytes, "bytes", "published equations, unoptimised",
        plain_bytes, "4 ×", REFERENCE.step_bytes / fp32_bytes >= 4,
        f"reference: {REFERENCE.step_bytes / 1e9:.1f} GB; bfloat16 {bf16_bytes / 1e9:.2f} GB",
    )]  # fmt: skip


def _measure(device: torch.device, size: Size) -> list[tuple[float, float]]:
    """Seconds and peak bytes of each of ``STEPS``."""
    found = []
    for arguments in [("tiny", *STEPS)] if size == TINY else [(which,) for which in STEPS]:
        command = [sys.executable, "-m", "benchmarks.published_size", str(device), *arguments]
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(f"the training step ({' '.join(arguments)}) failed:\n{out.stderr[-2000:]}")
        found += [json.loads(line) for line in out.stdout.splitlines()]
    return found


def plain_step(device: torch.device, size: Size = PUBLISHED) -> Callable[[], None]:
    """A step of the published equations with PyTorch's Adam, as in the published trainer."""
    both = pair(device, size, dropout=True)
    weights = both.plain.train()
    drawn, ids = features(size.batch, device), draw_ids(size.batch, device, size.length)
    return _step(weights.values(), lambda: both.plain.loss(drawn, ids), fused=False)


def our_step(device: torch.device, size: Size = PUBLISHED, *, bf16: bool) -> Callable[[], None]:
    """A step of this model with the optimizer of stage ``ce``."""
    both = pair(device, size)
    model = both.ours.requires_grad_().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5 if module is model.to_model[2] else 0.1
    seen = patches(features(size.batch, device))
    ids = draw_ids(size.batch, device, size.length) + 2  # words of this vocabulary
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
    device, steps = torch.device(sys.argv[1]), sys.argv[2:]
    size = TINY if "tiny" in steps else PUBLISHED
    for which in STEPS:
        if which in steps:
            is_plain = which == "plain"
            step = plain_step(device, size) if is_plain else our_step(device, size, bf16=which == "bf16")
            taken = seconds(step, repeats=1 if is_plain else 5, warm_up=1 if is_plain else 2)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps([taken, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak]))


if __name__ == "__main__":
    main()
