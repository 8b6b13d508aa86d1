"""The external column: images of another source with known findings, or with reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.bundle import Bundle
from model.config import Count, Frozen
from model.files import file_sha256
from model.protocols import CaseIndex
from training.ablation.table import draw_predictions
from training.data.external import read_external
from training.data.r2gen import open_r2gen
from training.data.studies import Source, Study
from training.evaluate import evaluate
from training.evaluation.external import score_external
from training.evaluation.plan import EvaluationPlan, InferenceOptions, Outputs, SplitName
from training.scoring.bootstrap import Resampled
from training.scoring.metrics import meteor_available


class External(Frozen):
    """An image folder of another source, with a table of findings (``labels``) or an annotation in the R2Gen layout.

    ``limit``: images, or studies of the annotation; None takes all.
    """

    images: Path
    labels: Path | None = None
    annotation: Path | None = None
    limit: Count | None = None

    def identity(self) -> dict[str, Any]:
        """What makes scores on it comparable; paths do not matter."""
        table = self.labels or self.annotation
        assert table is not None
        kind = "labels" if self.labels else "annotation"
        return {"kind": kind, "name": table.name, "digest": file_sha256(table), "limit": self.limit}


def check_external(external: External) -> str:
    """Open the set once, before anything is trained, and describe it; raises ValueError with the option and remedy."""
    if (external.labels is None) == (external.annotation is None):
        raise ValueError("--external-images needs --external-labels FILE or --external-annotation FILE, one of them")
    if external.labels is not None:
        found = read_external(external.labels, external.images, limit=external.limit)
        mapped = ", ".join(f"{name} → {finding}" for name, finding in found.mapped.items())
        left = f"; no counterpart: {', '.join(found.unmapped)}" if found.unmapped else ""
        return f"external: {len(found.studies)} images of {external.labels.name}; {mapped}{left}"
    source, split = _annotated(external)
    return f"external: the {split} split of {external.annotation}, {len(source.split(split))} studies"


def score_outside(
    external: External, bundle: Bundle, index: CaseIndex | None, train: Sequence[Study], *, device: torch.device,
    work_dir: Path, predictions: Path,
) -> tuple[dict[str, Any], Resampled]:  # fmt: skip
    """Score a bundle on the external images; the drafts for an annotation are written to ``predictions``.

    ``train`` are the training studies of the ablation. Their vocabulary cleans the references of an annotation, so that
    it is the same for all rows.

    Returns:
        The content of ``external.json`` (``n``, ``figures`` and more), and the metrics on each draw.
    """
    options = InferenceOptions(device=device)
    if external.labels is not None:
        found = read_external(external.labels, external.images, limit=external.limit)
        return score_external(bundle, index, found, work_dir=work_dir, options=options)
    source, split = _annotated(external)
    source = replace(source, studies=(*source.split(split), *train))
    plan = EvaluationPlan(split, limit=external.limit, baselines=False, meteor=meteor_available(), draws=0)
    result = evaluate(bundle, index, source, plan, Outputs(work_dir, predictions=predictions), options)
    content = {"n": result["n"], "figures": result["system"], "split": split, "notes": result["notes"]}
    return content, draw_predictions(predictions)


def _annotated(external: External) -> tuple[Source, SplitName]:
    """The data set of an annotation, and its split that is scored: test, or val where it has no test."""
    if external.annotation is None or not external.annotation.is_file():
        raise ValueError(f"--external-annotation {external.annotation}: no such file")
    source = open_r2gen(external.annotation, external.images)
    for split in ("test", "val"):
        if source.split(split):
            return source, split
    raise ValueError(f"--external-annotation {external.annotation} has neither a test nor a val study")
