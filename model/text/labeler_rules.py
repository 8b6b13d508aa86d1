"""Rules of the finding labeler: phrases per finding, cues of negation and doubt, and the ends of their scope.

Regular expressions for one sentence as `model.text.labeler` normalises it: lower case, single
spaces, no commas, brackets, quotes or apostrophes. Long stems have no word boundary, because
R2Gen's cleaning deletes slashes: "scarring/atelectasis" becomes "scarringatelectasis". "xxxx" is
the corpus's redaction mark.
"""

from __future__ import annotations

from typing import Final

_BE: Final = r"(?:(?:is|are|was|were|has|have|been|be|now|to be) )*"
_WIDE: Final = r"(?:widen(?:ed|ing)|wide|enlarge(?:d|ment)|prominen(?:t|ce)|fullness)"
_OUTLINE: Final = r"(?:silhouettes?|sizes?|shadow|contours?|outline)"
_SIDE: Final = r"(?:left|right)(?: lower| upper| middle)?"

# A mention: the sentence names the finding. The cues below decide its label.
PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "Enlarged Cardiomediastinum": (
        r"\b" + _WIDE + r"(?: of)?(?: the)?(?: superior| upper)? (?:cardio[ -]?)?mediastin\w+",
        r"\bmediastin(?:um|al)\b (?:(?!normal|hilar|unremarkable)[\w-]+ ){0,4}" + _WIDE + r"\b",
        r"\bcardio[ -]?mediastinal " + _OUTLINE + r" (?:is |are |appears? )?(?:\w+ly )?"
        r"(?:widened|enlarged|prominent)",
        r"\bmediastinal (?:[\w-]+ ){0,2}(?:mass(?:es)?|opacit\w+)\b",
        r"\b(?:mediastinal|hilar|paratracheal|paraspinal|retrocrural)(?: and (?:hilar|mediastinal))? "
        r"(?:lymph)?adenopathy",
    ),
    "Cardiomegaly": (
        r"cardiomegal[yi]\w*",
        r"\benlarge(?:d|ment)\b(?: of)?(?: the)? (?:heart|cardiac|cardio)",
        r"\bcardiac enlargement|\blarge heart\b",
        r"\bincreas(?:e|ed|ing) (?:in )?(?:the )?(?:size of the )?(?:heart|cardiac)\b",
    ),
    "Lung Opacity": (
        r"(?<!nodular )(?<!nodular pulmonary )opaci(?:ty|ties|fication\w*)",
        r"infiltrat(?:es?|ions?|ive)(?!\w)",
        r"air[ -]?space (?:and interstitial )?(?:disease|process|change)",
        r"scarring|\bscar(?:s|red)?(?:\b|(?=atelect))",
        r"\binterstitial (?:lung |pulmonary )?(?:mark|pattern|disease|thickening|infiltrat|change)\w*",
        r"\breticul[\w-]+ (?:pulmonary |interstitial )?(?:pattern|mark\w+|opacit\w+|densit\w+)",
        r"\b(?:hazy|patchy|streaky|basilar|bibasilar) (?:\w+ ){0,2}?densit(?:y|ies)\b",
        r"\b(?:left|right) (?:lung )?(?:base|lobe|lung) densit(?:y|ies)\b",
        r"(?<!calcified )(?<!calcific )(?<!nodular )(?<!round )\bdensit(?:y|ies) (?:in|within|at) (?:the )?"
        + _SIDE
        + r" (?:base|lung|lobe)",
        r"\bhaziness|peribronchial (?:cuffing|thickening)|bronchial wall thickening",
    ),
    "Lung Lesion": (
        r"(?<!reticulo)(?<!reticulo-)(?<!reticular-)\bnodul(?:es?|ar|arity)\b(?! contour)",
        r"\bmass(?:es|-?like)?\b|\b(?:cavitary|lung|pulmonary|parenchymal) lesions?\b",
        r"neoplas\w+|\btumou?rs?\b|\bcarcinoma|\bmalignanc(?:y|ies)\b|\bmetasta(?:sis|ses|tic disease)\b",
    ),
    "Edema": (r"(?<!soft tissue )(?<!subcutaneous )\bo?edema\b",),
    "Consolidation": (r"consolidat\w+",),
    "Pneumonia": (
        r"pneumonias?\b",
        r"(?<!granulomatous )(?<!histoplasmosis )(?<!prior )(?<!previous )(?<!old )(?<!remote )"
        r"\binfecti(?:on|ous)\b",
    ),
    "Atelectasis": (
        r"atelecta\w+",
        r"(?<!vertebral )(?<!body )\bcollapsed?\b(?! of (?:the )?(?:vertebr|t\d|l\d))",
    ),
    "Pneumothorax": (r"pneumothora(?:x|ces|xes)|\bpleural air collections?\b",),
    "Pleural Effusion": (
        r"(?<!pericardial )(?<!joint )(?<!suprapatellar )effusions?(?! of the pericard)",
        r"\bpleural fluid\b|\bfluid in the pleural\b|\bh(?:a?emo|ydro)(?:pneumo)?thora(?:x|ces)",
    ),
    "Pleural Other": (
        r"\bpleural(?:[ -]parenchymal)?(?: based)? (?:\w+ )?"
        r"(?:thickening|plaques?|scar\w*|calcifications?|opacit(?:y|ies))",
        r"\bfibrosis\b|fibrothorax",
    ),
    "Fracture": (
        r"\bfractur(?:es?|ed)\b(?! (?:of )?(?:the )?(?:superior |inferior )?(?:xxxx )?"
        r"(?:sternotomy|sternal wire|wire|lead|catheter))",
    ),
    "Support Devices": (
        r"\bcatheters?\b|\bcvc\b|\bpicc\b|\blines and tubes\b",
        r"\b(?:central|venous|ij|subclavian|jugular) (?:venous )?lines?\b",
        r"\bpacemakers?\b|\bpacer\b|\ba?icd\b|\bdefibrillator|\b(?:pacing|pacemaker|icd) wires?\b",
        r"(?<!monitor )(?<!ekg )(?<!ecg )(?<!telemetry )\bleads\b|\bstimulator\b|\btracheostomy\b",
        r"\b(?:chest|endotracheal|nasogastric|ng|et|enteric|feeding|drainage|gastrostomy) tubes?\b",
        r"\bport-?a-?cath\w*|\bxxxx-a-xxxx\b|\bmedi-?port\b|\bport (?:tip|catheter)",
        r"\b(?:chest|infusion|vascular|venous|injection) port\b",
        r"\btip\b.{0,40}\b(?:svc|cavo-?atrial|caval atrial|right atrium|superior (?:vena|xxxx)|brachioceph)",
    ),
}

