"""Finds and loads the bundle to serve: the configured one, or its hydrated copy (with report texts) if there is one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.bundle import INDEX_DIR, Bundle, load_bundle
from model.devices import resolve_devices
from model.drafter import Drafter
from model.files import file_sha256
from model.manifest import MANIFEST, BundleError, read_manifest
from model.processors import usable_processors
from model.types import Draft, Precision, StudyView, View
from retrieval_index.index import IndexFormatError, ReportIndex
from service.schemas.models import FindingRecordOut, ModelInfo
from service.settings import Settings

log = logging.getLogger(__name__)
_STARVED = 0.7  # processors per second of a draft; a draft that has a core to itself uses at least 1


class LoadError(RuntimeError):
    """No bundle can be served; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Pace:
    """Time of one draft: ``seconds`` by the clock, ``processor_s`` of processor time in all threads; 0 if unknown."""

    seconds: float = 0.0
    processor_s: float = 0.0

    @property
    def is_starved(self) -> bool:
        """Whether not even one thread had a processor all the time."""
        return self.processor_s < _STARVED * self.seconds

    def explain(self) -> str:
        """Why drafts are slow, for the log."""
        try:
            load = f"load average {os.getloadavg()[0]:.1f}"
        except (AttributeError, OSError):
            load = "load average unknown"
        return (
            f"drafts are slow here: a draft took {self.seconds:.1f} s, in which this process had "
            f"{self.processor_s / self.seconds:.1f} processors for its {torch.get_num_threads()} threads. Other "
            f"processes or a CPU quota take the rest ({load}, {usable_processors()} usable cores)"
        )


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle with one drafter per device; all share one index, which is None without retrieval."""

    drafters: tuple[Drafter, ...]
    index: ReportIndex | None

    @property
    def cases(self) -> int | None:
        """Number of reference cases; None without retrieval."""
        return None if self.index is None else len(self.index)

    @property
    def texts(self) -> bool:
        """Whether at least one case has its report text."""
        return self.index is not None and self.index.has_texts

    @property
    def drafter(self) -> Drafter:
        """The drafter of the first device."""
        return self.drafters[0]

    @property
    def bundle(self) -> Bundle:
        """The bundle on the first device."""
        return self.drafter.bundle

    @property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``cuda:N``; several devices are joined by commas."""
        return ",".join(str(drafter.device) for drafter in self.drafters)

    def model_info(self) -> ModelInfo:
        """Describe the bundle in responses."""
        bundle, config = self.bundle, self.bundle.config
        record = None if bundle.calibration is None else bundle.calibration.track_record
        return ModelInfo(
            name=config.name,
            digest=bundle.digest,
            backbone=config.model.backbone,
            image_size=config.preprocessing.image_size,
            retrieval_k=None if config.retrieval is None else config.retrieval.k,
            beam_size=1 if config.decoding.method == "greedy" else config.decoding.beam_size,
            hydrated=bundle.manifest.hydrated_from is not None,
            trained_on=config.trained_on,
            licence=config.licence,
            findings=None
            if record is None
            else {
                name: FindingRecordOut(studies=one.studies, called=one.called, right=one.right)
                for name, one in record.findings.items()
            },
        )

    def warm_up(self) -> Pace:
        """Precompute inference tables and draft blank images, so that the first request is not slower than others.

        Returns:
            Pace of the last draft.

        Raises:
            LoadError: the drafts hold numbers that are not finite.
        """
        pace = Pace()
        for drafter in self.drafters:
            drafter.bundle.model.precompute_inference_tables()
            blank = np.zeros((drafter.image_size, drafter.image_size), np.uint8)  # (S, S)
            views = [StudyView(blank, view) for view in View]
            try:
                drafts = drafter.draft([views[:1]])
                started, used = time.monotonic(), time.process_time()
                drafts += drafter.draft([views])
                pace = Pace(time.monotonic() - started, time.process_time() - used)
            except ValueError as error:  # a query of the index that is not finite
                raise self._cannot_draft(str(error)) from error
            if not all(map(_is_finite, drafts)):
                raise self._cannot_draft("its numbers are not finite")
        return pace

    def _cannot_draft(self, reason: str) -> LoadError:
        return LoadError(f"the bundle {self.bundle.path} cannot draft a blank image: {reason}; restore the bundle")


def _is_finite(draft: Draft) -> bool:
    numbers = [sentence.confidence for sentence in draft.sentences]
    numbers += [number for check in draft.image_checks for number in (check.frontal, check.unusual)]
    numbers += (draft.calibrated_findings or {}).values()
    return bool(np.isfinite(numbers).all())


def load(settings: Settings) -> LoadedBundle:
    """Load the configured bundle on the configured devices; raises as ``open_bundle``."""
    try:
        devices = resolve_devices(settings.device, option="REPORT_DEVICE=")
    except ValueError as error:
        raise LoadError(str(error)) from error
    return open_bundle(settings.bundle, devices, settings.precision, prefer_hydrated=settings.prefer_hydrated)


def open_bundle(
    path: Path, devices: Sequence[torch.device], precision: Precision = "fp32", *, prefer_hydrated: bool = True
) -> LoadedBundle:
    """Load a bundle, or with ``prefer_hydrated`` its hydrated copy if there is a valid one.

    Raises:
        LoadError: the bundle is missing, damaged or of an unsupported version.
    """
    hydrated = find_hydrated(path) if prefer_hydrated else None
    if hydrated is not None:
        try:
            loaded = _load(hydrated, devices, precision)
        except LoadError as error:
            log.warning("the hydrated bundle is ignored: %s", error)
        else:
            log.info("serving the hydrated bundle %s", hydrated)
            return loaded
    return _load(path, devices, precision)


def find_hydrated(plain: Path) -> Path | None:
    """Return the hydrated copy that was made from exactly this bundle, or None. Stale copies are logged and ignored."""
    try:
        if read_manifest(plain).hydrated_from is not None:
            return None  # this is a hydrated copy itself
        digest = file_sha256(plain / MANIFEST)
    except BundleError:
        return None  # load() reports the error
    name = f"{plain.resolve().name}-hydrated"
    parent = plain.resolve().parent
    for path in (Path(".bundles") / name, parent.parent / ".bundles" / name, parent / name):
        if not (path / MANIFEST).is_file():
            continue
        try:
            made_from = read_manifest(path).hydrated_from
        except BundleError as error:
            log.warning("the hydrated bundle is ignored: %s", error)
            continue
        if made_from == digest:
            return path
        log.warning(
            "the hydrated bundle %s is stale and ignored: it was made from another version of %s. "
            "Run python -m retrieval_index.hydrate --bundle %s --reports … again.",
            path, plain, plain,
        )  # fmt: skip
    return None


def _load(path: Path, devices: Sequence[torch.device], precision: Precision) -> LoadedBundle:
    try:
        drafters = []
        index = None
        for device in devices:  # one copy of the weights per device, one index for all
            bundle = load_bundle(path, device=device)
            if bundle.config.retrieval is not None and index is None:
                index = ReportIndex.load(path / INDEX_DIR, expected_sha256=bundle.index_sha256())
            drafters.append(Drafter(bundle, index, device=device, precision=precision))
    except (BundleError, IndexFormatError, OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"the bundle {path} cannot be served: {error}") from error
    return LoadedBundle(tuple(drafters), index)
