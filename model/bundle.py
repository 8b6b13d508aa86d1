"""The bundle: a directory with everything that serving needs, written atomically, verified before use.

``config.json``, ``model.safetensors``, ``tokenizer.json``, ``metrics.json``, optionally ``index/``,
``consensus.safetensors`` and ``calibration.json``, and ``MANIFEST.json`` with the SHA-256 and size
of every other file. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.calibration.schema import Calibration
from model.config import BundleConfig
from model.decoding.mbr_table import MbrTable
from model.decoding.search import Constraints
from model.files import file_sha256, replace_folder
from model.manifest import MANIFEST, REQUIRED, BundleError, Manifest, verify_bundle, write_manifest
from model.network.backbone import Backbone
from model.network.pretrained import least_weights
from model.network.report_model import ReportModel, build_model, writer_class
from model.text.tokenizer import Tokenizer

CONFIG, WEIGHTS, TOKENIZER = REQUIRED
METRICS = "metrics.json"
CONSENSUS = "consensus.safetensors"
CALIBRATION = "calibration.json"
INDEX_DIR, INDEX_FILES = "index", ("reports.faiss", "cases.jsonl")
DIGITS = 6  # significant digits of a metric
T = TypeVar("T")
_MAX_BYTES = {CONFIG: 2**20, TOKENIZER: 2**26, METRICS: 2**26, CALIBRATION: 2**26}  # parsed JSON takes far more memory


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. ``digest`` is the SHA-256 of its manifest and so names its whole content."""

    path: Path
    config: BundleConfig
    tokenizer: Tokenizer
    model: ReportModel
    manifest: Manifest
    digest: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    mbr_table: MbrTable | None = None
    calibration: Calibration | None = None

    def index_sha256(self) -> dict[str, str]:
        """Expected digests of the files in ``index/``, by file name."""
        prefix = INDEX_DIR + "/"
        return {
            name.removeprefix(prefix): entry.sha256
            for name, entry in self.manifest.files.items()
            if name.startswith(prefix)
        }


def load_bundle(path: Path, *, device: str | torch.device = "cpu") -> Bundle:
    """Verify and load a bundle; weights become float32 on ``device``, the model is in eval mode.

    Raises:
        BundleError: see ``verify_bundle``; or config, vocabulary and weights do not match.
    """
    path = Path(path)
    manifest = verify_bundle(path)
    for name, most in _MAX_BYTES.items():
        if name in manifest.files and manifest.files[name].size > most:
            raise BundleError(f"{path}: {name} has {manifest.files[name].size} bytes, more than {most}; restore it")
    config = _parsed(path / CONFIG, BundleConfig.model_validate_json)
    tokenizer = _parsed(path / TOKENIZER, Tokenizer.from_json)
    metrics = _parsed(path / METRICS, json.loads) if METRICS in manifest.files else {}
    if len(tokenizer) != config.model.vocab_size:
        raise BundleError(
            f"{path}: the vocabulary has {len(tokenizer)} tokens, the model {config.model.vocab_size}; "
            "tokenizer.json and config.json come from different bundles"
        )
    if config.retrieval is not None and not {"index/reports.faiss", "index/cases.jsonl"} <= set(manifest.files):
        raise BundleError(f"{path}: config.json sets retrieval, but the bundle has no index; restore it")
    if config.decoding.method == "consensus" and CONSENSUS not in manifest.files:
        raise BundleError(f"{path}: config.json sets method 'consensus', but the bundle has no {CONSENSUS}; restore it")
    try:
        least = writer_class(config.model).least_weights(config.model) + least_weights(config.model.backbone)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
    if least > manifest.files[WEIGHTS].size:  # a weight takes a byte or more
        raise BundleError(f"{path}: {CONFIG} describes a larger model than {WEIGHTS} holds; restore both")
    try:
        mbr_table = MbrTable.load(path / CONSENSUS) if CONSENSUS in manifest.files else None
        if mbr_table is not None and mbr_table.vectors.shape[1] != config.model.embedding_dim:
            raise ValueError(f"the vectors in {CONSENSUS} have another width than embedding_dim; restore the file")
        Constraints.of(config.decoding, tokenizer, mbr_table)  # computes its tables once
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
    try:
        state = {key: value.float() if value.is_floating_point() else value
                 for key, value in load_file(path / WEIGHTS).items()}  # fmt: skip
        if bad := [key for key, value in state.items() if not value.isfinite().all()]:
            raise ValueError(f"{bad[0]} has values that are not finite ({len(bad)} such tensors)")
        model = build_model(config.model, backbone=Backbone(config.model.backbone))
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: {WEIGHTS} does not fit {CONFIG}: {error}") from error
    calibration = _load_calibration(path, manifest, model.backbone.width)
    model.eval().requires_grad_(False).to(device)
    model.backbone.to(memory_format=torch.channels_last)
    return Bundle(
        path, config, tokenizer, model, manifest, file_sha256(path / MANIFEST), metrics, mbr_table, calibration
    )


def read_config(path: Path) -> BundleConfig:
    """``config.json`` of a bundle alone, not verified; raises BundleError where it cannot be read."""
    return _parsed(path / CONFIG, BundleConfig.model_validate_json)


