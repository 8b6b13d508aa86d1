"""Findings of a report as data: presence, side, regions and degree of each, and the words they were read from.

Mentions and presence are those of the finding labeler (`model.text.labeler`); further concepts, such as scoliosis, are
read by the same cues. `model.text.annotation_scopes` decides which words describe which mention;
`model.text.annotation_terms` has the vocabulary, `model.text.annotation_codes` its codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, cast

from model.text import annotation_terms as terms
from model.text import labeler
from model.text.aligned import AlignedText
from model.text.annotation_scopes import Group, describe
from model.text.labeler import Mention, labelled
from model.types import Label

Side = Literal["left", "right", "both"]
Degree = Literal["minimal", "mild", "moderate", "severe"]
DEGREES: Final[tuple[Degree, ...]] = ("minimal", "mild", "moderate", "severe")


@dataclass(frozen=True)
class Annotation:
    """One finding that a sentence names.

    Attributes:
        finding: a name of ``model.text.labeler.FINDINGS``, or the concept where no label covers it ("scoliosis").
        presence: present, absent or uncertain.
        side: None if the sentence names none, and for findings of the heart and other unpaired organs.
        regions: parts of the chest, or bones ("lower lobe", "base", "rib"), in the order of the vocabulary.
        degree: None if there is none, or the finding is absent.
        degree_words: the degree as written ("small", "mild to moderate").
        concept: the finer name that was read ("nodule", of the label Lung Lesion).
        words: ``sentence[start:end]``, the finding with its words of side, region and degree.
        sentence: index of the sentence.
        start, end: character offsets in the sentence.
    """

    finding: str
    presence: Label
    side: Side | None
    regions: tuple[str, ...]
    degree: Degree | None
    degree_words: str | None
    concept: str | None
    words: str
    sentence: int
    start: int
    end: int


_OTHER: Final = tuple((name, re.compile("|".join(phrases))) for name, phrases in terms.OTHER.items())
_REGIONS: Final = tuple(region for region, _ in terms.REGIONS)
_BONES: Final = tuple(bone for bone, _ in terms.BONES)


def annotate_report(text: str, *, use_cache: bool = True) -> tuple[Annotation, ...]:
    """The findings of a report, by sentence; ``sentences_of`` has the sentences that the indices mean."""
    read = _annotate if use_cache else _annotate.__wrapped__
    return tuple(
        replace(annotation, sentence=index)
        for index, sentence in enumerate(sentences_of(text))
        for annotation in read(sentence)
    )


def forget_sentences() -> None:
    """Empty the cache of sentences."""
    _annotate.cache_clear()


def sentences_of(text: str) -> tuple[str, ...]:
    """The sentences of a report, without spaces at their ends."""
    return tuple(part for found in _split(text) if labeler.HAS_WORD.search((part := found.strip()).lower()))


def _split(text: str) -> Iterator[str]:
    start = 0
    for end in labeler.SENTENCE_END.finditer(text):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def annotate_sentence(sentence: str, index: int = 0) -> tuple[Annotation, ...]:
    """The findings of one sentence, in the order of their words. Cached, because sentences repeat.

    The strongest presence of each label is that of ``label_report`` for the same text.
    """
    found = _annotate(sentence)
    return found if index == 0 else tuple(replace(annotation, sentence=index) for annotation in found)


@lru_cache(maxsize=1 << 14)
def _annotate(sentence: str) -> tuple[Annotation, ...]:
    found = dict.fromkeys(
        annotation for clause in _clauses(sentence) for annotation in _annotate_clause(clause, sentence)
    )
    return tuple(sorted(found, key=lambda annotation: annotation.start))


def _clauses(sentence: str) -> Iterator[AlignedText]:
    """The clauses that the labeler reads, with the offsets of their characters in the sentence."""
    text = AlignedText.lower(sentence)
    for pattern, replacement in labeler.REPLACED:
        text = text.sub(pattern, replacement)
    for part in text.split(labeler.SENTENCE_END):
        for piece in part.sub(labeler.SPACES, " ").strip().findall(labeler.LONG):
            yield from piece.sub(labeler.NEUTRAL, "~").split(labeler.BREAK)


def _annotate_clause(clause: AlignedText, sentence: str) -> Iterator[Annotation]:
    text = clause.text
    mentions = [*labeler.mentions(text), *labelled(text, _OTHER)]
    if not mentions:
        return
    commas = [at for at, offset in enumerate(clause.offsets) if sentence[offset] == "," and text[at] == " "]
    for group in describe(text, mentions, commas):
        yield from _annotations(group, clause, sentence)


def _annotations(group: Group, clause: AlignedText, sentence: str) -> Iterator[Annotation]:
    strongest: dict[tuple[str, str | None], Mention] = {}
    for mention, concept in group.mentions:
        other = strongest.get((mention.finding, concept))
        if other is None or labeler.RANK[mention.label] > labeler.RANK[other.label]:
            strongest[mention.finding, concept] = mention
    for (_, concept), mention in strongest.items():
        is_of_bone, is_sided = concept in terms.OF_BONE, concept not in terms.UNSIDED
        known = group.bones if is_of_bone else group.regions if is_sided else frozenset[str]()
        degree = group.degree if mention.label != "absent" else None
        spans = [(mention.start, mention.end), *(group.spans if is_sided or is_of_bone else ())]
        spans += filter(None, (mention.predicate, degree and degree[:2]))
        start, end = clause.original(min(start for start, _ in spans), max(end for _, end in spans))
        yield Annotation(
            finding=mention.finding,
            presence=mention.label,
            side=_side(group.sides) if is_sided else None,
            regions=tuple(region for region in (_BONES if is_of_bone else _REGIONS) if region in known),
            degree=cast(Degree, degree.value) if degree else None,
            degree_words=sentence[slice(*clause.original(*degree[:2]))].lower() if degree else None,
            concept=concept,
            words=sentence[start:end],
            sentence=0,
            start=start,
            end=end,
        )


def _side(sides: set[str]) -> Side | None:
    if "both" in sides or len(sides) > 1:
        return "both"
    return cast("Side | None", next(iter(sides), None))
