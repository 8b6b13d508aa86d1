"""``python -m training.import_r2gencmn``: the bundle from a checkpoint to a served report, and refusals."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

from model.bundle import load_bundle
from model.config import DecodingConfig
from model.network.report_model import ReportModel
from model.text.tokenizer import UNK
from tests.support import reference_cmn
from tests.support.reference_cmn import END, GivenFeatures, ReferenceCMN, made_up_words, published_state
from tests.support.service import encode, ready_client, scene
from tests.support.tiny import REPORTS
from training.data.openi import open_openi
from training.evaluate import main as evaluate
from training.import_r2gencmn import Published, import_model, read_checkpoint
from training.import_r2gencmn.__main__ import main
from training.openi import annotation
from training.phantoms import write_phantom_root
from training.protocols import IU_XRAY

State = dict[str, Tensor]
TINY = {"d_model": 64, "d_ff": 96, "layers": 2, "slots": 40}
FLAGS = ("--heads", "4", "--top-k", "8", "--max-length", "20")


# --- from a checkpoint file to a report -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """A checkpoint with a ResNet-101, its data set, and the imported bundle."""

    checkpoint: Path
    annotation: Path
    images: Path
    entries: dict[str, list[dict[str, Any]]]
    words: tuple[str, ...]
    state: State
    bundle: Path

    def image(self, key: str, entry: dict[str, Any]) -> Path:
        number = int(Path(key).stem)
        return self.images / f"{entry['image_ids'][number]}.png"

    @torch.inference_mode()
    def written_plainly(self, files: list[Path]) -> str:
        """The report of a study by torchvision's ResNet, its published transform and the published equations."""
        images = torch.stack([prepared(file) for file in files])
        extractor = resnet101()
        prefix = "visual_extractor.model."
        extractor.load_state_dict({k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)})
        features = extractor.eval()(images).flatten(2).transpose(1, 2)  # (V, 49, 2048)
        plain = ReferenceCMN(
            {key: value for key, value in self.state.items() if not key.startswith(prefix)},
            heads=4, top_k=8, max_length=20,
        )  # fmt: skip
        (ids,) = plain.beam(features.flatten(0, 1).unsqueeze(0), 3).tolist()
        return " ".join(self.words[number - 1] for number in ids[: ids.index(END) if END in ids else None])


def resnet101() -> nn.Sequential:
    return nn.Sequential(*list(models.resnet101(weights=None).children())[:-2])


def resnet_state(images: Path) -> State:
    """Random weights whose statistics are those of ``images``, so that features differ between them."""
    torch.manual_seed(1)
    extractor = resnet101().train()
    for module in extractor.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        extractor(torch.stack([prepared(file) for file in sorted(images.glob("*.png"))[:8]]))
    return {f"visual_extractor.model.{key}": value for key, value in extractor.state_dict().items()}