def _parsed(file: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        problems = (
            ": ".join([*[".".join(map(str, one["loc"]))] * bool(one["loc"]), one["msg"].removeprefix("Value error, ")])
            for one in error.errors(include_url=False)
        )
        raise BundleError(f"{file.parent}: {file.name}: {'; '.join(problems)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file.parent}: {file.name}: {error}") from error


def _load_calibration(path: Path, manifest: Manifest, width: int) -> Calibration | None:
    """``calibration.json`` if the manifest lists it; ``width`` is D of the backbone's features."""
    if CALIBRATION not in manifest.files:
        return None
    remedy = "restore it, or fit it again: python -m training.calibrate"
    try:
        calibration = Calibration.model_validate_json((path / CALIBRATION).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{path}: {CALIBRATION} is not a valid calibration ({where}: {first['msg']}); {remedy}"
        ) from error
    if calibration.weights_sha256 != manifest.files[WEIGHTS].sha256:
        raise BundleError(f"{path}: {CALIBRATION} was fitted to the weights of another bundle; {remedy}")
    if calibration.features.width != width:
        raise BundleError(
            f"{path}: {CALIBRATION} is for features of width {calibration.features.width}, not {width}; {remedy}"
        )
    return calibration


def write_bundle(
    path: Path,
    *,
    config: BundleConfig,
    model: ReportModel,
    tokenizer: Tokenizer,
    index_dir: Path | None = None,
    mbr_table: MbrTable | None = None,
    calibration: Calibration | None = None,
    metrics: Mapping[str, Any] | None = None,
    weights_dtype: Literal["fp16", "fp32"] = "fp16",
    documents: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:
    """Write a bundle to a temporary directory and rename it to ``path``, manifest last.

    Args:
        path: the directory to create.
        config: goes to ``config.json``.
        model: its weights go to ``model.safetensors``; matrices in ``weights_dtype``, vectors
            (biases, normalisation statistics) in float32.
        tokenizer: goes to ``tokenizer.json``.
        index_dir: holds ``reports.faiss`` and ``cases.jsonl``; needed if ``config.retrieval`` is
            set.
        mbr_table: goes to ``consensus.safetensors``; needed if ``config.decoding.method`` is
            ``consensus``.
        calibration: goes to ``calibration.json``; it must have been fitted to these weights.
        metrics: goes to ``metrics.json``, numbers rounded to ``DIGITS`` significant digits.
        weights_dtype: of the matrices.
        documents: texts for readers, by file name; loading ignores them.
        replace: replace an existing bundle.

    Raises:
        BundleError: ``path`` exists and ``replace`` is not set, or the index or the table is
            missing.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise BundleError(f"{path} already exists; choose another --out or remove it")
    if config.retrieval is not None and index_dir is None:
        raise BundleError("config.retrieval is set, but no index was given")
    if config.decoding.method == "consensus" and mbr_table is None:
        raise BundleError("config.decoding.method is 'consensus', but no table was given")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    for stale in path.parent.glob(f".{path.name}.partial-*"):  # left by a process that was killed while writing
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        (partial / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (partial / TOKENIZER).write_text(tokenizer.to_json() + "\n", encoding="utf-8")
        (partial / METRICS).write_text(json.dumps(_rounded(metrics or {}), indent=1) + "\n", encoding="utf-8")
        for name, text in (documents or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        narrow = torch.float16 if weights_dtype == "fp16" else torch.float32
        state = {key: value.detach().cpu().to(narrow if value.is_floating_point() and value.dim() > 1 else value.dtype)
                 .contiguous().clone() for key, value in model.state_dict().items()}  # fmt: skip
        _save_weights(state, partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # safetensors makes it private; the service may run as another user
        if mbr_table is not None:
            mbr_table.save(partial / CONSENSUS)
        if calibration is not None:
            _save_calibration(calibration, partial)
        if index_dir is not None:
            (partial / INDEX_DIR).mkdir()
            for name in INDEX_FILES:  # no other file: an interrupted write may have left report texts
                shutil.copyfile(index_dir / name, partial / INDEX_DIR / name)
        write_manifest(partial)
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def add_calibration(bundle: Path, calibration: Calibration, out: Path) -> None:
    """Write a copy of a bundle with this calibration atomically; ``out`` may be the bundle itself.

    Args:
        bundle: the bundle that the calibration was fitted to; its files are verified first.
        calibration: replaces an existing one.
        out: ``bundle`` itself, or a path that does not exist.

    Raises:
        BundleError: the bundle is damaged, or ``out`` is another existing path.
    """
    in_place = out.resolve() == bundle.resolve()
    if out.exists() and not in_place:
        raise BundleError(f"{out} already exists; choose another --out or remove it")
    manifest = verify_bundle(bundle)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for name in manifest.files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, partial / name)
        _save_calibration(calibration, partial)
        write_manifest(partial, hydrated_from=manifest.hydrated_from)
        replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_calibration(calibration: Calibration, directory: Path) -> None:
    (directory / CALIBRATION).write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """JSON content with its numbers rounded to ``DIGITS`` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


def _save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(state, path)
    except SafetensorError as error:
        raise BundleError(f"{path} cannot be written ({error}); free disk space and start again") from error
