"""Bundles whose files and manifest were both changed: rejected by name, with bounded work."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from model.bundle import CALIBRATION, CONFIG, CONSENSUS, METRICS, TOKENIZER, WEIGHTS, load_bundle
from model.config import DecodingConfig
from model.manifest import MANIFEST, BundleError, write_manifest
from tests.support.tiny import write_tiny_bundle

Change = Callable[[dict[str, Any]], object]


def rewrite(path: Path, change: Change) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(bundle: Path) -> str:
    """The message with which the bundle is refused, after its manifest was written again."""
    write_manifest(bundle)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    return str(caught.value)


# --- manifest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"files":' * 50_000,
        '{"schema_version": 1, "files": {"config.json": {"sha256": "", "size": Infinity}}}',
        '{"schema_version": 1, "files": {"config.json": {"sha256": "", "size": 1e999}}}',
        '{"schema_version": 1, "files": {"config.json": {"sha256": "", "size": NaN}}}',
        '{"schema_version": 1, "files": []}',
        '{"schema_version": 1, "files": {"config.json": 1}}',
        '{"schema_version": 1, "files": {}} ' + " " * 2**20,
        "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
    ],
)
def test_rejects_a_hostile_manifest(bundle_copy: Path, content: str) -> None:
    (bundle_copy / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"MANIFEST\.json is damaged"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../x", "..\\x", "./config.json", "a//b", ""])
def test_rejects_paths_outside_the_bundle(bundle_copy: Path, name: str) -> None:
    rewrite(bundle_copy / MANIFEST, lambda m: m["files"].update({name: m["files"]["config.json"]}))
    with pytest.raises(BundleError, match="names a file outside the bundle"):
        load_bundle(bundle_copy)


def test_rejects_pipes_and_devices_without_reading_them(bundle_copy: Path) -> None:
    (bundle_copy / TOKENIZER).unlink()
    os.mkfifo(bundle_copy / TOKENIZER)
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        load_bundle(bundle_copy)
    (bundle_copy / TOKENIZER).unlink()
    (bundle_copy / TOKENIZER).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        load_bundle(bundle_copy)


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER, METRICS, CALIBRATION])
def test_rejects_nested_and_huge_json(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).write_text("[" * 100_000)
    assert name in refusal(bundle_copy)
    with (bundle_copy / name).open("wb") as file:
        file.truncate(65 * 2**20)  # sparse
    assert f"{name} has {65 * 2**20} bytes, more than" in refusal(bundle_copy)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"d_model": 2**20, "d_ff": 2**20}, "describes a larger model"),
        ("model", {"d_ff": 10**9}, "describes a larger model"),
        ("model", {"memory_slots": 10**9}, "describes a larger model"),
        ("model", {"writer": "cnn-rnn", "d_ff": 10**9}, "describes a larger model"),  # of the text tower
        ("model", {"writer": "cnn-rnn", "d_model": 2**20}, "describes a larger model"),
        ("model", {"writer": "r2gen", "relational_slots": 10**9}, "describes a larger model"),
        ("model", {"embedding_dim": 10**9}, "differs from model.embedding_dim"),
        ("model", {"encoder_layers": 10**9}, "encoder_layers"),
        ("model", {"text_layers": 65}, "text_layers"),
        ("model", {"vocab_size": 10**12}, "the vocabulary has"),
        ("model", {"heads": 10**30}, "not divisible"),
        ("model", {"backbone": "regnet_y_128gf"}, "describes a larger model"),
        ("model", {"backbone": "../../x"}, "not a torchvision model"),
        ("model", {"max_length": 10**9}, "max_length"),
        ("retrieval", {"k": 10**9}, "retrieval.k"),
        ("preprocessing", {"image_size": 10**9}, "image_size"),
        ("decoding", {"candidates": 10**9}, "candidates"),
        ("decoding", {"temperature": float("nan")}, "temperature"),
    ],
)
def test_rejects_absurd_sizes_before_allocating(
    bundle_copy: Path, section: str, changes: dict[str, Any], message: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewrite(bundle_copy / CONFIG, lambda config: config[section].update(changes))
    assert message in refusal(bundle_copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(tokens="abc"),
        lambda t: t.pop("tokens"),
        lambda t: t["tokens"].__setitem__(9, [1]),
        lambda t: t["tokens"].__setitem__(9, 1),
        lambda t: t["tokens"].__setitem__(9, "\ud800"),
        lambda t: t["tokens"].__setitem__(9, "a\nb"),
        lambda t: t["tokens"].__setitem__(9, t["tokens"][8]),
        lambda t: t.update(cleaning=[]),
    ],
)
def test_rejects_vocabulary_that_is_not_a_list_of_words(bundle_copy: Path, change: Change) -> None:
    rewrite(bundle_copy / TOKENIZER, change)
    assert "vocabulary" in (message := refusal(bundle_copy)) or "tokenizer.json" in message


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rejects_weights_that_are_not_finite(bundle_copy: Path, value: float) -> None:
    state = load_file(bundle_copy / WEIGHTS)
    name = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dim() > 1)
    state[name].view(-1)[-1] = value
    save_file(state, bundle_copy / WEIGHTS)
    assert f"{name} has values that are not finite" in refusal(bundle_copy)


def _swapped(state: dict[str, torch.Tensor]) -> None:
    state["to_words.weight"] = state["to_words.weight"].T.contiguous()


@pytest.mark.parametrize(
    "change",
    [
        _swapped,
        lambda state: state.pop("to_words.weight"),
        lambda state: state.update(more=torch.zeros(2)),
        lambda state: state.update({"to_words.bias": torch.zeros(0)}),
        lambda state: state.update({"to_words.bias": torch.zeros(2**28, dtype=torch.uint8)}),
    ],
)
def test_rejects_weights_of_another_shape(
    bundle_copy: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    state = load_file(bundle_copy / WEIGHTS)
    change(state)
    save_file(state, bundle_copy / WEIGHTS)
    assert f"{WEIGHTS} does not fit {CONFIG}" in refusal(bundle_copy)


def _file(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(100_000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(100_000),
        _file(b"{}", 2**63),
        _file(b"{}", 2**30),
        _file(b"[" * 90_000),
        _file(b'{"a":' * 90_000),
        _file(json.dumps({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}).encode()),
        _file(json.dumps({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}}).encode()),
        _file(json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()),
        _file(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}).encode()),
        _file(json.dumps({"a": {"dtype": "F77", "shape": [4], "data_offsets": [0, 16]}}).encode()),
        _file(
            json.dumps({f"{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(2_000)}).encode()
        ),
    ],
)
def test_rejects_wrong_safetensors_headers(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / WEIGHTS).write_bytes(content)
    message = refusal(bundle_copy)
    assert WEIGHTS in message


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A bundle with a table for MBR decoding."""
    return write_tiny_bundle(tmp_path / "mbr", decoding=DecodingConfig(method="consensus", candidates=2))


