"""Data sets as the training stages see them: studies, images by key, a store of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from model.types import View
from retrieval_index.cases import check_case_id
from training.data.image_store import ImageStore
from training.protocols import IU_XRAY, Protocol

T = TypeVar("T")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class ImageRef:
    """One radiograph of a study."""

    key: str  # of `Source.images`: an image id (openi), or a path below the image folder (r2gen)
    view: View | None  # None: in no table; a DICOM header may give it while decoding


@dataclass(frozen=True)
class Study:
    """One examination: a report and its radiographs."""

    study_id: str  # the annotation's id, "CXR2384_IM-0942"
    uid: str  # "CXR2384", the id in the tables of split and labels
    split: Split | None  # None: not in the R2Gen set, for pretraining only
    report: str  # FINDINGS on one line; empty only outside the R2Gen set
    images: tuple[ImageRef, ...]  # in the file's order, which the annotation keeps
    mesh: tuple[str, ...] = ()  # major MeSH headings, where the source has them
    target: str | None = None  # what a model learns in place of the report: its headings
    rewritten: str | None = None  # the report as a model learns it, where that differs
    report_id: str | None = None  # of MIMIC-CXR: its study_id; several entries, one an image, may share a report
    keeps_order: bool = False  # the model reads the images in the file's order, as published R2Gen code
    patient: str | None = None  # where the data set states it; the studies of one stay together

    @property
    def case_id(self) -> str:
        """The id of its report in the index."""
        return self.report_id or self.study_id

    @property
    def group(self) -> str:
        """Studies of one group are never on both sides of a division: its patient, else its report, else itself."""
        return self.patient or self.report_id or self.uid

    @property
    def reference(self) -> str:
        """The text that drafts are compared with."""
        return self.report if self.target is None else self.target

    @property
    def training_text(self) -> str:
        """The text that the model learns to write."""
        return self.reference if self.rewritten is None else self.rewritten

    def ordered(self) -> tuple[ImageRef, ...]:
        """The images as the model reads them: frontals, then unknown views, then laterals; each in
        the file's order."""
        if self.keeps_order:
            return self.images
        rank = {View.FRONTAL: 0, None: 1, View.LATERAL: 2}
        return tuple(sorted(self.images, key=lambda image: rank[image.view]))


@dataclass(frozen=True)
class DatasetOptions:
    """The options of the commands that a data set is opened with."""

    root: Path | None = None
    annotation: Path | None = None
    images: Path | None = None
    download: bool = False
    protocol: Protocol = IU_XRAY


@dataclass(frozen=True)
class Source:
    """A data set: the R2Gen studies, more studies for pretraining, and the store of their images."""

    name: str
    studies: tuple[Study, ...]
    extra: tuple[Study, ...]  # split None; never a study that a split table names
    images: ImageStore
    notes: tuple[str, ...]  # counts, and everything that was skipped, by name
    protocol: Protocol = IU_XRAY

    def split(self, name: Split) -> tuple[Study, ...]:
        """The R2Gen studies of one split, in the source's order."""
        return tuple(study for study in self.studies if study.split == name)


def one_study_a_report(train: Sequence[Study]) -> list[Study]:
    """The first study of each case id: the studies that become cases, so that no report is two cases."""
    return list({study.case_id: study for study in reversed(train)}.values())[::-1]


def check_cases(train: Sequence[Study]) -> None:
    """Raise ValueError unless the studies can be cases of an index: valid ids, one report for each."""
    reports: dict[str, Study] = {}
    for study in train:
        check_case_id(study.case_id)
        other = reports.setdefault(study.case_id, study)
        if other.report != study.report:
            raise ValueError(f"entries {other.study_id} and {study.study_id} have study_id {study.case_id}, but two "
                             "reports; correct the annotation, or leave study_id out")  # fmt: skip


def view_note(studies: tuple[Study, ...]) -> str:
    """One line about the views: how many studies are reordered, and which keep the file's order."""
    reordered = sum(study.ordered() != study.images for study in studies)
    unknown = sum(any(image.view is None for image in study.images) for study in studies)
    known = [{image.view for image in study.images} for study in studies if len(study.images) > 1]
    same = sum(len(views) == 1 and None not in views for views in known)
    return (f"views: {reordered} of {len(studies)} studies reordered to frontal first; {same} show one view only; "
            f"{unknown} have an image of unknown view (file order, or its DICOM header)")  # fmt: skip


def evenly(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most so many items, evenly spaced; None takes all."""
    if most is None or most >= len(items):
        return items
    return [items[number * len(items) // most] for number in range(most)]


def named(names: Sequence[str], what: str, limit: int = 60) -> str:
    """`3 missing: a, b, c`, cut at `limit` names."""
    listed = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"{len(names)} {what}" + (f": {listed}" if names else "")
