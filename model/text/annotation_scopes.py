"""Which words of a clause describe which mention: sides, regions and degrees in scope.

The words between two mentions belong to the first up to a cut, then to the second. Within its words, a mention takes
what its phrase holds: back to a joint after a word that is no part of a location ("… is elevated and there is a
small"), and on to a joint before such words. Mentions of one list, and an explanation of a mention, share a location.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from model.text import annotation_terms as terms
from model.text.labeler import Mention

_REACH: Final = 80  # characters between a finding and its explanation

Kind = Literal["side", "region", "bone", "degree"]


def _compiled(table: Sequence[tuple[str, str]]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((name, re.compile(words)) for name, words in table)


_KINDS: Final[tuple[tuple[Kind, tuple[tuple[str, re.Pattern[str]], ...]], ...]] = (
    ("side", _compiled(terms.SIDES)),
    ("region", _compiled(terms.REGIONS)),
    ("bone", _compiled(terms.BONES)),
    ("degree", _compiled(terms.DEGREES)),
)
_CONCEPTS: Final = {label: _compiled(names) for label, names in terms.CONCEPTS.items()}
_DIRECTION = re.compile(terms.DIRECTION)
_EITHER = re.compile(terms.EITHER)
_PLURAL = re.compile(terms.PLURAL)
_POST = re.compile(terms.POST)
_CONNECTOR = re.compile(terms.CONNECTOR)
_COORDINATES = re.compile(terms.COORDINATES)
_EXPLAINS = re.compile(terms.EXPLAINS)
_LISTS = re.compile(terms.LISTS)
_ALTERNATIVE = re.compile(terms.ALTERNATIVE)
_FILLER = re.compile(terms.FILLER)
_VERB = re.compile(terms.VERB)
_PREDICATE = re.compile(terms.PREDICATE)
_FORMER = re.compile(terms.FORMER)
_NOW = re.compile(terms.NOW)
_ADJECTIVE = re.compile(terms.ADJECTIVE)
_WORD = re.compile(r"[^\s/-]+")
_NOUN = re.compile(r"[ -](?:lobes?|lungs?|zones?|lung (?:zones?|fields?|bases?)|fields?|bases?)\b")


class _Joint(NamedTuple):
    """A connector, or a comma of the sentence."""

    start: int
    end: int
    word: str


class Modifier(NamedTuple):
    """Words of a side, a region or a degree at [start, end)."""

    start: int
    end: int
    kind: Kind
    value: str


@dataclass
class Group:
    """Mentions that overlap ("mediastinal mass" names two findings), and what describes them."""

    start: int
    end: int
    mentions: list[tuple[Mention, str | None]]  # with their concepts
    sides: set[str] = field(default_factory=set)
    regions: set[str] = field(default_factory=set)
    bones: set[str] = field(default_factory=set)
    degree: Modifier | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)  # of the words of its own location
    after: bool = False  # its location follows it

    @property
    def is_absent(self) -> bool:
        return all(mention.label == "absent" for mention, _ in self.mentions)

    @property
    def is_of_bone(self) -> bool:
        return any(concept in terms.OF_BONE for _, concept in self.mentions)

    @property
    def is_sided(self) -> bool:
        return any(concept not in terms.UNSIDED for _, concept in self.mentions)

    @property
    def is_of_lung(self) -> bool:
        is_shared = any(concept not in terms.UNSHARED for _, concept in self.mentions)
        return self.is_sided and is_shared and not self.is_of_bone and not self.is_device

    @property
    def is_device(self) -> bool:
        return self.is_sided and all(mention.finding == "Support Devices" for mention, _ in self.mentions)

    @property
    def has_location(self) -> bool:
        return bool(self.sides or (self.bones if self.is_of_bone else self.regions))

    def copy_location(self, other: Group) -> None:
        self.sides, self.regions, self.bones = set(other.sides), set(other.regions), set(other.bones)


def describe(text: str, mentions: Sequence[Mention], commas: Sequence[int]) -> list[Group]:
    """The mentions of a clause in groups with what describes them; ``commas`` are offsets of commas in the clause."""
    groups = _groups(text, mentions)
    modifiers = list(_modifiers(text))
    joints = [_Joint(found.start(), found.end(), found.group()) for found in _CONNECTOR.finditer(text)]
    joints = sorted([*joints, *(_Joint(at, at + 1, ",") for at in commas)])
    cuts = [0, *(_cut(text, one.end, two.start, joints, modifiers) for one, two in pairwise(groups)), len(text)]
    for group, (low, high) in zip(groups, pairwise(cuts), strict=True):
        low = _left_end(text, [joint for joint in joints if low <= joint.start < group.start], modifiers, low)
        high = _right_end(text, [joint for joint in joints if group.end <= joint.start < high], modifiers, high)
        _take(text, group, [found for found in modifiers if low <= found.start < high], low, high)
    for kind in ("is_of_lung", "is_of_bone", "is_device"):
        _share(text, [group for group in groups if getattr(group, kind)], joints)
    return groups


def _groups(text: str, mentions: Sequence[Mention]) -> list[Group]:
    groups: list[Group] = []
    for mention in sorted(mentions, key=lambda mention: mention[:3]):
        last = groups[-1] if groups else None
        if last is None or not (
            mention.start < last.end
            or (mention.start == last.end + 1 and _ADJECTIVE.fullmatch(text, last.start, last.end))
        ):
            last = Group(mention.start, mention.end, [])
            groups.append(last)
        last.end = max(last.end, mention.end)
        last.mentions.append((mention, _concept(mention, text)))
    return groups


def _concept(mention: Mention, text: str) -> str | None:
    """The finer name of a mention; the finding itself where it is no label."""
    if mention.finding not in _CONCEPTS:
        return mention.finding
    words = text[mention.start : mention.end]
    return next((name for name, pattern in _CONCEPTS[mention.finding] if pattern.search(words)), None)


def _modifiers(text: str) -> Iterator[Modifier]:
    directions = [found.span() for found in _DIRECTION.finditer(text)]
    for kind, patterns in _KINDS:
        for value, pattern in patterns:
            for found in pattern.finditer(text):
                if kind == "degree" or not any(start <= found.start() < end for start, end in directions):
                    yield Modifier(found.start(), found.end(), kind, value)


def _cut(text: str, start: int, end: int, joints: Sequence[_Joint], modifiers: Sequence[Modifier]) -> int:
    """Where the words between two mentions change from describing the first to describing the second."""
    within = [joint for joint in joints if start <= joint.start < end]
    if explains := [joint for joint in within if joint.word != "xxxx" and _EXPLAINS.fullmatch(joint.word)]:
        return explains[0].start
    locations = [found.start for found in modifiers if start <= found.start < end and found.kind != "degree"]
    if post := _POST.search(text, start, end):
        if after := [joint for joint in within if joint.start >= post.start()]:
            return after[-1].start
        degrees = [found.start for found in modifiers if found.kind == "degree" and post.end() <= found.start < end]
        return min(degrees, default=end)
    if within and locations and max(locations) < within[-1].start:
        return within[-1].start
    return start


def _left_end(text: str, joints: Sequence[_Joint], modifiers: Sequence[Modifier], low: int) -> int:
    """Where the words before a mention begin to describe it."""
    for joint in reversed(joints):
        before = text[low : joint.start].rstrip()
        if _EXPLAINS.fullmatch(joint.word):
            continue  # "a density in the right apex, compatible with a granuloma"
        if before and (not _COORDINATES.fullmatch(joint.word) or not _ends_location(before, low, modifiers)):
            return joint.start
    return low


def _ends_location(before: str, low: int, modifiers: Sequence[Modifier]) -> bool:
    end = low + len(before)
    return any(found.end == end for found in modifiers) or _FILLER.fullmatch(before.split()[-1]) is not None


def _right_end(text: str, joints: Sequence[_Joint], modifiers: Sequence[Modifier], high: int) -> int:
    """Where the words after a mention end to describe it: at a joint before words that are no location."""
    for joint, end in zip(joints, [*(joint.start for joint in joints), high][1:], strict=True):
        is_phrase = (
            _COORDINATES.fullmatch(joint.word)
            and any(found.end == end or text[found.end : end].isspace() for found in modifiers)
            and not _VERB.search(text, joint.end, end)
        )
        if not is_phrase and not _is_location(text, joint.end, end, modifiers):
            return joint.start
    return high


def _is_location(text: str, start: int, end: int, modifiers: Sequence[Modifier]) -> bool:
    """Whether all words at [start, end) are of sides, regions and degrees, or stand between them."""
    return all(
        _FILLER.fullmatch(word[0]) or any(found.start <= word.start() < found.end for found in modifiers)
        for word in _WORD.finditer(text, start, end)
    )


def _take(text: str, group: Group, modifiers: Sequence[Modifier], low: int, high: int) -> None:
    """Give a group of mentions the sides, regions and bones of ``modifiers``, and their nearest degree.

    ``low`` and ``high`` bound the scope of the group in ``text``.
    """
    degrees: list[tuple[int, Modifier]] = []
    predicates = [mention.predicate for mention, _ in group.mentions if mention.predicate]
    for found in modifiers:
        if found.kind != "degree":
            {"side": group.sides, "region": group.regions, "bone": group.bones}[found.kind].add(found.value)
            noun = _NOUN.match(text, found.end, high)
            group.spans.append((found.start, noun.end() if noun else found.end))
            group.after = group.after or found.start >= group.end
        elif any(start < found.end and found.start < end for start, end in predicates):
            continue  # "the heart is large"
        elif _FORMER.search(text, low, found.start):
            continue
        elif found.start < group.end:
            degrees.append((group.start - found.end, found))
        elif (
            _PREDICATE.search(text[group.end : found.start])
            or any(start == found.end + 1 for start, _ in predicates)
            or _is_location(text, group.end, high, modifiers)  # "effusion, left, small"
        ):
            degrees.append((-1 if _NOW.search(text, low, found.start) else found.start - group.end, found))
    if not group.sides and _PLURAL.search(text, low, high):
        group.sides.add("both")
    if not group.is_absent and _EITHER.search(text, low, high):
        group.sides.clear()
    is_of_each_side = len(group.sides) > 1 and len({found.value for _, found in degrees}) > 1
    group.degree = min(degrees)[1] if degrees and not is_of_each_side else None


def _share(text: str, groups: Sequence[Group], joints: Sequence[_Joint]) -> None:
    """Give a mention without location that of its list, or of the mention that it explains.

    Alternatives share a degree ("minimal scarring or atelectasis"); an explanation has its own.
    """
    for two, one in pairwise(reversed(groups)):
        describes = _ADJECTIVE.fullmatch(text, one.start, one.end) and two.has_location
        if one.has_location or one.is_absent != two.is_absent:
            continue
        if describes or (two.after and _LISTS.fullmatch(text, one.end, two.start)):
            one.copy_location(two)
    for one, two in pairwise(groups):
        if one.is_absent != two.is_absent:
            continue
        gap = text[one.end : two.start]
        words = [joint.word for joint in joints if one.end <= joint.start < two.start]
        is_list = _LISTS.fullmatch(gap) is not None
        is_guess = words[-1:] == [","] and all(mention.label == "uncertain" for mention, _ in two.mentions)
        explains = len(gap) <= _REACH and (is_guess or _EXPLAINS.search(gap) is not None)
        if one.has_location and not two.has_location and (is_list or explains):
            two.copy_location(one)
        if two.degree is None and is_list and _ALTERNATIVE.search(gap):
            two.degree = one.degree