# Indirect signs: absent if negated, else uncertain, never present.
HINTS: Final[dict[str, tuple[str, ...]]] = {
    "Edema": (
        r"\b(?:vascular|pulmonary|venous)(?: venous)? congesti(?:on|ve)\b",
        r"\b(?:heart|cardiac) failure\b|\bchf\b|\b(?:volume|fluid) overload\b",
    ),
}

# A statement: a subject, then a predicate in the same clause, or close before it ("normal outline of the heart").
_HEART: Final = (
    r"\bhearts?\b(?! (?:failure|disease|border|rate))"
    r"|\bcardi(?:ac|o)\b(?: and mediastinal)?(?= (?:" + _OUTLINE + r"|mediastinal|and mediastin|xxxx))"
    r"|\bcardio-?(?:pericardial|mediastinal|pulmonary)"
)
_MEDIASTINUM: Final = r"\b(?:cardio-?)?mediastin(?:um|al)\b"
_LUNGS: Final = r"\blungs?\b"
_PLEURA: Final = r"\bpleural spaces?\b|\bcostophrenic (?:angles?|sulci|xxxx|recess(?:es)?)"
_NORMAL: Final = (
    r"\bnormal(?:ly)?\b(?! (?:inflated|expanded|aerated))|unremarkable|within normal limits|non-?enlarged"
    r"|within (?:the )?limits of normal"
)
_ENLARGED: Final = r"enlarge(?:d|ment)|\blarge\b(?=$| (?:and|in|with|the|for)\b)"
_BORDERLINE: Final = (
    r"upper (?:limits?|range) (?:of )?normal|(?:high|top|upper|borderline)[ -](?:limits of )?normal"
    r"|borderline(?! (?:enlarge|cardiomeg))|prominen(?:t|ce)"
)
_CLEAR: Final = r"\bclear(?:ed)?\b(?! of\b)"
_SHARP: Final = r"\bclear\b(?! of\b)|\bsharp\b|\bnormal\b|\bunremarkable\b"
# finding, subject, label -> predicates (of two that start at one position, the first applies)
STATEMENTS: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    ("Cardiomegaly", _HEART, {"uncertain": _BORDERLINE, "present": _ENLARGED, "absent": _NORMAL}),
    ("Enlarged Cardiomediastinum", _MEDIASTINUM, {"absent": _NORMAL}),
    ("Lung Opacity", _LUNGS, {"absent": _CLEAR}),
    ("Pleural Effusion", _PLEURA, {"absent": _SHARP}),
)
# Must not occur between a subject and its predicate.
STATEMENT_STOP: Final = (
    r"\b(?:with|without|no|(?<!and )(?<!and the )lungs?|(?<!and )(?:stable|unchanged)(?! and)|"
    r"atrial|ventricular|spine|crowding|costophrenic|hemidiaphragm)\b"
)

