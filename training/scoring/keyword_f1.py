"""F1 of the key words of a report, after FORTE, for chest radiographs.

FORTE (feature-oriented radiology task evaluation; Li et al. 2025, "Towards a holistic framework for multimodal LLM in
3D brain CT radiology report generation", Nature Communications 16:2258) sorts the key words of a report into degree,
landmark, feature and impression and takes the F1 of each category. Its lists are for the head. These lists are for the
chest, written for this project from the general vocabulary of chest radiography. A key word stands for its synonyms and
counts once in a study.

Like FORTE this reads words, not statements: "no effusion" names an effusion. The paper therefore scores a second time
without the sentences that contain a negation, and so does ``keyword_f1`` with ``negated=False``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from model.text.tokenizer import END_OF_SENTENCE
from training.scoring.metrics import Pair, Scores, precision_recall_f1

AVERAGE: Final = "average"  # of the four categories

# category -> key word -> spellings: regular expressions on whole words, lower case, "|" between synonyms
KEY_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "degree": {
        "normal": r"normal(?:ly)?|unremarkable|within (?:the )?(?:normal )?limits(?: of normal)?",
        "borderline": r"borderline|upper limits? of normal|top[- ]normal|high[- ]normal",
        "minimal": r"minimal(?:ly)?|trace|tiny|subtle|faint(?:ly)?|slight(?:ly)?",
        "mild": r"mild(?:ly)?",
        "small": r"small(?:er)?",
        "moderate": r"moderate(?:ly)?|medium",
        "severe": r"severe(?:ly)?|marked(?:ly)?|massive(?:ly)?|extensive(?:ly)?|advanced|gross",
        "large": r"large(?:r)?|big",
        "acute": r"acute(?:ly)?|new(?:ly)?|recent",
        "chronic": r"chronic(?:ally)?|old|remote|long[- ]?standing|healed|residual",
        "stable": r"stable|unchanged|no change|similar|persistent|again",
        "increased": r"increas(?:ed|e|ing)|worsen(?:ed|ing)|progress(?:ed|ion|ive)|more prominent",
        "decreased": r"decreas(?:ed|e|ing)|improv(?:ed|ing|ement)|resol(?:ved|ving|ution)|clearing",
        "focal": r"focal(?:ly)?|locali[sz]ed|segmental|subsegmental",
        "diffuse": r"diffuse(?:ly)?|widespread|scattered|multifocal|throughout|generali[sz]ed",
        "prominent": r"prominent|prominence|exaggerated|accentuated",
        "low": r"low|shallow|reduced|diminished",
    },
    "landmark": {
        "right": r"right(?:[- ]sided)?",
        "left": r"left(?:[- ]sided)?",
        "both sides": r"bilateral(?:ly)?|both|bibasilar|bibasal|biapical",
        "lung": r"lungs?|pulmonary|airspaces?|air spaces?|parenchyma(?:l)?",
        "upper zone": r"upper (?:lobes?|lungs?|zones?)|ap(?:ex|ices|ical)|biapical",
        "middle zone": r"middle lobe|mid[- ]?lungs?|mid[- ]?zones?|lingul(?:a|ar)",
        "lower zone": r"lower (?:lobes?|lungs?|zones?)|bas(?:e|es|al|ilar)|bibasilar|bibasal|retrocardiac",
        "hilum": r"hil(?:um|a|ar)|perihilar|suprahilar|infrahilar",
        "heart": r"hearts?|cardiac|cardio|cardiomediastinal|cardio[- ]?pericardial",
        "heart chambers": r"atri(?:um|al)|ventric(?:le|les|ular)",
        "mediastinum": r"mediastin(?:um|al)|cardiomediastinal|paratracheal|aorticopulmonary",
        "aorta": r"aort(?:a|ic)|arch",
        "great veins": r"svc|vena cava|cavo-?atrial|subclavian|jugular|brachiocephalic|azygos",
        "vessels": r"vascul(?:ar|arity|ature)|vessels?|bronchovascular|arter(?:y|ies|ial)|venous",
        "airways": r"trache(?:a|al)|carina|bronch(?:us|i|ial)|airways?|peribronchial",
        "pleura": r"pleura(?:l)?",
        "fissure": r"fissures?|fissural",
        "costophrenic angle": r"costophrenic|sulc(?:us|i)",
        "diaphragm": r"(?:hemi)?diaphragm(?:s|atic)?|hemidiaphragms?",
        "spine": r"spin(?:e|al)|vertebra(?:l|e)?|t-spine|thoracolumbar|dis[ck]s?|endplates?",
        "ribs": r"ribs?|costal",
        "shoulder girdle": r"clavic(?:le|les|ular)|acromioclavicular|scapula(?:r|e)?|shoulders?|humer(?:us|al|i)",
        "bones": r"bon(?:e|es|y)|osseous|skelet(?:on|al)",
        "sternum": r"sternum|sternal|sternotomy",
        "soft tissues": r"soft tissues?|breasts?|axilla(?:ry)?|subcutaneous",
        "abdomen": r"abdom(?:en|inal)|stomach|gastric|bowel|quadrant|intraperitoneal|liver",
        "thorax": r"thora(?:x|cic)|chest|intrathoracic|hemithorax",
    },
    "feature": {
        "clear": r"clear",
        "intact": r"intact",
        "opacity": r"opaci(?:ty|ties|fication|fied)|densit(?:y|ies)|haziness|hazy",
        "consolidation": r"consolidat(?:ion|ions|ed|ive)",
        "infiltrate": r"infiltrat(?:e|es|ion|ive)",
        "airspace disease": r"air ?space (?:disease|process|opacit(?:y|ies))",
        "interstitial markings": r"interstitial|reticul(?:ar|onodular)|markings",
        "patchy": r"patchy",
        "streaky": r"streaky|linear|band-?like|platelike|discoid",
        "nodule": r"nodul(?:e|es|ar|arity)|micronodul(?:e|es|ar)",
        "mass": r"mass(?:es)?|lesions?",
        "calcification": r"calcifi(?:ed|c|cation|cations)",
        "scar": r"scar(?:s|red|ring)?|fibro(?:tic|sis)",
        "thickening": r"thicken(?:ed|ing)|plaques?|cuffing",
        "blunting": r"blunt(?:ed|ing)",
        "enlargement": r"enlarge(?:d|ment)|cardiomegaly",
        "widening": r"widen(?:ed|ing)|wide",
        "tortuosity": r"tortuo(?:us|sity)|ectas(?:ia|tic)|uncoiled|unfolded|ectatic|elongated",
        "low volume": r"(?:low|small) (?:lung )?volumes?|hypoinflat(?:ed|ion)|hypoventilat(?:ed|ion)|volume loss"
        r"|loss of volume|poor inspiration|hypoaerat(?:ed|ion)",
        "hyperinflation": r"hyper-?(?:inflat(?:ed|ion)|expan(?:ded|sion)|aerat(?:ed|ion)|lucen(?:t|cy))",
        "well expanded": r"well[- ](?:expanded|inflated|aerated)|normally (?:expanded|inflated|aerated)",
        "flattening": r"flatten(?:ed|ing)",
        "elevation": r"elevat(?:ed|ion)|eventration",
        "lucency": r"lucen(?:t|cy|cies)|bulla(?:e|s)?|bullous|cavit(?:y|ies|ary|ation)|free air",
        "shift": r"shift(?:ed)?|displace(?:d|ment)|deviat(?:ed|ion)|rotated",
        "midline": r"midline",
        "silhouette": r"silhouettes?|contours?",
        "crowding": r"crowd(?:ed|ing)",
        "deformity": r"deform(?:ity|ities|ed)|compress(?:ed|ion)|wedg(?:e|ed|ing)|curvature",
        "degenerative change": r"degenerative|osteophytes?|arthritic|spurring|hypertrophic",
        "fluid": r"fluid|effusions?",
        "line or tube": r"catheters?|picc|lines?|tubes?|port-?a-?cath|mediport|ports?",
        "pacing device": r"pacemakers?|pacer|a?icd|defibrillators?|leads?",
        "surgical material": r"clips?|wires?|sternotomy|cabg|stents?|prosthe(?:sis|tic)|surgical"
        r"|post-?(?:surgical|operative)",
        "engorgement": r"engorge(?:d|ment)|cephali[sz]ation|congest(?:ed|ion|ive)",
    },
    "impression": {
        "cardiomegaly": r"cardiomegaly|enlarged (?:heart|cardiac)|cardiac enlargement|heart (?:is )?(?:\w+ )?enlarged",
        "heart failure": r"(?:heart|cardiac) failure|chf|decompensation|(?:volume|fluid) overload",
        "edema": r"o?edema",
        "vascular congestion": r"(?:vascular|venous|pulmonary) (?:venous )?congestion",
        "pleural effusion": r"effusions?|pleural fluid|(?:hydro|h[a]?emo)(?:pneumo)?thorax",
        "pneumothorax": r"pneumothora(?:x|ces)",
        "pneumomediastinum": r"pneumomediastinum|pneumopericardium",
        "pneumoperitoneum": r"pneumoperitoneum|free (?:intraperitoneal )?air",
        "pneumonia": r"pneumonias?|bronchopneumonia|pneumonitis|infectio(?:n|us)",
        "atelectasis": r"atelecta(?:sis|tic|ses)|collapsed?",
        "obstructive disease": r"emphysema(?:tous)?|copd|obstructive|air[- ]?trapping",
        "bronchitis": r"bronchi(?:tis|olitis|ectasis)|asthma|reactive airways?",
        "fibrosis": r"fibrosis|interstitial (?:lung )?disease|pneumoconiosis|asbestosis",
        "granulomatous disease": r"granulom(?:a|as|ata|atous)|histoplasmosis|sarcoid(?:osis)?",
        "tuberculosis": r"tubercul(?:osis|ous)|tb",
        "malignancy": r"malignan(?:cy|t)|neoplas(?:m|tic)|carcinoma|cancer|tumou?rs?|metasta(?:sis|ses|tic)|lymphoma",
        "adenopathy": r"(?:lymph)?adenopathy|lymph nodes?",
        "aneurysm": r"aneurysm(?:s|al)?|dissection",
        "atherosclerosis": r"atheroscle(?:rosis|rotic)|atheromatous",
        "pulmonary hypertension": r"(?:pulmonary )?(?:arterial )?hypertension",
        "hernia": r"hernias?",
        "fracture": r"fractur(?:e|es|ed)",
        "spondylosis": r"spondyl(?:osis|otic)|arthr(?:itis|osis)|osteoarthritis|dish",
        "scoliosis": r"(?:dextro|levo)?scoli(?:osis|otic)|kypho(?:sis|tic|scoliosis)",
        "osteopenia": r"osteop(?:enia|enic|orosis)|deminerali[sz](?:ed|ation)",
        "foreign body": r"foreign bod(?:y|ies)",
        "no acute disease": r"(?:no|without|negative for) (?:\w+ )?acute (?:\w+ ){0,3}"
        r"(?:disease|process|abnormalit(?:y|ies)|findings?|disorder)|cardiopulmonary (?:disease|process|abnormality)",
    },
}  # fmt: skip

_COMPILED: Final = {
    category: {word: re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])") for word, pattern in words.items()}
    for category, words in KEY_WORDS.items()
}
_NEGATION: Final = re.compile(
    r"\b(?:no|not|without|none|never|neither|nor|negative|absent|absence|free of|clear of|cannot|excluded)\b"
)


def key_words(text: str, *, negated: bool = True) -> dict[str, frozenset[str]]:
    """Category -> the key words that a text names.

    Args:
        text: lower case, sentences closed by `` . `` (``training.scoring.protocol``).
        negated: also read sentences with a negation.
    """
    sentences = text.split(f" {END_OF_SENTENCE}")
    kept = [sentence for sentence in sentences if negated or not _NEGATION.search(sentence)]
    found = [_of_sentence(sentence) for sentence in kept]
    return {name: frozenset().union(*(one[name] for one in found)) for name in KEY_WORDS}


@lru_cache(maxsize=1 << 14)
def _of_sentence(sentence: str) -> dict[str, frozenset[str]]:
    """Cached, because reports repeat sentences; callers must not change the result."""
    return {
        category: frozenset(word for word, pattern in words.items() if pattern.search(sentence))
        for category, words in _COMPILED.items()
    }


def keyword_f1(pairs: Sequence[Pair], *, negated: bool = True) -> dict[str, Scores]:
    """Micro precision, recall and F1 of each category's key words, pooled over studies, and the mean of the four.

    Args:
        pairs: (reference, prediction), prepared.
        negated: also count key words of sentences with a negation.

    Returns:
        Category -> ``precision``, ``recall``, ``f1`` and ``support``, the number of key words in the references.
    """
    read = [tuple(key_words(text, negated=negated) for text in pair) for pair in pairs]
    table: dict[str, Scores] = {}
    for category in KEY_WORDS:
        both = [(truth[category], guess[category]) for truth, guess in read]
        hits, wrong, missed = (
            sum(map(len, sets))
            for sets in zip(*((t & g, g - t, t - g) for t, g in both), strict=True)
        )  # fmt: skip
        precision, recall, f1 = precision_recall_f1(hits, wrong, missed)
        table[category] = {"precision": precision, "recall": recall, "f1": f1, "support": float(hits + missed)}
    mean = {
        name: sum(row[name] or 0.0 for row in table.values()) / len(table) for name in ("precision", "recall", "f1")
    }
    return {**table, AVERAGE: {**mean, "support": sum(row["support"] or 0.0 for row in table.values())}}
