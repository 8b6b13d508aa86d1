"""Which bundle is served, and how it is loaded. A copy hydrated from the very same bundle goes first."""

from __future__ import annotations

import logging
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
from model.types import Precision, StudyView, View
from retrieval_index.index import IndexFormatError, ReportIndex
from service.schemas.models import ModelInfo
from service.settings import Settings

log = logging.getLogger(__name__)


class LoadError(RuntimeError):
    """No bundle can be served; the message says why and what to do."""


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle on its devices, ready to draft, one drafter each; all read one index, None without retrieval."""

    drafters: tuple[Drafter, ...]
    index: ReportIndex | None

    @property
    def cases(self) -> int | None:
        """Reference cases by now."""
        return None if self.index is None else len(self.index)

    @property
    def texts(self) -> bool:
        """Whether any of them holds its text."""
        return self.index is not None and self.index.has_texts

    @property
    def drafter(self) -> Drafter:
        """The first device's."""
        return self.drafters[0]

    @property
    def bundle(self) -> Bundle:
        """What is served."""
        return self.drafter.bundle

    @property
    def device(self) -> str:
        """Where the model runs: ``cpu``, ``cuda`` or ``cuda:N``; several joined by commas."""
        return ",".join(str(drafter.device) for drafter in self.drafters)

    def model_info(self) -> ModelInfo:
        """Describe the bundle in responses."""
        bundle, config = self.bundle, self.bundle.config
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
        )

    def warm_up(self) -> None:
        """Work out what no image changes, and draft on blank ones, so that no patient waits for lazy set-up."""
        for drafter in self.drafters:
            drafter.bundle.model.precompute_inference_tables()
            blank = np.zeros((drafter.image_size, drafter.image_size), np.uint8)  # (S, S)
            views = [StudyView(blank, view) for view in View]
            drafter.draft([views[:1]])
            drafter.draft([views])


def load(settings: Settings) -> LoadedBundle:
    """Load the bundle that the settings name, or its hydrated copy where there is a valid one.

    Raises:
        LoadError: the device is not there, or the bundle is missing, damaged or of another version.
    """
    try:
        devices = resolve_devices(settings.device, option="REPORT_DEVICE=")
    except ValueError as error:
        raise LoadError(str(error)) from error
    hydrated = find_hydrated(settings.bundle) if settings.prefer_hydrated else None
    if hydrated is not None:
        try:
            loaded = _load(hydrated, devices, settings.precision)
        except LoadError as error:
            log.warning("the hydrated bundle is ignored: %s", error)
        else:
            log.info("serving the hydrated bundle %s", hydrated)
            return loaded
    return _load(settings.bundle, devices, settings.precision)


def find_hydrated(plain: Path) -> Path | None:
    """The hydrated copy made from exactly this bundle, or None. Stale copies are logged and ignored."""
    try:
        if read_manifest(plain).hydrated_from is not None:
            return None  # it is a hydrated copy itself
        digest = file_sha256(plain / MANIFEST)
    except BundleError:
        return None  # loading the plain bundle will say what is wrong with it
    name = f"{plain.resolve().name}-hydrated"
    beside = plain.resolve().parent
    places = (Path(".bundles") / name, beside.parent / ".bundles" / name, beside / name)
    for place in places:
        if not (place / MANIFEST).is_file():
            continue
        try:
            made_from = read_manifest(place).hydrated_from
        except BundleError as error:
            log.warning("the hydrated bundle is ignored: %s", error)
            continue
        if made_from == digest:
            return place
        log.warning(
            "the hydrated bundle %s is stale and ignored: it was made from another version of %s. "
            "Run python -m retrieval_index.hydrate --bundle %s --reports … again.",
            place, plain, plain,
        )  # fmt: skip
    return None


def _load(path: Path, devices: Sequence[torch.device], precision: Precision) -> LoadedBundle:
    try:
        drafters = []
        index = None
        for device in devices:  # each its own copy of the weights; the index is read by all
            bundle = load_bundle(path, device=device)
            if bundle.config.retrieval is not None and index is None:
                index = ReportIndex.load(path / INDEX_DIR, expected_sha256=bundle.index_sha256())
            drafters.append(Drafter(bundle, index, device=device, precision=precision))
    except (BundleError, IndexFormatError, OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"the bundle {path} cannot be served: {error}") from error
    return LoadedBundle(tuple(drafters), index)
