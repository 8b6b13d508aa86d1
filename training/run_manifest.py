"""``run.json`` of a work directory: the configuration and the data that a resumed run must share
with the first.

Without this check, checkpoints of one run would continue on the data of another without an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.files import file_sha256, write_atomic
from training.config import RunConfig
from training.data.studies import Source

log = logging.getLogger("training")

MANIFEST_FILE = "run.json"
_INPUTS = {
    "inputs.soft_scores": "the content of --soft-scores (or chexnet_scores.csv in --root)",
    "inputs.label_table": "the content of --reference-labels (or chexbert_labels.csv in --root)",
    "inputs.external_labels": "the content of --external-labels",
    "inputs.reports": "the ids or reports of its train and val studies",
}


def run_manifest(
    config: RunConfig, source: Source, precision: str, *, soft_scores: Path | None, label_table: Path | None,
    external_labels: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of ``run.json``: digests of files and reports, no text of them."""
    splits = {split: source.split(split) for split in ("train", "val")}
    digest = hashlib.sha256()  # of ids and reports in their order, which decides the batches
    for study in (study for studies in splits.values() for study in studies):
        digest.update(json.dumps([study.split, study.study_id, study.report]).encode())
    files = {"soft_scores": soft_scores, "label_table": label_table, "external_labels": external_labels}
    return {
        "config": config.model_dump(mode="json"),
        "dataset": source.name,
        "studies": {split: len(studies) for split, studies in splits.items()},
        "inputs": {
            **{name: file_sha256(path) if path else None for name, path in files.items()},
            "reports": digest.hexdigest(),
        },
        "precision": precision,
    }


def write_run_manifest(work: Path, content: dict[str, Any]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    write_atomic(work / MANIFEST_FILE, json.dumps(content, indent=2).encode())


def check_resume_compatible(work: Path, content: dict[str, Any], *, resume: bool) -> None:
    """Compare ``content`` of ``run_manifest`` with the run in ``work``, if there is one.

    A different precision is allowed with a warning, because the error message after a NaN recommends
    it. A manifest without digests (of an older version) is accepted.

    Raises:
        ValueError: there is a run without ``resume``, it differs, or its manifest cannot be read.
    """
    path = work / MANIFEST_FILE
    if not path.exists():
        return
    if not resume:
        raise ValueError(f"{work} holds a run already; add --resume to continue it, or remove it to start again")
    try:
        before = {"inputs": content["inputs"], "precision": content["precision"], **json.loads(path.read_text())}
        before["config"] = _current_names(before["config"])
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to continue the stages in {work} with the "
                         "options given here") from error  # fmt: skip
    if (began := before.pop("precision")) != content["precision"]:
        log.warning("this run began in %s and continues in %s: its weights will differ from those of an uninterrupted "
                    "run", began, content["precision"])  # fmt: skip
    now = {name: value for name, value in content.items() if name != "precision"}
    changed = [_INPUTS.get(name, f"{name} ({old} -> {new})") for name, old, new in differences(before, now)]
    if changed:
        raise ValueError(f"this run differs from the one in {work} in {', '.join(changed)}; resume it with the same "
                         "options and files, or choose another --work to start again")  # fmt: skip


def _current_names(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the field names of this version; as it is where it does not fit."""
    try:
        return RunConfig.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested dictionaries differ: (dotted name, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))]
    return [] if before == now else [(name, before, now)]
