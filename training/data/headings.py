"""MeSH headings as the text that a model learns: each finding with its context words (Shin et al. 2016).

"Opacity/lung/base/left/mild" becomes the sentence "opacity lung base left mild.", a normal study "normal.". Shin et al.
2016, CVPR, "Learning to Read Chest X-Rays: Recurrent Neural Cascade Model for Automated Image Annotation", learn from
these annotations of the archive and score by BLEU against them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from model.config import BundleConfig
from model.text.tokenizer import END_OF_SENTENCE, clean_report
from training.data.studies import Source, Study
from training.data.targets import NO_INDEXING

TARGET_TEXT = "target_text"  # of ``trained_on`` in a bundle that does not write reports


def with_headings(source: Source) -> Source:
    """The studies that have headings, with these as ``Study.target``: one sentence each.

    The headings whose first part most training studies have come first, then the more frequent ones, then by name.

    Raises:
        ValueError: no study has a heading.
    """
    studies = [(study, found) for study in source.studies if (found := _headings(study))]
    if not studies:
        raise ValueError(f"target_text=headings needs MeSH headings, and the data set {source.name} has none; use "
                         "target_text=report, or the Open-i archive (--dataset openi)")  # fmt: skip
    train = [found for study, found in studies if study.split == "train"]
    whole = Counter(one for found in train for one in found)
    first = Counter(part for found in train for part in {_first(one) for one in found})

    def text(found: set[str]) -> str:
        ordered = sorted(found, key=lambda one: (-first[_first(one)], -whole[one], one))
        return " ".join(clean_report(one).removesuffix(f" {END_OF_SENTENCE}") + END_OF_SENTENCE for one in ordered)

    note = f"texts are MeSH headings; without headings: {len(source.studies) - len(studies)} studies left out"
    return replace(source, studies=tuple(replace(study, target=text(found)) for study, found in studies),
                   notes=(*source.notes, note))  # fmt: skip


def with_target_text(source: Source, bundle: BundleConfig) -> Source:
    """The studies with texts of the kind that a bundle writes, reports or headings; raises as ``with_headings``."""
    return with_headings(source) if bundle.trained_on.get(TARGET_TEXT) == "headings" else source


def _headings(study: Study) -> set[str]:
    return {heading.strip().lower() for heading in study.mesh} - {NO_INDEXING, ""}


def _first(heading: str) -> str:
    return heading.partition("/")[0]
