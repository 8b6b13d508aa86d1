"""What one sentence of a report claims: comparison with an earlier study, organ, and state of the organ.

Rules on lower-case words, without punctuation; tested on values in ``tests/test_model_statements.py``.
The idea of removing comparisons that one study cannot support: Ramesh et al. 2022, "Improving
Radiology Report Generation Systems by Removing Hallucinated References to Non-existent Priors".
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Final

Claim = tuple[str, str]
"""A subject and its state, ``("heart size", "enlarged")``."""

PRIOR_WORDS: Final = (
    "again", "comparison", "compared", "continued", "continues", "currently", "improved", "improvement", "improving",
    "increasing", "decreasing", "interval", "earlier", "longer", "new", "newly", "persist", "persistent", "persists",
    "previously", "progressed", "progression", "redemonstrated", "redemonstration", "remain", "remains", "remained",
    "resolved", "resolution", "since", "stable", "still", "unchanged", "worse", "worsened", "worsening",
)  # fmt: skip
"""Words that compare with an earlier study wherever they stand; they need not be generated."""

_PAST_DISEASE = (
    r"(?:granulomatous|histoplasmosis|healed|surg\w*|operati\w*|cabg|coronary|bypass|valve|cardiac|sternotomy|median|"
    r"thoracotomy|trauma|fractures?|rib|cholecystectomy|infecti\w*|inflammat\w*|mastectomy|lobectomy|resection|"
    r"tuberculo\w*|tb|cervical|spinal|fusion|replacement|lumpectomy|right|left)"
)
_BETWEEN = r"(?:(?:lung|chest|lower|upper|spine|aortic|mitral|abdominal|calcified|thoracic|lumbar|xxxx) )*"
_PRIOR: Final = re.compile(
    r"\b(?:" + "|".join(PRIOR_WORDS) + r")\b"
    r"|\b(?:prior|previous)\b(?! " + _BETWEEN + _PAST_DISEASE + r"\b)"
    r"|\b(?:increased?|decreased?|enlarged|changed?|different|similar) (?:\w+ ){0,3}?(?:from|since|compared|to prior)\b"
    r"|\b(?:has|have) (?:\w+ )?(?:increased|decreased|changed|developed|cleared|improved)\b"
    r"|\b(?:no|without|significant|interval) change\b|\bunderwent\b"
)
_SMALL_WORD: Final = re.compile(
    r"a|again|an|and|appear|appearing|appears|are|as|at|be|been|better|bilateral|bilaterally|both|but|by|"
    r"either|evident|for|from|greater|has|have|identified|if|in|is|it|its|large|left|less|likely|lower|"
    r"may|mid|middle|mild|mildly|minimal|moderate|moderately|more|most|new|no|not|noted|of|on|or|other|"
    r"otherwise|patient|patients|possibly|present|probably|right|seen|severe|side|sided|sides|slight|"
    r"slightly|small|stable|than|that|the|there|these|this|those|to|upper|was|were|which|with|within|"
    r"without|worse"
)
ORGANS: Final = ("heart", "mediastinum", "lungs", "pleura", "bones", "devices")
"""In the order in which radiologists write."""

_ORGAN_WORDS: Final = {
    "devices": r"catheter|tube|line|pacemaker|pacer|icd|aicd|leads?|port|picc|clips?|wires?|sternotomy|device|hardware|"
    r"stent|prosthe\w+|electrodes?|cabg|valve",
    "pleura": r"pleura\w*|effusions?|pneumothora\w+|costophrenic|blunting",
    "bones": r"bon(?:e|es|y)|osseous|ribs?|spin(?:e|al)|vertebra\w*|skelet\w+|fractures?|degenerative|scolio\w+|"
    r"kypho\w+|osteo\w+|thoracic spine|t-spine|clavic\w+|shoulders?|humer\w+|spondyl\w+|arthrit\w+|soft tissues?",
    "heart": r"heart|cardiac|cardiomegaly|cardio\w*",
    "mediastinum": r"mediasti\w+|aort\w+|hil(?:um|a|ar)|trache\w+|hiatal|vasculature|vascularity|pulmonary arter\w+",
    "lungs": r"lungs?|pulmonary|airspace|air space|opaci\w+|infiltrat\w*|consolidat\w*|atelecta\w+|nodul\w+|"
    r"granulom\w+|edema|interstiti\w+|hyperinflat\w+|hyperexpan\w+|emphysem\w*|copd|bronch\w+|pneumonia|scar\w*|lobe|mass(?:es)?|"
    r"diaphragm\w*|inspirat\w+",
}
_ORGAN: Final = {organ: re.compile(rf"\b(?:{words})\b") for organ, words in _ORGAN_WORDS.items()}

_HEART_SUBJECT = r"(?:heart|cardiac|cardiomediastinal)"
_BORDERLINE: Final = re.compile(r"\bborderline\b|\bupper (?:limits?|range) of normal\b|\bupper normal\b")
_ENLARGED: Final = re.compile(
    rf"\b{_HEART_SUBJECT}\b[^.]*\b(?:enlarged|prominent)\b|\benlarged (?:heart|cardiac)\b|\bcardiomegaly\b|"
    rf"\b{_HEART_SUBJECT}(?: size| silhouette)? (?:is|appears) large\b|"
    rf"\bprominent {_HEART_SUBJECT}\b|\benlargement of the {_HEART_SUBJECT}\b"
)
_NOT_ENLARGED: Final = re.compile(r"\b(?:no|not|without)\b[^.]*\b(?:enlarged|cardiomegaly|enlargement)\b")
_NORMAL: Final = re.compile(r"\b(?:normal|unremarkable)\b")
_CLEAR_LUNGS: Final = re.compile(
    r"\b(?:lungs?|lung fields?)\b[^.]*\bclear\b|\bclear lungs?\b|\bno (?:acute|focal) pulmonary abnormalit\w+\b"
)
_CLEAR_IN_PART: Final = re.compile(r"\botherwise\b|\bexcept\b|\bapart\b|\b(?:right|left)\b|\bgrossly\b")
_AIRSPACE: Final = r"(?:consolidat\w+|infiltrat\w*|airspace (?:disease|opaci\w+|process)|pneumonia)"
_NO_AIRSPACE: Final = re.compile(
    rf"\b(?:no|not|without|negative for|(?:free|clear) of)\b(?:(?!\bbut\b)[^.])*\b{_AIRSPACE}\b"
    rf"|\b{_AIRSPACE}\b[^.]*\bnot (?:seen|identified)\b"
)
_SOME_AIRSPACE: Final = re.compile(rf"\b{_AIRSPACE}\b")
_ABNORMAL_LUNGS: Final = re.compile(r"\b(?:opaci(?:ty|ties)|edema|atelecta\w+|scar\w*)\b")
_VOLUMES: Final = {
    "low": re.compile(
        r"\blow (?:lung|inspiratory) volumes?\b|\blung volumes are low\b|\bhypo(?:inflat|expan|ventilat)\w+"
    ),
    "high": re.compile(r"\bhyper(?:inflat|expan)\w+"),
    "normal": re.compile(r"\b(?:well|normally|clear and)[ -](?:expanded|inflated|aerated)\b|\bnormal lung volumes?\b"),
}
_NEGATED: Final = re.compile(r"\b(?:no|not|without|negative|free)\b")
_INTACT: Final = re.compile(
    r"\b(?:bony|osseous|bones|skelet\w+|ribs?)\b[^.]*\b(?:intact|unremarkable|normal)\b|\bno (?:acute )?(?:displaced )?"
    r"(?:rib )?fractures?\b"
)
_FRACTURE: Final = re.compile(r"\bfractures?\b")
_DISAGREES: Final = re.compile(
    r"\bthere (?:is|was) (?:(?!(?:of|with|in|at|to|and|as)\b)[\w-]+ ){0,5}(?:areas|calcifications|changes|contours"
    r"|densities|effusions|fractures|granulomas|infiltrates|markings|nodules|opacities)\b"
)
_OLD: Final = re.compile(r"\b(?:old|healed|remote|chronic)\b")


def refers_to_prior(sentence: str) -> bool:
    """Whether a sentence compares with an earlier study; earlier disease or surgery is no comparison."""
    return _PRIOR.search(sentence.lower()) is not None


def is_fragment(sentence: str) -> bool:
    """Whether a sentence names nothing: only function words, sides and degrees ("left greater than right")."""
    return all(map(_SMALL_WORD.fullmatch, sentence.lower().replace(".", " ").split()))


def disagrees(sentence: str) -> bool:
    """Whether a singular verb precedes its plural noun ("there is degenerative changes"), as dictation does."""
    return _DISAGREES.search(sentence.lower()) is not None


def organ_of(sentence: str) -> str | None:
    """The organ that a sentence names first; devices, pleura and bones win over the organ they lie in."""
    text = sentence.lower()
    return next((organ for organ, words in _ORGAN.items() if words.search(text)), None)


def claims(sentence: str) -> frozenset[Claim]:
    """States that a sentence claims for heart size, lungs and their volume, air spaces and bones."""
    text = sentence.lower()
    found: set[Claim] = set()
    if _BORDERLINE.search(text):
        found.add(("heart size", "borderline"))
    elif _NOT_ENLARGED.search(text):
        found.add(("heart size", "normal"))
    elif _ENLARGED.search(text):
        found.add(("heart size", "enlarged"))
    elif re.search(rf"\b{_HEART_SUBJECT}\b", text) and _NORMAL.search(text):
        found.add(("heart size", "normal"))
    if _NO_AIRSPACE.search(text):
        found.add(("air spaces", "clear"))
    elif _SOME_AIRSPACE.search(text):
        found |= {("air spaces", "filled"), ("lungs", "abnormal")}
    if _CLEAR_LUNGS.search(text) and not _CLEAR_IN_PART.search(text):
        found |= {("lungs", "clear"), ("air spaces", "clear")}
    elif _ABNORMAL_LUNGS.search(text) and not _NEGATED.search(text):
        found.add(("lungs", "abnormal"))
    found |= {("lung volume", state) for state, words in _VOLUMES.items()
              if words.search(text) and not _NEGATED.search(text)}  # fmt: skip
    if _INTACT.search(text):
        found.add(("bones", "intact"))
    elif _FRACTURE.search(text) and not _OLD.search(text) and not _NEGATED.search(text):
        found.add(("bones", "broken"))
    return frozenset(found)


def contradict(found: Set[Claim]) -> bool:
    """Whether claims give one subject two states."""
    return len({subject for subject, _ in found}) < len(found)
