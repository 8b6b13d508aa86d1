"""The preset ``r2gencmn`` takes the steps of the published code, on drawn images and invented reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import Resize

from model.network.backbone import Backbone
from model.network.memory import CrossModalMemory
from model.network.report_model import build_model
from model.text.tokenizer import UNK
from model.types import View
from tests.support.reference_cmn import ReferenceCMN, published_state
from tests.support.reference_training import Batch, ReferenceTraining, visual_extractor
from tests.support.tiny import REPORTS
from training.config import RunConfig, StepDecay
from training.data.crops import CropCache, build_crop_cache
from training.data.features import OnlineFeatures
from training.data.image_store import LooseImages
from training.data.pixel_cache import PixelCache
from training.data.studies import ImageRef, Source, Study
from training.import_r2gencmn import Published, import_model
from training.import_r2gencmn.convert import _names
from training.prepared_run import PreparedRun, model_config
from training.presets import preset
from training.protocols import PROTOCOLS
from training.r2gencmn import reset_as_published
from training.stages.common import RunInputs, StudySplits, TrainingReports, shuffled_batches
from training.stages.cross_entropy import train_cross_entropy
from training.trainer.context import RunContext
from training.trainer.loop import step_seed

SIZE, SHORT, LONG = 64, 73, 100
STUDIES, BATCH, EPOCHS, DECAY, SEED = 10, 4, 7, 3, 5
SIZES = {"words": 0, "d_model": 32, "d_ff": 48, "features": 48, "layers": 2, "slots": 40}
HEADS, TOP_K = 4, 8
VIEWS = {"r2gencmn": 2, "r2gencmn-mimic": 1}  # of a study


def small(config: RunConfig) -> RunConfig:
    """A preset with small dimensions and without dropout, which draws other numbers."""
    shape = config.shape.model_copy(update={
        "backbone": "resnet18", "d_model": 32, "d_ff": 48, "heads": HEADS, "layers": 2, "memory_slots": 40,
        "memory_dim": 32, "memory_heads": HEADS, "memory_top_k": TOP_K, "dropout": 0.0, "feature_dropout": 0.0,
        "memory_dropout": 0.0,
    })  # fmt: skip
    ce = config.ce.model_copy(update={
        "epochs": EPOCHS, "batch_size": BATCH, "step_decay": StepDecay(every=DECAY, factor=0.8), "patience": None,
    })  # fmt: skip
    return config.model_copy(update={
        "shape": shape, "ce": ce, "image_size": SIZE, "backbone_weights": "none", "seed": SEED,
    })  # fmt: skip


def backbone() -> Backbone:
    """The visual extractor of ``visual_extractor`` as a backbone."""
    found = Backbone("resnet18")
    found.features, found.width = visual_extractor(SEED), SIZES["features"]
    return found


def drawn_data(views: int) -> tuple[list[Study], PixelCache, CropCache]:
    """Studies with noise images, some of them wide; the file's order has laterals before frontals."""
    rng = np.random.default_rng(0)
    order = (View.LATERAL, View.FRONTAL)[-views:]
    studies = [
        Study(f"s{n}", f"s{n}", "train", " ".join(REPORTS[n % len(REPORTS) :][: 1 + n % 3]),
              tuple(ImageRef(f"{n}-{view.value}", view) for view in order), keeps_order=True)
        for n in range(STUDIES)
    ]  # fmt: skip
    keys = [ref.key for study in studies for ref in study.images]
    rows = {key: row for row, key in enumerate(keys)}
    squares = rng.integers(0, 255, (len(keys), SIZE, SIZE), np.uint8)
    whole = rng.integers(0, 255, (len(keys), LONG, SHORT), np.uint8)
    stored = {key: (row, int(rng.integers(SHORT, LONG)), bool(row % 3)) for key, row in rows.items()}
    return studies, PixelCache(squares, rows, {}, {}), CropCache(whole, stored, SIZE)