# Ignored: no statement about presence.
NEUTRAL: Final = (
    r"\b(?:no|without)"
    r"(?: (?:definite|significant|appreciable|gross|interval|substantial|obvious|major|overall))*"
    r" (?:change|worsening|progression|increase|improvement|difference|decrease)s?\b"
    r"|\bno(?:t)? (?:significantly |appreciably |substantially )?(?:changed|increased|different|worsened)\b"
    r"|\b(?:to|and|will|until|ensure|document\w*|confirm)(?: (?:ensure|document|confirm|the|its|complete))*"
    r" (?:resolution|clearing)(?: of)?\b"
    r"|\bnot only\b|\bno prior\b|\bnot definit\w+ calcified\b|\bdifficult to differentiate\b|\bmay have\b"
)
# Starts a new statement: cues on one side do not apply to mentions on the other.
BREAK: Final = (
    r"\b(?:but|however|although|though|yet|nevertheless|nonetheless|except(?: for)?|whereas|while|"
    r"(?:other|apart|aside) (?:than|from)|"
    r"otherwise(?! (?:\w+ly )?(?:appear\w* )?(?:clear|normal|unremarkable)))\b"
)

NEGATED_BEFORE: Final = (
    r"\b(?:no|without|(?:free|clear) (?:of|from)|negative for|absence of|lack of|neither|nor|"
    r"(?:do|does|did|is|are|was|were|has|have) not(?: \w+ly)? "
    r"(?:show|demonstrate|reveal|identify|suggest|have|see|seen)\w*|"
    r"(?:resolution|clearing|disappearance|removal) of|resolved|cleared|rather than|"
    r"less (?:likely|xxxx)|unlikely|not (?:\w+ly )?(?=enlarged|widened|wide|prominent|increased))\b"
)
_SEEN: Final = (
    r"(?:seen|identified|present|visuali[sz]ed|visible|evident|appreciated|demonstrated|detected|noted|found|"
    r"apparent|observed)(?! (?:on|in) (?:the |a )?(?:prior|previous|earlier|last|frontal|lateral))"
)
NEGATED_AFTER: Final = (
    r"\b" + _BE + r"(?:(?:not|no longer|none)"
    r"(?: (?:definitely|definitively|clearly|currently|otherwise|now|been|be))* " + _SEEN + r"|"
    r"(?:is|are|was|were|been) (?:excluded|ruled out)|absent|none(?! of)|removed|cleared|unlikely|"
    r"(?<!almost completely )(?<!incompletely )resolved)\b"
)
_CANNOT: Final = r"(?:cannot|can not|could not|cant|difficult to|not)"
DOUBT_BEFORE: Final = (
    r"\b(?:may|maybe|might|could|xxxx be|possib\w+|questionable|question(?: of)?|equivocal|suspect(?:ed)?|"
    r"suspicion (?:of|for)|(?<!most )(?<!highly )concern(?:ing|ed)? (?:for|about|of)|"
    + _CANNOT
    + r"(?: \w+ly)* (?:exclude|rule out)|"
    r"rule[- ]?out|exclude|(?:limited|limits|incomplete) (?:exam for )?evaluation (?:of|for)|"
    r"(?:evaluat\w+|assess|correlat\w+) for|differential|if|whether)\b"
)
DOUBT_AFTER: Final = (
    r"\b" + _BE + r"(?:" + _CANNOT + r"(?: be| \w+ly)*"
    r" (?:excluded?|ruled out|rule out)|(?:also )?possible|suspected|questioned|in the differential|"
    r"(?:a|another) (?:possibility|consideration)|not well[- ](?:seen|visuali[sz]ed|evaluated)|"
    r"(?:may|might|could|should) (?:also )?(?:be (?:present|considered|excluded)|not be))\b"
)
# "edema versus pneumonia", "effusion or thickening": the nearest mention on either side is uncertain.
ALTERNATIVES: Final = (
    r"\b(?:versus|vs|(?<!and[/ ])(?<!right )(?<!left )(?<!upper )(?<!lower )(?<!mild )(?<!small )(?<!acute )"
    r"(?<!more )or)\b"
)

# Ends the scope of a cue to its right ("no effusion with stable cardiomegaly") ...
_WITH: Final = r"(?<!consistent )(?<!compatible )(?<!associated )with(?! or\b)"
NEGATION_STOP: Final = (
    r"\b(?:" + _WITH + r"|there (?:is|are)|is|are|was|were|has|have|remains?|due to|secondary to|"
    r"(?<!no )(?<!or )(?<!nor )(?<!any )(?<!of )(?<!for )(?<!without )(?<!acute )(?<!focal )(?<!the )"
    r"(?:stable|unchanged|persistent|continued|mild|mildly|minimal|moderate|severe|scattered|streaky|redemonstrat\w+|"
    r"(?:small|tiny|trace|large) (?:left|right|bilateral|residual)))\b"
)
DOUBT_STOP: Final = r"\b(?:" + _WITH + r"|there (?:is|are)|no|without|stable|unchanged|persistent|continued)\b"
# ... and of any cue to its left.
LEFT_STOP: Final = (
    r"\b(?:is|are|was|were|may|might|could|which|with|that|has|have|no|without|"
    r"represent\w*|reflect\w*|suggest\w*)\b"
)
