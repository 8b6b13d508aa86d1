"""From the studies of a split to their drafts: which studies, which of their images, and the drafting itself."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from model.bundle import INDEX_DIR, Bundle, load_bundle
from model.drafter import Drafter
from model.registry import DECODER_ALIASES, DECODERS
from model.types import Draft, StudyView, View
from retrieval_index.index import ReportIndex
from training.data.pixel_cache import PixelCache
from training.data.resumable_lines import ResumableLines
from training.data.selection import CHOSEN_ON, UNRECORDED, Half, half_of
from training.data.studies import SPLITS, ImageRef, Source, Study
from training.evaluation.plan import InferenceOptions, SplitName, Views
from training.scoring.protocol import full_reference

_DRAFT = TypeAdapter(Draft)


def open_bundle(path: Path, device: torch.device) -> tuple[Bundle, ReportIndex | None]:
    """A bundle on a device, and its reference cases; None for a bundle without retrieval."""
    bundle = load_bundle(path, device=device)
    if bundle.config.retrieval is None:
        return bundle, None
    return bundle, ReportIndex.load(bundle.path / INDEX_DIR, expected_sha256=bundle.index_sha256())


def method_names() -> tuple[str, ...]:
    """The values of ``--method``."""
    return (*DECODERS.names(), *DECODER_ALIASES)


def with_method(bundle: Bundle, method: str, beam_size: int | None = None) -> Bundle:
    """The bundle with another decoding method, ``mbr`` for ``consensus``; all other settings stay.

    Raises:
        ValueError: the bundle lacks what the method needs, or ``beam_size`` is given for greedy decoding.
    """
    method, name = DECODER_ALIASES.get(method, method), bundle.config.name
    if method in ("rerank", "consensus") and bundle.config.retrieval is None:
        raise ValueError(f"--method {method} needs reference cases, and {name} has none; use beam or greedy")
    if method == "consensus" and bundle.mbr_table is None:
        raise ValueError(f"--method {method} needs a table of training reports, and {name} has none; "
                         "train with decoding.method consensus, or use rerank, beam or greedy")  # fmt: skip
    if method == "greedy" and (beam_size or 1) > 1:
        raise ValueError(f"--method greedy has one beam; leave --beam-size {beam_size} out, or use --method beam")
    decoding = bundle.config.decoding.model_copy(update={"method": method})
    return replace(bundle, config=bundle.config.model_copy(update={"decoding": decoding}))


def selection_records(bundle: Bundle) -> list[Mapping[str, Any]]:
    """What was chosen for a bundle on val: its weights and decoding, and its calibration."""
    weights: list[Mapping[str, Any]] = bundle.metrics.get(CHOSEN_ON, [UNRECORDED])
    if bundle.calibration is None:
        return weights
    fitted: Any = bundle.calibration.fitted_on.get(CHOSEN_ON) or {**UNRECORDED, "what": "its calibration"}
    return [*weights, fitted]


def wanted_studies(
    source: Source, split: SplitName, limit: int | None, half: Half | None = None
) -> tuple[list[Study], dict[str, str]]:
    """The first ``limit`` studies of a split, or of a half of val, that can be scored; the reason for each other one.

    Raises:
        ValueError: the split is empty; the message gives the sizes of all splits. Or ``half`` is of another split.
    """
    if half is not None and split != "val":
        raise ValueError(f"--split-val {half} is a half of val, and --split is {split}; leave one of them out")
    found = half_of(source.split(split), half)
    if not found:
        counts = ", ".join(f"{name} {len(source.split(name))}" for name in SPLITS)
        raise ValueError(
            f"the {split} split of this {source.name} data set has no study (it holds {counts}); choose another --split"
            " or check --root, or --annotation"
        )
    chosen = found if limit is None else found[: max(limit, 1)]
    skipped = {study.study_id: "its report has no words" for study in chosen if not full_reference(study.reference)}
    return [study for study in chosen if study.study_id not in skipped], skipped


def with_images(
    wanted: Sequence[Study], cache: PixelCache, views: Views, skipped: dict[str, str], *, in_file_order: bool = False
) -> tuple[list[Study], list[str]]:
    """Studies with their readable images of ``views``, in the model's order, every view decided; and notes.

    An image of unknown view counts as frontal in first position and as lateral after another image, as in training.
    ``skipped`` receives the studies that are left out, with the reason. ``in_file_order`` keeps the order of the data
    set's files, as published R2Gen code does; else frontals come first.

    Raises:
        ValueError: no study is left.
    """
    studies: list[Study] = []
    unknown = 0
    for study in wanted:
        usable = cache.usable(study)
        if usable is None:
            skipped[study.study_id] = "none of its images can be read"
            continue
        ordered = usable.images if in_file_order else usable.ordered()
        unknown += any(ref.view is None for ref in ordered)
        images = tuple(
            ImageRef(ref.key, ref.view or (View.FRONTAL if position == 0 else View.LATERAL))
            for position, ref in enumerate(ordered)
        )
        images = tuple(ref for ref in images if views == "both" or ref.view == View(views))
        if images:
            studies.append(replace(study, images=images))
        else:
            skipped[study.study_id] = f"it has no {views} image"
    if not studies:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in Counter(skipped.values()).items())
        raise ValueError(f"no study is left to score ({reasons}); check --images or --root, and --views {views}")
    note = "studies have an image of unknown view: the first counts as frontal, those behind it as lateral"
    return studies, [f"{unknown} {note}"] if unknown else []


def swap_images(studies: Sequence[Study], seed: int) -> list[Study]:
    """Each study with the images of another: one cycle through all studies (two or more), drawn by ``seed``."""
    if len(studies) < 2:
        raise ValueError("images can be exchanged between two studies or more; this split has one that can be read")
    cycle = np.random.default_rng(seed).permutation(len(studies))
    given = dict(zip(cycle.tolist(), np.roll(cycle, -1).tolist(), strict=True))
    return [replace(study, images=studies[given[row]].images) for row, study in enumerate(studies)]


def kept_drafts(drafter: Drafter, folder: Path, options: InferenceOptions) -> ResumableLines:
    """The file of the drafts in ``folder``: ``write`` appends to it, and takes from it what is there already."""
    decoding = drafter.bundle.config.decoding.model_dump(mode="json")  # may differ from that of the bundle's file
    settings = (drafter.bundle.digest, drafter.device.type, drafter.precision, asdict(options.draft), decoding)
    identity = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return ResumableLines(folder / f"drafts-{identity[:16]}.jsonl", identity, resume=options.resume)


@dataclass(frozen=True)
class DraftWriter:
    """Drafts studies in batches, with a progress bar; ``cache`` holds their images, ``kept`` finished drafts."""

    drafter: Drafter
    cache: PixelCache
    options: InferenceOptions
    kept: ResumableLines

    def write(
        self, studies: Sequence[Study], *, counterfactual_patches: Sequence[Study] | None = None,
        counterfactual_retrieval: Sequence[Study] | None = None, what: str = "draft",
    ) -> list[Draft]:  # fmt: skip
        """A draft for each study; the counterfactuals are those of ``Drafter.draft``, ``what`` names the bar."""

        def inputs(rows: slice) -> list[list[list[StudyView]]]:
            chosen = (studies, counterfactual_patches or (), counterfactual_retrieval or ())
            return [[study_views(study, self.cache) for study in part[rows]] for part in chosen]

        def draft(rows: slice) -> list[Any]:
            views, patches, cases = inputs(rows)
            drafts = self.drafter.draft(views, self.options.draft, counterfactual_patches=patches or None,
                                        counterfactual_retrieval=cases or None)  # fmt: skip
            return [_DRAFT.dump_python(one) for one in drafts]

        drafts = self.kept.fill(len(studies), lambda rows: images_digest(inputs(rows)), draft, description=what,
                                batch=self.options.batch_size, progress=self.options.progress)  # fmt: skip
        return [_DRAFT.validate_python(one) for one in drafts]


def images_digest(parts: Sequence[Sequence[Sequence[StudyView]]]) -> str:
    """SHA-256 of the pixels and views of studies in several roles."""
    views = [[[image.view for image in study] for study in studies] for studies in parts]
    digest = hashlib.sha256(json.dumps(views).encode())
    for image in (image for studies in parts for study in studies for image in study):
        digest.update(np.ascontiguousarray(image.pixels).data)
    return digest.hexdigest()


def study_views(study: Study, cache: PixelCache) -> list[StudyView]:
    """A study's images as the drafter takes them; an image of unknown view counts as frontal."""
    return [StudyView(np.array(cache.array[cache.rows[ref.key]]), ref.view or View.FRONTAL) for ref in study.images]
