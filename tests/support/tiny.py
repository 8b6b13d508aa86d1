"""Small real parts for tests: an untrained model, its bundle and drafter, and random inputs for them."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from model.bundle import load_bundle, write_bundle
from model.config import BundleConfig, DecodingConfig, ModelConfig, PreprocessingConfig, RetrievalConfig
from model.decoding.mbr_table import MbrTable
from model.drafter import Drafter
from model.images import load_pixels
from model.network.cpu_kernels import Linear
from model.network.report_model import Patches, ReportModel, build_model
from model.network.writers.cmn import CrossModalMemoryNetwork
from model.text.labeler import FINDINGS, label_report
from model.text.tokenizer import Tokenizer
from model.types import Precision, StudyView, View
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from tests.support.paths import DRAWN
from training.data.studies import Study
from training.stages.mbr_table import build_consensus

REPORTS = (
    "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax.",
    "The heart is enlarged. There is a small left pleural effusion. No pneumothorax.",
    "There is a patchy opacity in the right lower lobe. The heart is normal in size.",
    "A pacemaker is in place. The heart is mildly enlarged. The lungs are clear.",
    "Low lung volumes with atelectasis at the left base. No pleural effusion.",
    "There is a fracture of a left rib. No pneumothorax. The lungs are clear.",
    "The lungs are hyperinflated. No focal consolidation. The heart is small.",
    "There is a large right pneumothorax. The heart is shifted to the left.",
)
IMAGE_SIZE = 64


def tiny_tokenizer() -> Tokenizer:
    """Vocabulary of ``REPORTS``."""
    return Tokenizer.build(REPORTS, min_count=1)


def tiny_config(vocab_size: int, /, **changes: object) -> ModelConfig:
    """A model of small dimensions on a small torchvision backbone."""
    values = {
        "backbone": "mobilenet_v3_small", "vocab_size": vocab_size, "d_model": 32, "d_ff": 64, "heads": 4,
        "encoder_layers": 2, "decoder_layers": 2, "memory_slots": 64, "memory_dim": 48, "memory_heads": 4,
        "memory_top_k": 8, "dropout": 0.1, "max_length": 24, "retrieval_k": 3, "embedding_dim": 16, "text_layers": 1,
    }  # fmt: skip
    if changes.get("writer") == "coattention":
        values |= {"sentence_end": tiny_tokenizer().id_of("."), "tags": FINDINGS}
    return ModelConfig.model_validate({**values, **changes})


def tiny_model(seed: int = 0, **changes: object) -> ReportModel:
    """An untrained model in eval mode, its weights decided by ``seed``; spread enough to write different words."""
    torch.manual_seed(seed)
    model = build_model(tiny_config(len(tiny_tokenizer()), **changes)).eval()
    with torch.no_grad():
        to_words(model).weight.mul_(4)
        if isinstance(model, CrossModalMemoryNetwork):
            model.memory.matrix.normal_()
    return model


def to_words(model: ReportModel) -> Linear:
    """The last layer of a writer of this project."""
    layer = model.get_submodule("to_words")
    assert isinstance(layer, Linear)
    return layer


def tiny_index(model: ReportModel, reports: Sequence[str] = REPORTS, *, texts: bool = True) -> ReportIndex:
    """An index of ``reports`` with unit vectors drawn by seed."""
    vectors = np.random.default_rng(0).normal(size=(len(reports), model.config.embedding_dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cases = [
        Case(
            case_id=f"CXR9{row:03d}_IM-0001",
            findings=report if texts else None,
            labels=dict(label_report(report)),
            source_url=f"https://example.org/cases/{row}",
        )
        for row, report in enumerate(reports)
    ]
    return ReportIndex.build(vectors, cases)


def tiny_consensus(index: ReportIndex) -> MbrTable:
    """The MBR table of ``REPORTS``, three studies of each."""
    studies = [Study(f"CXR{row}", f"CXR{row}", "train", report, ()) for row, report in enumerate(REPORTS)]
    vectors = np.tile(index.vectors(np.arange(len(index))[None])[0], (3, 1))
    return build_consensus(studies * 3, vectors, tiny_tokenizer(), directions=16, max_length=24, seed=1)


def write_tiny_bundle(
    path: Path, *, seed: int = 0, retrieval: bool = True, texts: bool = True, name: str = "tiny", min_length: int = 6,
    decoding: DecodingConfig | None = None, full_stops: float = 0.0, finding_head: bool = False, writer: str = "cmn",
    says: str | None = None,
) -> Path:  # fmt: skip
    """Write a real, untrained bundle and return its path.

    Args:
        decoding: replaces ``min_length``.
        full_stops: added to the logit of the full stop, so that sentences end.
        finding_head: with a random finding classifier, and drafts that name findings.
        writer: of the model.
        says: the draft of every study, which the model is trained to write; needs ``retrieval=False``.
    """
    changes = {"writer": writer, "finding_head": finding_head}
    model = tiny_model(seed, **changes) if retrieval else tiny_model(seed, retrieval_k=0, **changes)
    decoding = decoding or DecodingConfig(min_length=min_length)
    if says is not None:
        _teach(model, says)
    with torch.no_grad():
        to_words(model).bias[tiny_tokenizer().id_of(".")] += full_stops
        if finding_head:
            model.get_buffer("feature_norm.running_mean").normal_()
            to_words(model).bias[[tiny_tokenizer().id_of(word) for word in ("pneumothorax", "fracture")]] += 4.0
    index_dir = mbr_table = None
    if retrieval:
        index_dir = path.parent / f"{path.name}-index"
        index_dir.mkdir(parents=True, exist_ok=True)
        index = tiny_index(model, texts=texts)
        index.save(index_dir)
        mbr_table = tiny_consensus(index) if decoding.method == "consensus" else None
    config = BundleConfig(
        name=name,
        model=model.config,
        preprocessing=PreprocessingConfig(image_size=IMAGE_SIZE),
        decoding=decoding,
        retrieval=RetrievalConfig(k=3, dim=16, cases=len(REPORTS)) if retrieval else None,
        trained_on={"dataset": "none", "note": "untrained, for tests"},
        licence="none: random weights",
    )
    write_bundle(
        path, config=config, model=model, tokenizer=tiny_tokenizer(), index_dir=index_dir, mbr_table=mbr_table,
        weights_dtype="fp32",
    )  # fmt: skip
    return path


def _teach(model: ReportModel, report: str, steps: int = 25) -> None:
    ids = torch.tensor([tiny_tokenizer().encode(report, model.config.max_length)])
    optimizer = torch.optim.Adam((p for n, p in model.named_parameters() if "backbone" not in n), lr=3e-3)
    for _ in range(steps):
        logits = model(model.encode(random_patches(model, 1)), ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def write_denying_bundle(path: Path) -> Path:
    """A tiny bundle with a finding classifier, whose drafts deny a pneumothorax in one of several sentences."""
    decoding = DecodingConfig(method="consensus")
    return write_tiny_bundle(path, seed=6, full_stops=4.0, decoding=decoding, finding_head=True)


def open_drafter(path: Path, *, precision: Precision = "fp32") -> Drafter:
    """The drafter of a bundle on the CPU; its index is verified."""
    bundle = load_bundle(path)
    index = ReportIndex.load(path / "index", expected_sha256=bundle.index_sha256()) if bundle.config.retrieval else None
    return Drafter(bundle, index, precision=precision)


def noise_study(seed: int, *views: View) -> list[StudyView]:
    """A study of random pixels."""
    rng = np.random.default_rng(seed)
    return [StudyView(rng.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE), np.uint8), view) for view in views]


def drawn_study(name: str, size: int) -> list[StudyView]:
    """A phantom of the documentation, frontal and lateral."""
    return [StudyView(load_pixels((DRAWN / f"{name}-{view.value}.png").read_bytes(), size), view) for view in View]


def random_patches(model: ReportModel, studies: int, *, seed: int | None = None) -> Patches:
    """Backbone output of studies with one frontal view: normal values, four patches a view."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    tokens = torch.randn(studies, 1, 4, model.backbone.width, generator=generator)
    views = torch.zeros(studies, 1, dtype=torch.int64)
    return Patches(tokens, tokens.mean(2), views, torch.ones_like(views, dtype=torch.bool))


@contextmanager
def soft_limit(limit: int, value: int) -> Iterator[None]:
    """A soft limit of this process, such as ``resource.RLIMIT_NOFILE``."""
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


def largest_file(size: int) -> AbstractContextManager[None]:
    """A disk that has no room for files above ``size`` bytes."""
    return soft_limit(resource.RLIMIT_FSIZE, size)
