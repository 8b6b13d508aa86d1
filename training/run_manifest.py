"""What a resumed run must have in common with the one it goes on with: configuration, studies, and what they hold.

``run.json`` in the work directory remembers it. Checkpoints of one run and data of another would train without a
complaint, and nobody could say what the weights were learnt from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.files import sha256_file, write_atomic
from training.config import RunConfig
from training.data.studies import Source, Study

log = logging.getLogger("training")

_INPUTS = {
    "inputs.soft_scores": "the content of --soft-scores (or chexnet_scores.csv in --root)",
    "inputs.label_table": "the content of --reference-labels (or chexbert_labels.csv in --root)",
    "inputs.external_labels": "the content of --external-labels",
    "inputs.reports": "the ids or reports of its train and val studies",
}


def identity(
    config: RunConfig, source: Source, precision: str, *, soft_scores: Path | None, label_table: Path | None,
    external_labels: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of ``run.json``: digests of files and reports, no text of them."""
    splits = {split: source.split(split) for split in ("train", "val")}
    return {
        "config": config.model_dump(mode="json"),
        "dataset": source.name,
        "studies": {split: len(studies) for split, studies in splits.items()},
        "inputs": {
            "soft_scores": sha256_file(soft_scores) if soft_scores else None,
            "label_table": sha256_file(label_table) if label_table else None,
            "external_labels": sha256_file(external_labels) if external_labels else None,
            "reports": _digest(study for studies in splits.values() for study in studies),
        },
        "precision": precision,
    }


def remember(work: Path, content: dict[str, Any], *, resume: bool) -> None:
    """Write what a run is, or compare it with the run that is resumed.

    Another precision is what a run that met a NaN is advised to take, so it is allowed, with a warning. A run of a
    version that kept no digests is taken as it is.

    Args:
        work: the run's work directory.
        content: as ``identity`` gives it.
        resume: whether a run may be there already.

    Raises:
        ValueError: there is one and it is not to be resumed, or it is another, or what it was cannot be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / "run.json"
    if not path.exists():
        write_atomic(path, json.dumps(content, indent=2).encode())
        return
    if not resume:
        raise ValueError(f"{work} holds a run already; add --resume to go on with it, or remove it to start anew")
    try:
        before = {"inputs": content["inputs"], "precision": content["precision"], **json.loads(path.read_text())}
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove it to go on with the stages in {work} as this command says"
        ) from error
    if (began := before.pop("precision")) != content["precision"]:
        log.warning("this run began in %s and goes on in %s: its weights will not be those of an unbroken run",
                    began, content["precision"])  # fmt: skip
    now = {name: value for name, value in content.items() if name != "precision"}
    changed = [_INPUTS.get(name, f"{name} ({old} -> {new})") for name, old, new in differences(before, now)]
    if changed:
        raise ValueError(
            f"this run differs from the one in {work} in {', '.join(changed)}; resume it as it was, with the same "
            "options and files, or choose another --work to start anew"
        )


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested dictionaries differ: (dotted name, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))]
    return [] if before == now else [(name, before, now)]


def _digest(studies: Iterable[Study]) -> str:
    """SHA-256 over ids and reports, in their order, which decides the batches."""
    digest = hashlib.sha256()
    for study in studies:
        digest.update(json.dumps([study.split, study.study_id, study.report]).encode())
    return digest.hexdigest()