def prepared(file: Path) -> Tensor:
    """An image by the published transform, (3, 224, 224)."""
    transform = transforms.Compose([
        transforms.Resize((224, 224)), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    image: Tensor = transform(Image.open(file).convert("RGB"))
    return image


def save(path: Path, state: State, **more: Any) -> Path:
    """As the published trainer saves: with an optimizer of the same parameters."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(3))], amsgrad=True)
    content = {"epoch": 7, "state_dict": state, "optimizer": optimizer.state_dict(), "monitor_best": np.float64(0.4321)}
    torch.save({**content, **more}, path)
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("published")
    root = write_phantom_root(folder / "root", train=20, val=4, size=160)
    entries = annotation(open_openi(root))
    val = entries["val"]
    val[0]["image_path"] = val[0]["image_path"][:1]  # one image
    val[1]["image_path"].append(f"{val[1]['id']}/2.png")  # three
    val[1]["image_ids"].append(val[2]["image_ids"][0])
    val[2]["image_path"].reverse()  # two, not in the order of the others
    (folder / "annotation.json").write_text(json.dumps(entries))
    words = IU_XRAY.words(entry["report"] for entry in entries["train"])
    state = published_state(words=len(words), **TINY) | resnet_state(root / "images")
    state["encoder_decoder.logit.weight"] *= 3  # spread enough to write different words
    checkpoint = save(folder / "model_iu_xray.pth", state)
    bundle = folder / "imported"
    arguments = ["--checkpoint", str(checkpoint), "--annotation", str(folder / "annotation.json")]
    assert main([*arguments, "--out", str(bundle), *FLAGS, "--data-licence", "invented, CC0"]) == 0
    return Imported(checkpoint, folder / "annotation.json", root / "images", entries, words, state, bundle)


def test_bundle_config_names_the_import(imported: Imported) -> None:
    config = load_bundle(imported.bundle).config
    assert config.model.backbone == "resnet101"
    assert (config.model.norm, config.model.patch_positions, config.model.retrieval_k) == ("r2gen", "sequence", 0)
    assert (config.model.memory_slots, config.model.encoder_layers, config.model.max_length) == (40, 2, 21)
    assert config.decoding == DecodingConfig(
        method="beam", beam_size=3, length_penalty=0.0, trigram_penalty=reference_cmn.PUBLISHED_TRIGRAM_PENALTY,
        trigram_penalty_in_beams=False, finished_beams_occupy_slots=True, min_length=0, suppress=(),
    )  # fmt: skip
    assert (config.preprocessing.resample, config.preprocessing.view_order) == ("bilinear", "as_given")
    assert config.retrieval is None
    assert config.trained_on["imported_from"] == "R2GenCMN"
    assert "trained on is invented, CC0. For research" in config.licence
    assert config.licence in (imported.bundle / "MODEL_CARD.md").read_text()
    assert (config.trained_on["epoch"], config.trained_on["monitor_best"]) == (7, 0.4321)
    assert not (imported.bundle / "index").exists()


def test_imported_bundle_is_evaluated_and_drafts_as_the_published_model(imported: Imported, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    arguments = [f"--bundle={imported.bundle}", f"--annotation={imported.annotation}", f"--images={imported.images}",
                 "--split=val", f"--out={out}", "--device=cpu", "--no-meteor"]  # fmt: skip
    assert evaluate(arguments) == 0
    result = json.loads(out.read_text())
    assert result["n"] == 4
    assert result["counts"]["images"] == 1 + 3 + 2 + 2
    assert result["decoding"]["trigram_penalty"] == reference_cmn.PUBLISHED_TRIGRAM_PENALTY
    assert result["system"]["BLEU_1"] is not None
    assert result["baselines"]["constant"] is not None
    lines = [json.loads(line) for line in (tmp_path / result["predictions"]).read_text().splitlines()]
    for line, entry in zip(lines, imported.entries["val"], strict=True):
        assert line["id"] == entry["id"]
        assert line["retrieved"] == []
        expected = imported.written_plainly([imported.image(key, entry) for key in entry["image_path"]])
        assert line["prediction"].replace(" .", "").split() == [word for word in expected.split() if word != "."]
    assert len({line["prediction"] for line in lines}) > 1  # drafts depend on the images


def test_imported_bundle_is_served(imported: Imported) -> None:
    frontal, lateral = (encode(Image.fromarray(scene(*size))) for size in ((150, 120), (120, 150)))
    with ready_client(imported.bundle) as client:
        both = client.post("/report", files={"frontal": ("f.png", frontal), "lateral": ("l.png", lateral)})
        alone = client.post("/report", files={"frontal": ("f.png", frontal)})
    for answer in (both, alone):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["reference_cases"] == []
        assert "no_retrieval" in [warning["code"] for warning in body["warnings"]]
        assert body["findings"]
        assert UNK not in body["findings"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def state() -> State:
    return published_state(words=30, features=48, **TINY)


def tried(state: State, **changes: Any) -> ReportModel:
    published = Published(**{"heads": 4, "top_k": 8, "max_length": 20, **changes})
    return import_model(state, made_up_words(30), published, backbone=GivenFeatures(48))


def test_rejects_checkpoint_with_a_missing_key(state: State) -> None:
    for key in state:
        with pytest.raises(ValueError, match=r"missing|no matrix") as refusal:
            tried({name: value for name, value in state.items() if name != key})
        assert key.removesuffix(".weight").removesuffix(".bias")[:40] in str(refusal.value)


@pytest.mark.parametrize(
    "key",
    ["encoder_decoder.model.rm.W.weight", "encoder_decoder.att_embed.4.weight", "proj.weight", "encoder_decoder.x"],
)
def test_rejects_unknown_key(state: State, key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{key}'"):
        tried({**state, key: torch.zeros(1)})


def widen(key: str) -> Callable[[State], None]:
    return lambda state: state.update({key: torch.cat([state[key], state[key][-1:]])})


def another_memory(state: State) -> None:
    state["encoder_decoder.model.cmn.linears.2.weight"] = state["encoder_decoder.cmn.linears.2.weight"] + 1


def another_table(state: State) -> None:
    state["encoder_decoder.model.tgt_embed.1.pe"] = torch.randn_like(state["encoder_decoder.model.tgt_embed.1.pe"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (widen("encoder_decoder.model.tgt_embed.0.lut.weight"), "the checkpoint has 31 words, the annotation gives 30"),
        (widen("encoder_decoder.model.encoder.layers.1.self_attn.linears.3.weight"),
         r"model\.encoder\.layers\.1\.self_attn\.linears\.3\.weight has the shape \(65, 64\), needed is \(64, 64\)"),
        (widen("encoder_decoder.model.decoder.norm.a_2"), r"norm\.a_2 has the shape \(65,\)"),
        (widen("encoder_decoder.logit.weight"), r"logit\.weight has the shape \(32, 64\), needed is \(31, 64\)"),
        (widen("encoder_decoder.logit.bias"), r"logit\.bias has the shape \(32,\), needed is \(31,\)"),
        (another_memory, r"model\.cmn\.linears\.2\.weight differs from"),
        (another_table, r"tgt_embed\.1\.pe is not the sinusoidal table"),
        (lambda state: state.update({"encoder_decoder.model.encoder.layers.99999999999.x": torch.zeros(1)}),
         "layer 2 is missing before layer 99999999999"),
    ],
)  # fmt: skip
def test_rejects_wrong_tensors(state: State, change: Callable[[State], None], message: str) -> None:
    change(state)
    with pytest.raises(ValueError, match=message):
        tried(state)


@pytest.mark.parametrize("changes", [{"heads": 5}, {"top_k": 41}, {"top_k": 0}, {"max_length": 0}])
def test_rejects_flags_that_do_not_fit(state: State, changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="set --heads, --top-k and --max-length as in training"):
        tried(state, **changes)


def test_rejects_other_visual_extractor(state: State) -> None:
    densenet = {f"visual_extractor.model.{k}": v for k, v in models.densenet121(weights=None).state_dict().items()}
    with pytest.raises(ValueError, match="the visual extractor is none of resnet101"):
        import_model({**state, **densenet}, made_up_words(30), Published(4, 8, 20))
    with pytest.raises(ValueError, match="the checkpoint has no visual extractor"):
        import_model(state, made_up_words(30), Published(4, 8, 20))


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """The command on an annotation of a few reports; it must not write a bundle."""
    entries = [{"id": f"s{i}", "report": report, "image_path": ["a.png"]} for i, report in enumerate(REPORTS)]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": entries}))

    def run(checkpoint: Path, *more: str) -> int:
        arguments = ["--checkpoint", str(checkpoint), "--annotation", str(tmp_path / "annotation.json")]
        return main([*arguments, "--out", str(tmp_path / "out"), *FLAGS, *more])

    yield run
    assert not (tmp_path / "out").exists()


class _Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("pickled", [False, True])
def test_checkpoint_with_code_is_not_executed(
    command: Callable[..., int], state: State, tmp_path: Path, pickled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bait = tmp_path / "ran"
    checkpoint = tmp_path / "evil.pth"
    if pickled:
        checkpoint.write_bytes(pickle.dumps({"state_dict": {}, "config": _Evil(bait)}, protocol=2))
    else:
        save(checkpoint, state, config=_Evil(bait))
    assert command(checkpoint) == 2
    assert "cannot be read as weights" in caplog.text
    assert not bait.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights"),
        (b"not a checkpoint at all", "cannot be read as weights"),
        ({"model": {}}, r"holds ['model']; a published checkpoint is a dict with a state_dict"),
        ({"state_dict": {"a": 1}}, "a published checkpoint is a dict with a state_dict"),
        ([1, 2], "holds list"),
        ({"state_dict": {}}, "is missing; this is no R2GenCMN checkpoint"),
        ({"state_dict": {"encoder_decoder.model.rm.x": torch.zeros(1)}}, "this is no R2GenCMN checkpoint"),
    ],
)
def test_rejects_other_files(
    command: Callable[..., int], tmp_path: Path, content: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "other.pth"
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        torch.save(content, checkpoint)
    assert command(checkpoint) == 2
    assert message in caplog.text


def test_command_rejects_bad_arguments(
    command: Callable[..., int], state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert command(tmp_path / "none.pth") == 2
    assert "no such file" in caplog.text
    checkpoint = save(tmp_path / "model.pth", state)
    assert command(checkpoint) == 2
    assert "the checkpoint has 30 words, the annotation gives" in caplog.text
    (tmp_path / "annotation.json").write_text(json.dumps({"val": []}))
    assert command(checkpoint) == 2
    assert "has no train split; the vocabulary is built from it" in caplog.text


def test_existing_bundle_is_kept_without_replace(imported: Imported, caplog: pytest.LogCaptureFixture) -> None:
    before = load_bundle(imported.bundle).digest
    arguments = ["--checkpoint", str(imported.checkpoint), "--annotation", str(imported.annotation)]
    assert main([*arguments, "--out", str(imported.bundle), *FLAGS]) == 2
    assert "already exists; choose another, or add --replace" in caplog.text
    assert load_bundle(imported.bundle).digest == before


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3), float("-inf"), torch.zeros(2)])
def test_accepts_any_type_of_best_metric(state: State, tmp_path: Path, value: Any) -> None:
    _, facts = read_checkpoint(save(tmp_path / "model.pth", state, monitor_best=value))
    expected = value.item() if isinstance(value, np.generic) else str(value)
    assert facts["monitor_best"] == expected
    json.dumps(facts, allow_nan=False)


def test_accepts_scalars_of_numpy_1(state: State, tmp_path: Path) -> None:
    """NumPy 1 pickled scalars under another module name."""
    path = save(tmp_path / "model.pth", state)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert old.read_bytes() != path.read_bytes()
    assert b"numpy._core" not in zipfile.ZipFile(old).read("model/data.pkl")
    assert read_checkpoint(old)[1] == {"epoch": 7, "monitor_best": 0.4321}


def test_accepts_keys_of_data_parallel_training(state: State, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "model.pth", {f"module.{key}": value for key, value in state.items()})
    read, facts = read_checkpoint(checkpoint)
    assert read.keys() == state.keys()
    assert facts == {"epoch": 7, "monitor_best": 0.4321}
