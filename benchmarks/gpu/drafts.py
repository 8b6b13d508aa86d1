"""Drafts of drawn studies on CUDA against the CPU, in float32: are they equal, and if not, how near was the tie?

A draft is chosen among candidates (a beam's report and sampled ones), each of which is some fifty
choices of a word. Both devices get the same noise, so a candidate differs only where rounding
decides a choice. Its margin there is the lead of the CPU's word over the word of the other device,
in the CPU's scores: near 0 for a tie that rounding decides, large for a fault.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.part import Job, Outcome
from benchmarks.naive_server import load_drafter
from model.config import DecodingConfig
from model.decoding.generate import CANDIDATE_SEED, beam_or_greedy, draw_candidates
from model.decoding.search import Constraints, Generated, gumbel_noise
from model.drafter import Drafter
from model.network.report_model import Encoded, inputs_of
from model.types import DraftOptions, StudyView, View
from training.phantoms import make_phantom
from training.phantoms.dataset import sample_findings

STUDIES, DRY_STUDIES = 32, 2
RESERVE_S = 8.0  # for the last study
HEAD = ("compared, CPU and CUDA in float32", "equal", "of", "largest difference or margin")


@dataclass(frozen=True)
class Computed:
    """One study on one device: the draft's words and cases, its encoding, and the candidates (1 + n, T)."""

    words: list[str]
    cases: list[str]
    embedding: Tensor
    encoded: Encoded
    best: Generated
    candidates: Tensor


@dataclass(frozen=True)
class Choice:
    """The first word in which a candidate of one study differs; candidate 0 is the beam's."""

    study: int
    candidate: int
    position: int
    cpu: str
    cuda: str
    margin: float


@dataclass(frozen=True)
class Comparison:
    """One study on both devices; ``words`` are the passages that differ, CPU and CUDA."""

    study: int
    equal: bool
    words: list[tuple[str, str]]
    cases_equal: bool
    candidates: int
    choices: list[Choice]
    embedding: float  # largest absolute differences
    source: float


def run(job: Job) -> Outcome:
    """Compare the drafts of the shipped bundle."""
    wanted = DRY_STUDIES if job.dry_run else STUDIES
    with job.bundle(decoding=DecodingConfig(method="consensus", candidates=8)) as path:
        reference, tried = load_drafter(path, "cpu"), load_drafter(path, job.device)
    found: list[Comparison] = []
    for study, views in enumerate(drawn(wanted, reference.image_size)):
        if found and job.seconds_left < RESERVE_S:
            break
        found.append(compare(study, reference, tried, views))
    return outcome(found, wanted)


def drawn(count: int, size: int) -> list[list[StudyView]]:
    """Phantoms of two views."""
    rng = np.random.default_rng(17)
    studies = []
    for seed in range(count):
        phantom = make_phantom(seed, sample_findings(rng), size=size)
        studies.append([StudyView(phantom.frontal, View.FRONTAL), StudyView(phantom.lateral, View.LATERAL)])
    return studies


@torch.inference_mode()
def compare(study: int, reference: Drafter, tried: Drafter, views: Sequence[StudyView]) -> Comparison:
    """A study on the CPU (``reference``) and on the other device."""
    cpu, cuda = compute(reference, views), compute(tried, views)
    return Comparison(
        study,
        cpu.words == cuda.words,
        passages(cpu.words, cuda.words),
        cpu.cases == cuda.cases,
        len(cpu.candidates),
        choices(study, reference, cpu, cuda),
        float((cpu.embedding - cuda.embedding).abs().max()),
        float((cpu.encoded.source - cuda.encoded.source.cpu()).abs().max()),
    )


def compute(drafter: Drafter, views: Sequence[StudyView]) -> Computed:
    """The draft of a study, and what it was chosen from, by the drafter's own steps."""
    (draft,) = drafter.draft([views])
    bundle, model, options = drafter.bundle, drafter.bundle.model, DraftOptions()
    images = drafter._encode([views])
    embeddings = drafter._embed(images)
    retrieved = drafter._retrieve(embeddings, 1, options)
    encoded = model.encode(images.patches, retrieved.vectors, retrieved.mask)
    decoding, bos = bundle.config.decoding, bundle.tokenizer.bos_id
    constraints = Constraints.of(decoding, bundle.tokenizer)
    best = beam_or_greedy(model, encoded, constraints, bos, decoding)
    candidates = draw_candidates(model, encoded, constraints, bos, decoding, best)[0].cpu()
    embedding = torch.zeros(1) if embeddings is None else embeddings[0].cpu()
    cases = [case.case_id for case in draft.reference_cases]
    return Computed(draft.findings.split(), cases, embedding, encoded, best, candidates)