def test_rejects_attested_decoding_without_attested_sentences(table: Path) -> None:
    rewrite(table / CONFIG, lambda config: config["decoding"]["language"].update(attested=True))
    write_manifest(table)
    load_bundle(table)
    arrays = load_arrays(table / CONSENSUS)
    save_arrays(arrays | {"sentences": np.zeros(0, np.int32)}, table / CONSENSUS)
    assert "has no attested sentences; make them with" in refusal(table)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(idf=t["idf"] * np.float32("nan")),
        lambda t: t.update(attested=t["attested"][::-1]),
        lambda t: t.update(sentences=t["sentences"][::-1]),
        lambda t: t.update(attested=t["attested"].astype(np.int32)),
        lambda t: t.update(idf=t["idf"][:-1]),
        lambda t: t.update(norms=t["norms"].astype(np.float64)),
        lambda t: t.update(vectors=t["vectors"] * 0),
        lambda t: t.update(vectors=t["vectors"][:, :4]),
        lambda t: t.update(vectors=t["vectors"][0]),
        lambda t: t.update(basis=np.zeros((), np.int8)),
        lambda t: t.update(coordinates=t["coordinates"][:, :-1]),
        lambda t: t.update(frequent=np.full(1, 2**30, np.int32), holds=t["holds"][:, :1]),
        lambda t: t.update(order=t["order"] + np.int8(100)),
        lambda t: t.update(findings=t["findings"][:, :3]),
        lambda t: t.pop("lengths"),
    ],
)
def test_rejects_a_table_that_does_not_fit(table: Path, change: Change) -> None:
    arrays = load_arrays(table / CONSENSUS)
    change(arrays)
    save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, table / CONSENSUS)
    assert CONSENSUS in refusal(table)