@dataclass(frozen=True)
class Both:
    """One initial model, its oracle, and the data of both."""

    run: PreparedRun
    oracle: ReferenceTraining
    initial: dict[str, Tensor]
    max_ids: int

    @classmethod
    def of(cls, name: str, work: Path) -> Both:
        """By a preset."""
        config = small(preset(name))
        protocol = PROTOCOLS[config.protocol]
        studies, pixels, crops = drawn_data(VIEWS[name])
        words = protocol.words([study.report for study in studies] * protocol.min_count)
        tokenizer = protocol.tokenizer(words)
        context = RunContext(torch.device("cpu"), SEED, "fp32", work)
        inputs = RunInputs(Source("drawn", tuple(studies), (), LooseImages({}, work), ()), work / "out")
        state, visual = published_state(**{**SIZES, "words": len(words)}), visual_extractor(SEED)
        extractor = {f"visual_extractor.model.{key}": value.clone() for key, value in visual.state_dict().items()}
        published = Published(HEADS, TOP_K, protocol.max_ids)
        initial = import_model(state | extractor, words, published, backbone=backbone()).state_dict()
        model = build_model(model_config(config, len(tokenizer)), backbone=backbone())
        model.load_state_dict(initial)
        plain = ReferenceCMN(state, heads=HEADS, top_k=TOP_K, max_length=protocol.max_ids)
        run = PreparedRun(config, context, inputs, pixels, StudySplits(studies, []), tokenizer, model, work, crops)
        return cls(run, ReferenceTraining(visual, plain, step_size=DECAY), initial, protocol.max_ids)

    def expected_losses(self) -> list[float]:
        """The losses of the oracle on the batches of the preset."""
        run, tokenizer = self.run, self.run.tokenizer
        features = OnlineFeatures(run.model, run.cache, run.context.device, 0.0, crops=run.crops)
        order = sorted([*tokenizer.tokens[4:], UNK])  # published ids are 1, 2, … of the sorted words
        published_ids = torch.tensor([order.index(token) + 1 if token in order else 0 for token in tokenizer.tokens])
        steps = math.ceil(STUDIES / BATCH)
        batches = shuffled_batches(STUDIES, steps, SEED, 29, size=BATCH)
        losses: list[float] = []
        for epoch in range(EPOCHS):
            found = []
            for number, rows in enumerate(batches(epoch)):
                chosen = [run.studies.train[row] for row in rows]
                draws = torch.Generator().manual_seed(step_seed(SEED, "ce", epoch * steps + number))
                ids = [published_ids[tokenizer.encode(study.report, self.max_ids)] for study in chosen]
                found.append(Batch(features.images(chosen, draws)[0], pad_sequence(ids, batch_first=True)))
            losses += self.oracle.epoch(found)
        return losses

    def losses(self, monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[float]:
        """The losses of stage ``ce``, with changes of its configuration."""
        run, losses, nll = self.run, [], TrainingReports.nll

        def recorded(*arguments: Any) -> Tensor:
            loss = nll(*arguments)
            losses.append(float(loss.detach()))
            return loss

        monkeypatch.setattr(TrainingReports, "nll", recorded)
        config = run.config.ce.model_copy(update=changes)
        train_cross_entropy(run.generator(run.trained_features()), run.studies, config, run.context)
        return losses


@pytest.mark.parametrize("name", VIEWS)
def test_takes_the_steps_of_the_published_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's network is compared with outputs of the published code in ``test_training_import_r2gencmn``."""
    both = Both.of(name, tmp_path)
    expected, losses = both.expected_losses(), both.losses(monkeypatch)
    assert len(losses) > 20
    assert losses[0] - losses[-1] > 0.3
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)

    oracle, trained = both.oracle, both.run.model.state_dict()
    after = {ours: oracle.weights[published].detach() for ours, published in _names(2).items()}
    after |= {f"backbone.features.{key}": value for key, value in oracle.visual.state_dict().items()}
    for key, value in after.items():
        if not key.endswith("key.bias"):  # the loss does not depend on it: its gradient is rounding
            moved = (value - both.initial[key]).double().norm()
            assert (trained[key] - value).double().norm() < 1e-2 * moved, key


