"""Reports without comparisons: the text from which a model learns to describe a single study.

A report compares with earlier studies ("stable cardiomegaly", "no new effusion"). A model that sees
one study learns to invent such words. Tested rules remove them, or rewrite the sentence to what it
says about the study itself; sentences of which nothing is left are removed. The idea: Ramesh et al.
2022, "Improving Radiology Report Generation Systems by Removing Hallucinated References to
Non-existent Priors".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from model.text.labeler import NO_FINDING, label_report
from model.text.statements import is_fragment, refers_to_prior

_SENTENCES: Final = re.compile(r"(?<=[.?!;])\s+")
_CLAUSES: Final = re.compile(r",\s+")
_EARLIER: Final = (
    r"(?:the |a |an |his |her )?(?:most recent |last )?(?:prior|previous|earlier|comparison|last exam\w*)\b"
    r"(?: (?!and\b|with\b)[\w-]+){0,3}"
)
_DEGREE: Final = r"(?:(?:grossly|relatively|essentially|overall|again|otherwise|not significantly) )?"
_SAME: Final = (
    r"(?:stable|unchanged)(?: in (?:the )?(?:appearance|size|position|contour|configuration|interval)(?: and \w+)?)?"
)

_RULES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (rf"^(?:since|compared (?:to|with)|in comparison (?:to|with)|when compared (?:to|with)) {_EARLIER}$", ""),
        (rf",? (?:as )?(?:when )?(?:compared|in comparison|similar(?: in \w+)?) (?:to|with) {_EARLIER}", ""),
        (rf" (?:from|since|on|in|as on) {_EARLIER}", ""),
        (r"^in the interval$|^currently$|^again$", ""),
        (r"^(?:once )?again (?:noted|seen|demonstrated|identified|visualized)(?: (?:is|are|of))? ", "there is "),
        (r"^redemonstrat(?:ed|ion)(?: (?:is|are|of))? ", ""),
        (r"\bredemonstration of ", ""),
        (r"\bthere(?:'s| has| have) been (?:an? )?(?:\w+ )?interval (?:development|placement) of ", "there is "),
        (r"\bthere is (?:an? )?interval (?:development|placement) of ", "there is "),
        (r"\b(?:once )?again (?=noted|seen|demonstrated|identified|visualized|evident|shown|present)", ""),
        (r"\b(is|are) again ", r"\1 "),
        (r"\bremains\b", "is"),
        (r"\bremain\b", "are"),
        (r"\bappearing (?=to be )", ""),
        (rf"(?:,)? (?:but|and) {_DEGREE}{_SAME}(?= |$)", ""),
        (rf"^{_DEGREE}(?:stable|unchanged)(?: appearing)? (?:position|appearance|configuration) of (?:the )?", ""),
        (
            rf" (?:is|are|appears?) {_DEGREE}{_SAME} and "
            r"(?=(?:appears?|may|indicates?|represents?|suggests?|likely|xxxx)\b)",
            " ",
        ),
        (rf"\b{_DEGREE}{_SAME}(?: and|,|,? but) ", ""),
        (r"\bno new or ", "no "),
        (rf"\b{_DEGREE}(?:stable|unchanged|persistent|continued|new|still)(?: appearing)? (?=\w)", ""),
        (rf" {_DEGREE}{_SAME}$", ""),
        (r"\b(?:is|are) (?=with\b)", ""),
        (r"\ban (?=[bcdfghj-np-tv-z])", "a "),
        (r"\ba (?=[aeio])", "an "),
    )
)
_BROKEN: Final = re.compile(
    r"(?:^|\s)(?:is|are|was|were|be|been|has|have|appears?|but|and|or|with|which|that|of|in|on|to|from|the|an?|grossly|"
    r"relatively|essentially|likewise)$"
    r"|^(?:this|these|it|they|they're)\b"
    r"|\b(?:is|are) (?:in (?:appearance|position|size)|from|to|appears?|may|indicate|represent|and|but)\b"
    r"|\b(?:has|have)(?: been)? (?:removed|removal|inserted|placed|moved)\b|\bshows? an? [a-z]+ silhouette$",
    re.IGNORECASE,
)
_DEGREE_OF_CHANGE: Final = re.compile(
    r"\b(?:in|de)creased\b|\b(?:lower|higher|larger|smaller|more|less)\b", re.IGNORECASE
)
_LIST_END: Final = re.compile(r"(?:and|or)\b(?! (?:\w+ )?(?:stable|unchanged)$)", re.IGNORECASE)
_PAIRED: Final = re.compile(
    r"\b(stable|unchanged|persistent), (?=(?:mild|moderate|normal|small|chronic|enlarged|old)\b)", re.IGNORECASE
)
_INTRODUCTION: Final = re.compile(r"(?:since|compared|in|when|currently|again)\b", re.IGNORECASE)
_BARE: Final = re.compile(
    r"(?:the|an?|and|of|in|is|are|there|appearance|position|size|shape|contours?|silhouettes?|heart|cardiac|cardio-?mediastinal|"
    r"cardiopericardial|mediastinal|mediastinum|hilar|hila|hilum|pulmonary|vasculature|vascularity|lungs?|volumes?|chest|aorta|"
    r"configuration|aortic|thoracic|osseous|bony|bones|structures?|soft|tissues?|spine|exam|examination|frontal|lateral|views?|"
    r"shows?|demonstrates?|this|these|findings?|it|they|left|right|both|central|otherwise|unchanged|xxxx)",
    re.IGNORECASE,
)


def without_comparisons(report: str) -> str:
    """A report without its comparisons with earlier studies; "" where it holds nothing else.

    Sentences without a comparison stay as they are. No sentence of the result satisfies
    ``refers_to_prior``.
    """
    kept = (_without_comparison(sentence) for sentence in _SENTENCES.split(report.strip()))
    return " ".join(sentence for sentence in kept if sentence)


def with_rewritten(reports: Iterable[str]) -> list[str]:
    """Reports as published, then as a model may have learnt them."""
    published = list(reports)
    return [*published, *map(without_comparisons, published)]


def _without_comparison(sentence: str) -> str:
    """What a sentence says about the study itself, "" where that is nothing."""
    if not refers_to_prior(sentence):
        return sentence
    clauses = _CLAUSES.split(_PAIRED.sub(r"\1 ", sentence.rstrip(".;!? ")))
    rewritten = [_rewritten(clause) if refers_to_prior(clause) else clause for clause in clauses]
    if len(rewritten) > 1 and not rewritten[0] and _INTRODUCTION.match(clauses[0]):
        clauses, rewritten = clauses[1:], rewritten[1:]  # "Compared to the prior study, …"
    lost = [clause for clause, text in zip(clauses, rewritten, strict=True) if not text]
    if not rewritten[0] or any(map(_LIST_END.match, lost)):  # the verb of a list may stand in its last clause
        return ""
    text = ", ".join(clause for clause in rewritten if clause)
    if refers_to_prior(text) or is_fragment(text) or (" " not in text and not _names_finding(text)):
        return ""
    return text[:1].upper() + text[1:] + "."


def _rewritten(clause: str) -> str:
    """A clause without its comparison; "" if it cannot be rewritten or says nothing any more."""
    text = clause
    for pattern, replacement in _RULES:
        text = " ".join(pattern.sub(replacement, text).split())
    if _DEGREE_OF_CHANGE.search(text) and re.search(_EARLIER, clause, re.IGNORECASE):
        return ""
    subject = re.sub(r"\s+(?:is|are|appears?|was|were)$", "", text, flags=re.IGNORECASE)
    if subject != text:  # "mild cardiomegaly is unchanged": the subject may be a finding
        text = subject if _names_finding(subject) else ""
    if not text or refers_to_prior(text) or _BROKEN.search(text) or _is_bare(text):
        return ""
    return text


def _is_bare(text: str) -> bool:
    """Whether a clause names organs only and says nothing about them."""
    return all(_BARE.fullmatch(word) for word in re.findall(r"[\w-]+", text))


def _names_finding(text: str) -> bool:
    return any(state == "present" for name, state in label_report(text).items() if name != NO_FINDING)
