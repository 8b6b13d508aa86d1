"""Rows beside the system's: the same bundle on exchanged evidence, or on one view alone.

A counterfactual takes away what a draft could have been about: the images of each study are those of another (so are
then its reference cases), or only the reference cases are, or only the patch tokens. What is left of the figures was
written without looking at what was exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from model.drafter import Draft
from model.views import View
from training.data.studies import Study
from training.evaluation import inference as drafting
from training.evaluation.scoring import ReferenceSet
from training.scoring.bootstrap import Bootstrap
from training.scoring.keyword_f1 import keyword_f1

Exchange = Literal["images", "cases", "patches"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)


class Write(Protocol):
    """``drafting.write_drafts`` with bundle, options and images filled in."""

    def __call__(
        self, studies: Sequence[Study], *, what: str = ..., counterfactual_patches: Sequence[Study] | None = ...,
        counterfactual_retrieval: Sequence[Study] | None = ...,
    ) -> list[Draft]: ...  # fmt: skip


@dataclass(frozen=True)
class CounterfactualRow:
    """Drafts for some of the system's studies: ``places`` (n,) are their rows among these, ``findings`` the texts."""

    places: Sequence[int]
    findings: Sequence[str]


def make_counterfactual_rows(
    write: Write, studies: Sequence[Study], exchanges: Sequence[Exchange], *, single_views: bool, retrieval: bool,
    seed: int,
) -> tuple[dict[str, CounterfactualRow], dict[str, str]]:  # fmt: skip
    """The rows asked for by name, and for each that cannot be made the reason.

    Args:
        write: writes drafts.
        studies: those that the system wrote about, every view decided.
        exchanges: which counterfactuals.
        single_views: frontal only and lateral only.
        retrieval: whether the bundle has reference cases.
        seed: decides whose images a study gets.
    """
    rows: dict[str, CounterfactualRow] = {}
    reasons: dict[str, str] = {}
    for exchange in exchanges:
        name = f"system_{exchange}_exchanged"
        if len(studies) < 2:
            reasons[name] = "it takes two studies to exchange anything"
        elif exchange != "images" and not retrieval:
            reasons[name] = "this bundle has no reference cases, so there is nothing to tell apart from its images"
        else:
            rows[name] = exchanged_row(write, studies, exchange, seed)
    for view in View if single_views else ():
        name = f"system_{view.value}_only"
        row = single_view_row(write, studies, view)
        if row.places:
            rows[name] = row
        else:
            reasons[name] = f"no study has a {view.value} image"
    return rows, reasons


def exchanged_row(write: Write, studies: Sequence[Study], exchange: Exchange, seed: int) -> CounterfactualRow:
    """Drafts on the images, only the reference cases, or only the patch tokens of another study.

    Everything else stays the study's own: its embedding, and with it the likeness that reranking goes by.

    Raises:
        ValueError: there are fewer than two studies.
    """
    others = drafting.exchange_images(studies, seed)
    what = f"{exchange} exchanged"
    if exchange == "images":
        drafts = write(others, what=what)
    elif exchange == "cases":
        drafts = write(studies, what=what, counterfactual_retrieval=others)
    else:
        drafts = write(studies, what=what, counterfactual_patches=others)
    return CounterfactualRow(range(len(studies)), [draft.findings for draft in drafts])


def single_view_row(write: Write, studies: Sequence[Study], view: View) -> CounterfactualRow:
    """Drafts from the images of one view, for the studies that have it."""
    alone = [replace(study, images=tuple(ref for ref in study.images if ref.view == view)) for study in studies]
    places = [place for place, study in enumerate(alone) if study.images]
    drafts = write([alone[place] for place in places], what=f"{view.value} only")
    return CounterfactualRow(places, [draft.findings for draft in drafts])


def score_counterfactual_rows(
    result: dict[str, Any],
    side: Mapping[str, CounterfactualRow],
    board: ReferenceSet,
    findings: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> None:
    """Put the figures of rows into a metrics file's content: figures, intervals, differences, key words, counts.

    Args:
        result: holds the system's figures, and gets those of the rows by name.
        side: by name, ``system_images_exchanged``.
        board: of the system.
        findings: the system's drafts; a difference is that to the drafts of the same studies.
        draws: of studies.
        seed: of the draws.
    """
    result["n_beside"] = {name: len(row.places) for name, row in side.items()}
    for name, row in side.items():
        whole = len(row.places) == len(findings)
        own = board if whole else board.subset(row.places)
        result[name], result[full_name(name)] = own.drafts(row.findings)
        comparable, full = own.draft_pairs(row.findings)
        for key, negated in (("forte", True), ("forte_without_negated", False)):
            result[key][name] = keyword_f1(full, negated=negated)
        if draws:
            bootstrap = Bootstrap(len(row.places), draws=draws, seed=seed)
            resampled = bootstrap.of(comparable)
            same_studies = bootstrap.of(own.draft_pairs([findings[place] for place in row.places])[0])
            result["confidence_95"][name] = resampled.intervals()
            result["system_minus"][name] = same_studies.minus(resampled)


def full_name(name: str) -> str:
    """``system_full_images_exchanged`` of ``system_images_exchanged``."""
    return name.replace("system_", "system_full_", 1)