@pytest.fixture(scope="module")
def published_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the oracle on the batches of the preset ``r2gencmn``."""
    return Both.of("r2gencmn", tmp_path_factory.mktemp("oracle")).expected_losses()


@pytest.mark.parametrize(
    "change",
    [{"batch_statistics": False}, {"full_batches": False}, {"step_decay": None}, {"clip_norm": 0.1},
     {"weight_decay": 0.1}, {"adam_eps": 1e-3}, {"backbone_lr": 5e-4}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_recipe_takes_other_steps(
    change: dict[str, Any], published_losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Both.of("r2gencmn", tmp_path).losses(monkeypatch, epochs=DECAY + 1, **change)
    differences = np.abs(np.subtract(losses, published_losses[: len(losses)]))
    assert len(losses) > 3 * DECAY  # the rate has fallen
    assert differences.max() > 1e-4


@pytest.mark.parametrize(
    ("name", "epochs", "every", "longest"), [("r2gencmn", 100, 10, 60), ("r2gencmn-mimic", 30, 3, 100)]
)
def test_preset_has_the_values_of_the_published_scripts(name: str, epochs: int, every: int, longest: int) -> None:
    config = preset(name)
    ce, shape = config.ce, config.shape
    assert (ce.epochs, ce.step_decay, ce.batch_size) == (epochs, StepDecay(every=every, factor=0.8), 16)
    assert (ce.backbone_lr, ce.transformer_lr, ce.weight_decay, ce.adam_eps) == (1e-4, 5e-4, 5e-5, 1e-9)
    assert (ce.select, ce.patience, ce.clip_norm, ce.view_dropout) == ("BLEU_4", 51, None, 0.0)
    assert (shape.backbone, shape.d_model, shape.d_ff, shape.heads, shape.layers) == ("resnet101", 512, 512, 8, 3)
    assert (shape.memory_slots, shape.memory_dim, shape.memory_top_k, shape.max_length) == (2048, 512, 32, longest + 1)
    assert (shape.dropout, shape.feature_dropout, shape.memory_dropout) == (0.1, 0.5, 0.1)
    assert (config.decoding.method, config.decoding.beam_size) == ("beam", 3)
    assert (config.retrieval_k, config.pretrain, config.retriever, config.scst) == (0, None, None, None)


def test_refuses_a_last_batch_that_the_processes_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both.of("r2gencmn", tmp_path)
    group = both.run.context.processes
    monkeypatch.setattr(group, "count", 3)
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared by 3 processes"):
        both.losses(monkeypatch)


# --- initial weights, crops and selection -----------------------------------------------------------------------------


def test_initial_weights_have_the_published_spread() -> None:
    config = small(preset("r2gencmn"))
    torch.manual_seed(SEED)
    model = build_model(model_config(config, 300), backbone=backbone())
    reset_as_published(model)

    def bound(weight: Tensor) -> float:
        return float(weight.detach().abs().max())

    for weight in (model.encoder.layers[0].attention.query.weight, model.memory.key.weight):
        assert bound(weight) == pytest.approx(math.sqrt(6 / 64), rel=0.02)
    assert bound(model.word_embedding.weight) == pytest.approx(math.sqrt(6 / 332), rel=0.02)
    assert bound(model.to_model[0].weight) == pytest.approx(1 / math.sqrt(48), rel=0.02)
    assert bound(model.to_words.weight) == pytest.approx(1 / math.sqrt(32), rel=0.02)
    assert float(model.memory.matrix.std()) == pytest.approx(1 / 32, rel=0.1)
    ids = torch.tensor([[1, 7, 9]])
    patches = model.encode_images(torch.rand(1, 2, 1, SIZE, SIZE), torch.tensor([[0, 1]]), torch.ones(1, 2).bool())
    probabilities = model(model.encode(patches), ids).softmax(-1)
    assert float(probabilities[..., :2].max()) == 0  # <pad> and <bos>, which published models lack


def test_crops_are_those_of_torchvision(tmp_path: Path) -> None:
    """Resize(256), a crop and a flip of the whole image; positions reach both ends of each side."""
    rng = np.random.default_rng(1)
    images = {"wide": Image.fromarray(rng.integers(0, 255, (300, 410), np.uint8)),
              "high": Image.fromarray(rng.integers(0, 255, (390, 301), np.uint8))}  # fmt: skip
    paths = {name: tmp_path / f"{name}.png" for name in images}
    for name, image in images.items():
        image.save(paths[name])
    studies = [Study(name, name, "train", "Clear.", (ImageRef(name, None),)) for name in images]
    source = Source("drawn", tuple(studies), (), LooseImages(paths, tmp_path), ())
    cache = build_crop_cache(source, studies, 224, tmp_path / "cache", resample="bilinear")
    draws = torch.tensor(list(product((-1, 0.3, 1), (-1, 1), (-0.5, 0.5))))
    for name, image in images.items():
        whole = np.asarray(Resize(256)(image.convert("RGB")))[..., 0]
        for draw, crop in zip(draws.tolist(), cache.crop([name] * len(draws), draws).numpy(), strict=True):
            share = [min((value + 1) / 2, 1 - 1e-9) for value in draw]
            sides = whole.shape if name == "high" else whole.shape[::-1]  # the longer one first
            offsets = [int(s * (side - 223)) for s, side in zip(share, sides, strict=False)]
            top, left = offsets if name == "high" else offsets[::-1]
            expected = whole[top : top + 224, left : left + 224]
            assert np.array_equal(crop, expected[:, ::-1] if draw[2] < 0 else expected)


def test_studies_of_one_and_of_two_images_share_a_batch_of_crops() -> None:
    """A missing view has no crop; the first image of the cache may be of val, which has none either."""
    studies, pixels, crops = drawn_data(2)
    shifted = replace(pixels, rows={"0-of-val": 0, **{key: row + 1 for key, row in pixels.rows.items()}})
    model = build_model(model_config(small(preset("r2gencmn")), 9))
    batch = [studies[0], replace(studies[1], images=studies[1].images[:1])]
    (expected, _, mask), (found, _, _) = (
        OnlineFeatures(model, cache, torch.device("cpu"), 0.0, crops=crops).images(batch, torch.Generator())
        for cache in (pixels, shifted)
    )
    assert mask.tolist() == [[True, True], [True, False]]
    assert torch.equal(found[mask], expected[mask])


def test_dropped_memory_weights_have_the_mean_of_the_response() -> None:
    torch.manual_seed(0)
    memory = CrossModalMemory(32, 32, 40, 4, 8, dropout=0.3).train()
    tokens = torch.randn(2, 3, 32)
    mean = memory(tokens.repeat(4000, 1, 1), memory.bank()).view(4000, *tokens.shape).mean(0)
    single = memory(tokens, memory.bank())
    expected = memory.eval()(tokens, memory.bank())
    assert not torch.allclose(single, expected, atol=1e-3)
    torch.testing.assert_close(mean, expected, atol=2e-3, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = memory.train()(tokens, memory.bank())
    low.sum().backward()
    assert memory.matrix.grad is not None
    assert memory.matrix.grad.abs().sum() > 0


def test_crops_refuse_cached_features() -> None:
    values = preset("r2gencmn").model_dump()
    values["ce"]["backbone_lr"] = 0.0
    with pytest.raises(ValidationError, match=r"augmentation='crops' needs pixels in each step, but ce.backbone_lr=0"):
        RunConfig.model_validate(values)
