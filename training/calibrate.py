"""Fit the checks of a bundle: the view of an image, its out-of-distribution score, the confidence of a sentence.

    python -m training.calibrate --bundle B --root DIR (--out B2 | --in-place) --work DIR [--external DIR]
        [--strange DIR] [--report DIR]

Uses training radiographs and validation studies, never the test split. Features and drafts are cached in ``--work``, so
an interrupted run continues. ``--external`` is a folder of frontal radiographs of another hospital, ``--strange`` a
folder of pictures that are no radiographs; both serve the metrics, not the fit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from model.bundle import CALIBRATION, METRICS, WEIGHTS, Bundle, add_calibration
from model.calibration.schema import Calibration, Floats
from model.command_line import CommandParser
from model.devices import choose_device
from model.types import Pixels, View
from training.calibration.fit_confidence import SentenceTable, fit_confidence, fit_support, support_metrics
from training.calibration.fit_findings import finding_metrics, fit_track_record
from training.calibration.fit_ood import LabelledFeatures, fit_images
from training.calibration.metrics import Group, confidence_metrics, ood_metrics, view_metrics
from training.calibration.ood_examples import ALTERED, TURNED, drawn, pictures, turned
from training.calibration.records import draft_records
from training.calibration.report import write_report
from training.cli import add_common_arguments, open_source, run_command
from training.data.pixel_cache import PixelCache, build_pixel_cache
from training.data.resumable_array import ResumableArray
from training.data.resumable_lines import ResumableLines
from training.data.selection import CHOSEN_ON, half_of, selection_record
from training.data.studies import Study
from training.evaluation.inference import open_bundle

log = logging.getLogger("training")

TURNED_STRIDE = 8  # every 8th training radiograph is altered for the fit
ALTERED_STRIDE = 4  # every 4th validation radiograph is altered for the metrics
DRAWINGS = 24  # of each kind
MAX_EXTERNAL = 500  # radiographs of another hospital
SEED = 1
_BATCH = 8  # larger batches exceed the cache of a CPU core and take longer
_SAVE_EVERY = 8


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes features with one bundle on one device; ``work`` caches them."""

    bundle: Bundle
    work: Path
    device: torch.device

    @property
    def size(self) -> int:
        """S, the image size of the bundle."""
        return self.bundle.config.preprocessing.image_size

    def pooled(self, images: Pixels, name: str) -> Floats:
        """Features (N, D) of images (N, S, S); ``name`` is that of their cache file and of the progress bar."""
        content = hashlib.sha256(np.ascontiguousarray(images).data)
        weights = self.bundle.manifest.files[WEIGHTS].sha256
        identity = hashlib.sha256(weights.encode() + content.digest()).hexdigest()
        backbone = self.bundle.model.backbone
        path = self.work / f"{name.replace(' ', '-')}.npy"
        store = ResumableArray(path, identity, np.float32, (len(images), backbone.width))

        @torch.inference_mode()
        def compute(rows: slice) -> Floats:
            part = torch.from_numpy(np.array(images[rows])).unsqueeze(1).to(self.device)
            values: Floats = backbone(part.float() / 255.0)[1].float().cpu().numpy()
            return values

        return np.array(store.fill(compute, batch=_BATCH, save_every=_SAVE_EVERY, description=name))

    def radiographs(self, studies: Sequence[Study], cache: PixelCache, name: str) -> LabelledFeatures:
        """The images of known view; raises ValueError where one of the two views is missing."""
        known = [(ref, study) for study in studies for ref in study.ordered() if ref.view is not None]
        frontal = np.array([ref.view is View.FRONTAL for ref, _ in known], bool)
        if frontal.all() or not frontal.any():
            raise ValueError(f"{name}: frontal and lateral radiographs of known view are needed; check the view table")
        pixels = cache.array[[cache.rows[ref.key] for ref, _ in known]]
        return LabelledFeatures(self.pooled(pixels, name), pixels, frontal, [study.uid for _, study in known])

    def strange(self, held: LabelledFeatures, folder: Path | None) -> dict[str, Group]:
        """Images that are no upright chest radiographs, by kind."""
        some = held.pixels[::ALTERED_STRIDE]
        kinds = {name: (f"val {name}", turned(some, how)) for name, how in TURNED.items()}
        kinds |= {name: (name, pixels) for name, pixels in drawn(self.size, DRAWINGS, SEED).items()}
        if folder is not None:
            kinds["pictures"] = ("pictures", pictures(folder, self.size))
        kinds |= {name: (f"val {name}", turned(some, how)) for name, how in ALTERED.items()}
        return {
            name: Group(self.pooled(pixels, cached), pixels, shown=name in TURNED)
            for name, (cached, pixels) in kinds.items()
        }

    def identity(self) -> str:
        """Digest of everything but the studies that drafts depend on."""
        files = self.bundle.manifest.files
        parts = [f"{name} {files[name].sha256}" for name in sorted(files) if name not in (CALIBRATION, METRICS)]
        parts.append(self.device.type)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def calibrate(arguments: argparse.Namespace) -> int:
    """Compute features and drafts, fit, write the bundle and the report."""
    out: Path = arguments.bundle if arguments.in_place else arguments.out
    if not arguments.in_place and out.exists():
        raise ValueError(f"--out {out} already exists; name a new folder, or use --in-place")  # before minutes of work
    source, device = open_source(arguments), choose_device(arguments.device)
    bundle, index = open_bundle(arguments.bundle, device)
    extractor = FeatureExtractor(bundle, arguments.work, device)
    val = half_of(source.split("val"), arguments.split_val)
    studies = {"train": source.split("train")[: arguments.limit], "val": val[: arguments.limit]}
    if not all(studies.values()):
        raise ValueError("training and validation studies are both needed; check --root, or --annotation")
    resample = bundle.config.preprocessing.resample
    both = [*studies["train"], *studies["val"]]
    with ResumableLines(arguments.work / "drafts.jsonl", extractor.identity(), resume=arguments.resume) as kept:
        cache = build_pixel_cache(source, both, extractor.size, arguments.work / "pixels", resample=resample)
        train_studies, val_studies = (cache.readable(studies[split]) for split in ("train", "val"))
        train = extractor.radiographs(train_studies, cache, "train")
        held = extractor.radiographs(val_studies, cache, "val")
        some = train.pixels[::TURNED_STRIDE]
        shown = {name: extractor.pooled(turned(some, how), f"train {name}") for name, how in TURNED.items()}
        records = draft_records(bundle, index, val_studies, cache, kept, device=device)
    rows = SentenceTable.of(records)
    if not len(rows.correct):
        raise ValueError("the model wrote no sentence for the validation studies; train it further")
    features, view, unusual = fit_images(train, held, shown, seed=SEED)
    weights = bundle.manifest.files[WEIGHTS].sha256
    counts: dict[str, JsonValue] = {
        "dataset": source.name, "train_images": len(train.study), "val_images": len(held.study),
        "val_studies": len(records), "val_sentences": len(rows.correct), "seed": SEED,
    }  # fmt: skip
    record = selection_record("its calibration", source.name, arguments.split_val, val_studies)
    confidence = confidence_metrics(rows, seed=SEED)
    calibration = Calibration(
        weights_sha256=weights, fitted_on={**counts, CHOSEN_ON: record}, features=features, view=view, unusual=unusual,
        confidence=fit_confidence(rows), support=fit_support(records),
        track_record=fit_track_record(records, confidence),
    )  # fmt: skip
    external = None
    if arguments.external is not None:
        pixels = pictures(arguments.external, extractor.size, most=MAX_EXTERNAL)
        external = Group(extractor.pooled(pixels, "external"), pixels)
    strange = extractor.strange(held, arguments.strange)
    ood, scores = ood_metrics(calibration, held, external, strange, seed=SEED)
    metrics: dict[str, Any] = {
        "schema_version": 1,
        "bundle": bundle.config.name,
        "weights_sha256": weights,
        "fitted_on": counts,
        "view": view_metrics(calibration, held),
        "unusual": ood,
        "confidence": confidence,
        "support": support_metrics(calibration.support, records),
        "findings": finding_metrics(records, seed=SEED),
    }
    add_calibration(arguments.bundle, calibration, out)
    log.info("wrote %s with %s", out, CALIBRATION)
    if arguments.report is not None:
        write_report(arguments.report, metrics, calibration, held, scores)
        log.info("wrote %s", arguments.report / "calibration.md")
    print(json.dumps({name: metrics[name] for name in ("view", "support", "findings")}, indent=1))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.calibrate``; returns the exit code."""
    parser = CommandParser(prog="python -m training.calibrate", description="Fit the checks of a bundle.")
    add_common_arguments(parser, bundle=True)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="a copy of the bundle with its calibration.json")
    target.add_argument("--in-place", action="store_true", help="add the calibration to the bundle")
    parser.add_argument("--external", type=Path, help="frontal radiographs of another hospital, for the metrics only")
    parser.add_argument("--strange", type=Path, help="pictures that are no radiographs, for the metrics only")
    parser.add_argument("--report", type=Path, help="folder for calibration.md, calibration.json and plots")
    parser.add_argument(
        "--work", type=Path, required=True, help="images, features and drafts, used again by a next run"
    )
    arguments = parser.parse_args(argv)
    interrupted = f"interrupted; the next run continues from {arguments.work}"
    return run_command(lambda: calibrate(arguments), interrupted=interrupted)


if __name__ == "__main__":
    raise SystemExit(main())