def passages(cpu: Sequence[str], cuda: Sequence[str]) -> list[tuple[str, str]]:
    """The passages in which two drafts differ."""
    blocks = difflib.SequenceMatcher(a=cpu, b=cuda, autojunk=False).get_opcodes()
    return [(" ".join(cpu[a:b]), " ".join(cuda[c:d])) for kind, a, b, c, d in blocks if kind != "equal"]


def choices(study: int, reference: Drafter, cpu: Computed, cuda: Computed) -> list[Choice]:
    """The first choice of each candidate that the devices made differently."""
    tokens, found = reference.bundle.tokenizer.tokens, []
    for candidate in (cpu.candidates != cuda.candidates).any(dim=1).nonzero().flatten().tolist():
        ours, theirs = cpu.candidates[candidate], cuda.candidates[candidate]
        position = int((ours != theirs).nonzero()[0])
        if candidate == 0:  # a beam compares whole reports
            margin = float(cpu.best.score[0]) - float(cuda.best.score[0])
        else:
            scores = _scores(reference, cpu.encoded, ours, candidate - 1, position)
            margin = float(scores[ours[position]] - scores[theirs[position]])
        words = tokens[int(ours[position])], tokens[int(theirs[position])]
        found.append(Choice(study, candidate, position, *words, margin))
    return found


def _scores(drafter: Drafter, encoded: Encoded, ids: Tensor, sample: int, position: int) -> Tensor:
    """What the sampler took the largest of, (vocabulary,): log-probabilities after the ids before ``position``, and
    the noise of this sample."""
    bundle = drafter.bundle
    decoding = bundle.config.decoding
    constraints = Constraints.of(decoding, bundle.tokenizer)
    generator = torch.Generator().manual_seed(CANDIDATE_SEED)
    for _ in range(position + 1):
        noise = gumbel_noise(decoding.candidates, len(bundle.tokenizer), generator)
    logits: Tensor = bundle.model(encoded, inputs_of(ids.unsqueeze(0), bundle.tokenizer.bos_id)).float()[:, position]
    scores = constraints.apply(logits.clone(), ids.unsqueeze(0), position) / decoding.temperature
    return scores.log_softmax(-1)[0] + noise[sample]


def outcome(found: Sequence[Comparison], wanted: int) -> Outcome:
    """The table of all studies, and the words that differ."""
    made = [choice for one in found for choice in one.choices]
    worst = max((abs(choice.margin) for choice in made), default=None)
    candidates = sum(one.candidates for one in found)
    rows = [
        ("drafts, word for word", str(sum(one.equal for one in found)), str(len(found)), ""),
        ("reference cases, in order", str(sum(one.cases_equal for one in found)), str(len(found)), ""),
        ("candidates", f"{candidates - len(made):,}", f"{candidates:,}",
         "" if worst is None else f"margin of the words that differ: {worst:.2g}"),
        ("study embedding", "", "", f"{max(one.embedding for one in found):.2g}"),
        ("encoder output", "", "", f"{max(one.source for one in found):.2g}"),
    ]  # fmt: skip
    notes = [f"study {one.study}: “{ours}” on the CPU, “{theirs}” on CUDA"
             for one in found for ours, theirs in one.words]  # fmt: skip
    notes += [
        f"study {one.study}, candidate {one.candidate}, word {one.position + 1}: “{one.cpu}” on the CPU, “{one.cuda}” "
        f"on CUDA, margin {one.margin:.2g}"
        for one in sorted(made, key=lambda choice: -abs(choice.margin))[:10]
    ]
    precision = {
        "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "products": torch.backends.cuda.matmul.fp32_precision,
    }
    notes.append(
        f"TF32 is off: float32 convolutions are computed as {precision['convolutions']}, products as "
        f"{precision['products']} (none: as they are). {len(found)} of {wanted} studies compared."
    )
    return Outcome(HEAD, rows, notes, {"precision": precision, "studies": [asdict(one) for one in found]})
