"""Findings of a report as data: presence, side, regions and degree of each, and the words they were read from.

Mentions and presence are those of the finding labeler (`model.text.labeler`); further concepts, such as scoliosis, are
read by the same cues. A side, region or degree belongs to the mention whose phrase holds it: words before a mention,
back to the words that describe the mention before; after it, what a preposition or a verb adds ("at the left base").
Mentions of one list, and an explanation of a mention, share its location ("left basilar atelectasis or infiltrate").
`model.text.annotation_terms` has the vocabulary, `model.text.annotation_codes` its codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple, cast

from model.text import annotation_terms as terms
from model.text import labeler
from model.text.aligned import AlignedText
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


_CONCEPTS: Final = {
    label: tuple((name, re.compile(words)) for name, words in names) for label, names in terms.CONCEPTS.items()
}
_OTHER: Final = tuple((name, re.compile("|".join(phrases))) for name, phrases in terms.OTHER.items())
_SIDES: Final = tuple((side, re.compile(words)) for side, words in terms.SIDES)
_REGIONS: Final = tuple((region, re.compile(words)) for region, words in terms.REGIONS)
_BONES: Final = tuple((bone, re.compile(words)) for bone, words in terms.BONES)
_DEGREES: Final = tuple((degree, re.compile(words)) for degree, words in terms.DEGREES)
_PLURAL = re.compile(terms.PLURAL)
_POST = re.compile(terms.POST)
_CONNECTOR = re.compile(terms.CONNECTOR)
_EXPLAINS = re.compile(terms.EXPLAINS)
_LISTS = re.compile(terms.LISTS)
_VERB = re.compile(terms.VERB)
_CLAUSE = re.compile(terms.CLAUSE)
_LOCATES = re.compile(terms.LOCATES)
_NOUN = re.compile(r"[ -](?:lobes?|lungs?|zones?|lung (?:zones?|fields?|bases?)|fields?|bases?)\b")
_REACH: Final = 80  # characters between a finding and its explanation


def annotate_report(text: str) -> tuple[Annotation, ...]:
    """The findings of a report, by sentence; ``sentences_of`` has the sentences that the indices mean."""
    return tuple(
        annotation
        for index, sentence in enumerate(sentences_of(text))
        for annotation in annotate_sentence(sentence, index)
    )


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


# --- mentions of a clause, and what belongs to each -------------------------------------------------------------------


@dataclass
class _Group:
    """Mentions that overlap ("mediastinal mass" names two findings) and what describes them, as [start, end)."""

    start: int
    end: int
    mentions: list[tuple[Mention, str | None]]  # with their concepts
    low: int = 0  # the words that may describe it lie at [low, high)
    high: int = 0
    sides: set[str] = field(default_factory=set)
    regions: set[str] = field(default_factory=set)
    bones: set[str] = field(default_factory=set)
    degree: str | None = None
    degree_at: tuple[int, int] | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    after: bool = False  # its location follows it

    @property
    def is_absent(self) -> bool:
        return all(mention.label == "absent" for mention, _ in self.mentions)

    @property
    def is_sided(self) -> bool:
        return any(concept not in terms.UNSIDED for _, concept in self.mentions)

    @property
    def has_location(self) -> bool:
        return bool(self.sides or self.regions or self.bones)


class _Modifier(NamedTuple):
    start: int
    end: int
    kind: Literal["side", "region", "bone", "degree"]
    value: str


def _annotate_clause(clause: AlignedText, sentence: str) -> Iterator[Annotation]:
    text = clause.text
    mentions = [*labeler.mentions(text), *labelled(text, _OTHER)]
    if not mentions:
        return
    groups = _groups(text, mentions)
    commas = [at for at, offset in enumerate(clause.offsets) if sentence[offset] == "," and text[at] == " "]
    _divide(text, groups, commas)
    modifiers = list(_modifiers(text))
    for group in groups:
        _describe(group, [found for found in modifiers if group.low <= found.start < group.high], text)
    _share(text, groups)
    for group in groups:
        yield from _annotations(group, clause, sentence)


def _groups(text: str, mentions: Sequence[Mention]) -> list[_Group]:
    groups: list[_Group] = []
    for mention in sorted(mentions, key=lambda mention: mention[:3]):
        if groups and mention.start < groups[-1].end:
            groups[-1].end = max(groups[-1].end, mention.end)
        else:
            groups.append(_Group(mention.start, mention.end, []))
        groups[-1].mentions.append((mention, _concept(mention, text)))
    return groups


def _divide(text: str, groups: Sequence[_Group], commas: Sequence[int]) -> None:
    """Set ``low`` and ``high``: the words between two groups belong to the first up to ``_cut``, then to the second."""
    cuts = [
        0,
        *(_cut(text, one.end, two.start, commas) for one, two in pairwise(groups)),
        len(text),
    ]
    for group, (low, high) in zip(groups, pairwise(cuts), strict=True):
        group.low = _left_end(text, min(low, group.start), group.start)
        group.high = _right_end(text, group.end, max(high, group.end))


def _cut(text: str, start: int, end: int, commas: Sequence[int]) -> int:
    """Where the words between two mentions change from the first to the second."""
    post = _POST.search(text, start, end)
    if post is None:
        return start
    joints = [found.start() for found in _CONNECTOR.finditer(text, post.start(), end)]
    joints += [at for at in commas if post.start() <= at < end]
    if joints:
        return max(joints)
    degree = min(
        (found.start() for _, words in _DEGREES for found in words.finditer(text, post.end(), end)), default=end
    )
    return degree


def _left_end(text: str, low: int, start: int) -> int:
    """Where the words before a mention begin to describe it: "… is elevated and there is a small" from "there"."""
    if _LOCATES.search(text[low:start]) and len(_VERB.findall(text, low, start)) == 0:
        return low
    end = start
    for joint in reversed(list(_CONNECTOR.finditer(text, low, start))):
        if _CLAUSE.search(text, joint.end() if joint.group() in ("and", "with", "or") else joint.start(), end):
            return joint.start()
        end = joint.start()
    return low


def _right_end(text: str, end: int, high: int) -> int:
    """Where the words after a mention end to describe it: before "and the right diaphragm is obscured"."""
    joints = [joint.start() for joint in _CONNECTOR.finditer(text, end, high)]
    return next((one for one, two in pairwise([*joints, high]) if _VERB.search(text, one, two)), high)


def _modifiers(text: str) -> Iterator[_Modifier]:
    for kind, patterns in (("side", _SIDES), ("region", _REGIONS), ("bone", _BONES), ("degree", _DEGREES)):
        for value, pattern in patterns:
            for found in pattern.finditer(text):
                yield _Modifier(found.start(), found.end(), cast(Literal["side"], kind), value)


def _describe(group: _Group, modifiers: Sequence[_Modifier], text: str) -> None:
    """Take sides, regions and the nearest degree."""
    degrees: list[tuple[int, _Modifier]] = []
    for found in modifiers:
        if found.kind == "degree":
            distance = group.start - found.end if found.end <= group.start else found.start - group.end
            degrees.append((distance, found))
            continue
        {"side": group.sides, "region": group.regions, "bone": group.bones}[found.kind].add(found.value)
        noun = _NOUN.match(text, found.end, group.high)
        group.spans.append((found.start, noun.end() if noun else found.end))
        group.after = group.after or found.start >= group.end
    if not group.sides and any(found.start() < group.high for found in _PLURAL.finditer(text, group.low, group.high)):
        group.sides.add("both")
    if degrees:
        nearest = min(degrees)[1]
        group.degree, group.degree_at = nearest.value, (nearest.start, nearest.end)


def _share(text: str, groups: Sequence[_Group]) -> None:
    """Give a mention without location that of its list, or of the mention that it explains."""
    sided = [group for group in groups if group.is_sided]
    for one, two in pairwise(sided):
        gap = text[one.end : two.start]
        if two.has_location or not one.has_location or one.is_absent != two.is_absent:
            continue
        explains = _EXPLAINS.search(gap) is not None and len(gap) <= _REACH
        if explains or _LISTS.fullmatch(gap):
            two.sides, two.regions = set(one.sides), set(one.regions)
        if explains and two.degree is None and _LISTS.fullmatch(gap):
            two.degree, two.degree_at = one.degree, one.degree_at
    for one, two in zip(reversed(sided[:-1]), reversed(sided[1:]), strict=True):
        if one.has_location or not two.after or one.is_absent != two.is_absent:
            continue
        if _LISTS.fullmatch(text[one.end : two.start]):
            one.sides, one.regions = set(two.sides), set(two.regions)


def _annotations(group: _Group, clause: AlignedText, sentence: str) -> Iterator[Annotation]:
    best: dict[tuple[str, str | None], Mention] = {}
    for mention, concept in group.mentions:
        key = (mention.finding, concept)
        if key not in best or labeler.RANK[mention.label] > labeler.RANK[best[key].label]:
            best[key] = mention
    for (_, concept), mention in best.items():
        spans = [(mention.start, mention.end), *filter(None, (mention.predicate, group.degree_at))]
        is_sided = concept not in terms.UNSIDED
        if is_sided:
            spans += group.spans
        start, end = clause.original(min(start for start, _ in spans), max(end for _, end in spans))
        known = group.bones if concept in terms.OF_BONE else group.regions if is_sided else set()
        order = _BONES if concept in terms.OF_BONE else _REGIONS
        degree = None if mention.label == "absent" else group.degree
        written = clause.original(*group.degree_at) if degree and group.degree_at else None
        yield Annotation(
            finding=mention.finding,
            presence=mention.label,
            side=_side(group.sides) if is_sided else None,
            regions=tuple(region for region, _ in order if region in known),
            degree=cast("Degree | None", degree),
            degree_words=sentence[slice(*written)].lower() if written else None,
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


def _concept(mention: Mention, text: str) -> str | None:
    """The finer name of a mention; the finding itself where it is no label."""
    if mention.finding not in _CONCEPTS:
        return mention.finding
    words = text[mention.start : mention.end]
    return next((name for name, pattern in _CONCEPTS[mention.finding] if pattern.search(words)), None)
