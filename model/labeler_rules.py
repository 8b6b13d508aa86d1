"""What the finding labeler knows: phrases per finding, cues of negation and doubt, and the words that end their scope.

Regular expressions over one sentence as `model.labeler` normalises it: lower case, single spaces, no commas,
brackets or quotes. Long stems carry no word boundary on purpose: the field's cleaning deletes slashes, so that
"scarring/atelectasis" arrives as "scarringatelectasis".
"""

from __future__ import annotations

from typing import Final

_WORDS: Final = r"(?:[\w-]+ )"  # one word and its space, for bounded gaps: _WORDS + "{0,3}"
_BE: Final = r"(?:(?:is|are|was|were|has|have|been|be|now|to be) )*"
_BIG: Final = r"enlarge(?:d|ment)\b"

# A mention: the sentence names the finding. Whether it is there is for the cues below to say.
PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "Enlarged Cardiomediastinum": (
        r"\b(?:widen(?:ed|ing)|wide|enlarge(?:d|ment)|prominen(?:t|ce)|fullness)(?: of)?(?: the)?(?: superior| upper)? "
        r"(?:cardio[ -]?)?mediastin\w+",
        r"\bmediastin(?:um|al)\b (?:(?!normal|hilar|unremarkable)[\w-]+ ){0,4}(?:widen(?:ed|ing)|wide|enlarge(?:d|ment)|prominen(?:t|ce)|fullness)\b",
        r"\bcardio[ -]?mediastinal (?:silhouettes?|contours?|size) (?:is |are |appears? )?(?:\w+ly )?(?:widened|enlarged|prominent)",
        r"\bmediastinal " + _WORDS + r"{0,2}(?:mass(?:es)?|opacit\w+)\b",
        r"\b(?:mediastinal|hilar|paratracheal|paraspinal|retrocrural)(?: and (?:hilar|mediastinal))? (?:lymph)?adenopathy",
    ),
    "Cardiomegaly": (
        r"cardiomegal[yi]\w*",
        r"\b" + _BIG + r"(?: of)?(?: the)? (?:heart|cardiac|cardio)",
        r"\bcardiac enlargement",
        r"\bincreas(?:e|ed|ing) (?:in )?(?:the )?(?:size of the )?(?:heart|cardiac)(?: silhouette)?(?: size)?",
        r"\blarge heart\b",
    ),
    "Lung Opacity": (
        r"(?<!nodular )(?<!nodular pulmonary )opaci(?:ty|ties|fication\w*)",
        r"infiltrat(?:es?|ions?|ive)(?!\w)",
        r"air[ -]?space (?:and interstitial )?(?:disease|process|change)",
        r"\bscar(?:s|red|ring)?(?:\b|(?=atelect))",
        r"\binterstitial (?:lung |pulmonary )?(?:mark|pattern|disease|thickening|infiltrat|change)\w*",
        r"\b(?:reticul\w+|reticulonodular) (?:pattern|mark\w+)",
        r"\b(?:prominent|increased) (?:\w+ )?interstitial markings",
        r"\b(?:hazy|patchy|streaky|basilar|bibasilar) densit(?:y|ies)\b",
        r"\bdensit(?:y|ies) (?:in|within|at) (?:the )?(?:left|right)(?: lower| upper| middle)? (?:base|lung|lobe)",
        r"\bhaziness",
        r"peribronchial (?:cuffing|thickening)|bronchial wall thickening",
    ),
    "Lung Lesion": (
        r"(?<!reticulo)(?<!reticulo-)(?<!reticular-)\bnodul(?:es?|ar|arity)\b(?! contour)",
        r"\bmass(?:es)?\b",
        r"\bmass-?like\b",
        r"\bcavitary lesions?\b|\b(?:lung|pulmonary|parenchymal) lesions?\b",
        r"neoplas\w+|\btumou?rs?\b|\bcarcinoma|\bmalignanc(?:y|ies)\b|\bmetasta(?:sis|ses|tic disease)\b",
    ),
    "Edema": (r"(?<!soft tissue )(?<!subcutaneous )\bo?edema\b",),
    "Consolidation": (r"consolidat\w+",),
    "Pneumonia": (
        r"(?<!broncho)pneumonias?\b|bronchopneumonia",
        r"(?<!granulomatous )\binfecti(?:on|ous)\b(?! or inflammatory arthr)",
    ),
    "Atelectasis": (r"atelecta\w+", r"(?<!vertebral )(?<!body )\bcollapsed?\b(?! of (?:the )?(?:vertebr|t\d|l\d))"),
    "Pneumothorax": (r"pneumothora(?:x|ces|xes)",),
    "Pleural Effusion": (
        r"(?<!pericardial )\beffusions?\b(?! of the pericard)",
        r"\bpleural fluid\b|\bfluid in the pleural\b|\bh(?:a?emo|ydro)(?:pneumo)?thora(?:x|ces)",
    ),
    "Pleural Other": (
        r"\bpleural(?: parenchymal|-parenchymal)?(?: based)? (?:\w+ )?(?:thickening|plaques?|scar\w*|calcifications?|opacit(?:y|ies))\b",
        r"\bfibrosis\b|fibrothorax",
    ),
    "Fracture": (r"\bfractur(?:es?|ed)\b(?! (?:xxxx )?(?:sternotomy|sternal wire|wire|lead|catheter))",),
    "Support Devices": (
        r"\bcatheters?\b|\bcvc\b|\bpicc\b|\b(?:central|venous|picc|ij|subclavian|jugular) (?:venous )?lines?\b|\blines and tubes\b",
        r"\bpacemakers?\b|\bpacer\b|\bicd\b|\baicd\b|\bdefibrillator|\b(?:pacing|pacemaker|icd) (?:leads?|wires?)",
        r"\b(?:chest|endotracheal|tracheostomy|nasogastric|ng|et|enteric|feeding|drainage|gastrostomy) tubes?\b",
        r"\bport-?a-?cath\w*|\bmedi-?port\b|\b(?:chest|infusion|vascular|venous|injection) port\b|\bport (?:tip|catheter)",
        r"\btracheostomy\b|\bstimulator\b|\bstents?\b|\bpumps?\b",
    ),
}

# A statement: a subject, then a predicate in the same clause, or close before it ("normal heart size").
HEART: Final = (
    r"\bhearts?\b(?! (?:failure|disease|border|rate))"
    r"|\bcardi(?:ac|o)\b(?: and mediastinal)?(?= (?:silhouettes?|sizes?|shadow|contours?|outline|mediastinal|and mediastin|xxxx))"
    r"|\bcardio-?(?:pericardial|mediastinal) ?(?=silhouettes?|sizes?|shadow|contours?|outline|structures)?"
)
MEDIASTINUM: Final = r"\bmediastin(?:um|al)\b|\bcardio-?mediastin(?:um|al)\b"
LUNGS: Final = r"\blungs?\b(?: fields?| bases?)?|\blung fields?\b"
PLEURA: Final = r"\bpleural spaces?\b|\bcostophrenic (?:angles?|sulci|xxxx|recess(?:es)?)"
NORMAL: Final = r"normal(?:ly)?\b(?! (?:inflated|expanded|aerated))|unremarkable|within normal limits|within (?:the )?limits of normal|non-?enlarged"
ENLARGED: Final = r"enlarge(?:d|ment)|widen(?:ed|ing)|\blarge\b"
BORDERLINE: Final = r"(?:at |in )?(?:the )?upper (?:limits?|range) (?:of )?normal|(?:high|top|upper|borderline)[ -](?:limits of )?normal|borderline(?! (?:enlarge|cardiomeg))|prominen(?:t|ce)"
CLEAR: Final = r"\bclear(?:ed)?\b(?! of\b)"
SHARP: Final = r"\bclear\b(?! of\b)|\bsharp\b|\bnormal\b|\bunremarkable\b"
# subject, (findings it speaks of), predicate -> label; an earlier predicate is read before a later one
STATEMENTS: Final[tuple[tuple[tuple[str, ...], str, tuple[tuple[str, str], ...]], ...]] = (
    (("Cardiomegaly",), HEART, (("uncertain", BORDERLINE), ("present", ENLARGED), ("absent", NORMAL))),
    (("Enlarged Cardiomediastinum",), MEDIASTINUM, (("absent", NORMAL),)),
    (("Lung Opacity",), LUNGS, (("absent", CLEAR),)),
    (("Pleural Effusion",), PLEURA, (("absent", SHARP),)),
)
# What may not lie between a subject and its predicate.
STATEMENT_STOP: Final = r"\b(?:with|without|no|(?<!and )(?<!and the )lungs?|stable|aort\w+|bon[ye]\w*|osseous|spine|vascular crowding|costophrenic|hemidiaphragm)\b"

# Read as if they said nothing about presence.
NEUTRAL: Final = (
    r"\b(?:no|without)(?: (?:definite|significant|appreciable|gross|large|interval|substantial|acute|obvious|major|overall))*"
    r" (?:change|worsening|progression|increase|improvement|difference|decrease)s?\b"
    r"|\bno(?:t)? (?:significantly |appreciably |substantially )?(?:changed|increased|different|worsened)\b"
    r"|\b(?:to|and|will|until|ensure|document\w*|confirm)(?: (?:ensure|document|confirm|the|its|complete))* (?:resolution|clearing)(?: of)?\b"
    r"|\bnot only\b|\bno prior\b|\bnot definit\w+ calcified\b|\bdifficult to differentiate\b|\bmay (?:not )?have\b"
)
# A new statement begins: cues before it say nothing about mentions after it.
BREAK: Final = (
    r"\b(?:but|however|although|though|yet|nevertheless|nonetheless|except(?: for)?|otherwise|"
    r"(?:other|apart|aside) (?:than|from)|whereas|while)\b"
)
NEGATED_BEFORE: Final = (
    r"\b(?:no|without|(?:free|clear) (?:of|from)|negative for|absence of|lack of|neither|nor|"
    r"(?:do|does|did|is|are|was|were|has|have) not(?: \w+ly)? (?:show|demonstrate|reveal|identify|suggest|have|see|seen)\w*|"
    r"(?:resolution|clearing|disappearance|removal) of|resolved|cleared|rather than|less (?:likely|xxxx)|unlikely)\b"
)
NEGATED_AFTER: Final = (
    r"\b" + _BE + r"(?:(?:not|no longer|none)(?: (?:definitely|clearly|currently|otherwise|now|been|be|radiographically|definitively))*"
    r" (?:seen|identified|present|visuali[sz]ed|visible|evident|appreciated|demonstrated|detected|noted|found|apparent|"
    r"observed)(?! (?:on|in) (?:the |a )?(?:prior|previous|earlier|last|frontal|lateral))|"
    r"absent|(?<!not )(?:excluded|ruled out)|cleared|(?<!almost completely )(?<!incompletely )resolved|unlikely)\b"
)
DOUBT_BEFORE: Final = (
    r"\b(?:may|maybe|might|could|xxxx be|possib\w+|questionable|question(?: of)?|equivocal|suspect(?:ed)?|suspicion (?:of|for)|"
    r"(?<!most )(?<!highly )concern(?:ing|ed)? (?:for|about|of)|"
    r"(?:cannot|can not|can't|difficult to|not)(?: be)?(?: entirely| completely| definitively)? (?:exclude|rule out)d?|"
    r"rule[- ]?out|to exclude|exclude|evaluat\w+ for|assess for|differential|if|whether|nonspecific|correlat\w+ for)\b"
)
DOUBT_AFTER: Final = (
    r"\b" + _BE + r"(?:(?:cannot|can not|could not|can't|not|difficult to)(?: be)?(?: entirely| completely| definitively| definitely)?"
    r" (?:excluded?|ruled out|rule out)|also possible|possible|suspected|questioned|(?:a|another) (?:possibility|consideration)|"
    r"in the differential|not well[- ](?:seen|visuali[sz]ed|evaluated)|"
    r"(?:may|might|could|should) (?:also )?(?:be (?:present|considered|excluded)|not be))\b"
)
# "atelectasis versus infiltrate", "effusion or thickening": both sides are in doubt, the nearest mention each.
ALTERNATIVES: Final = (
    r"\b(?:versus|vs|(?<!and/)(?<!right )(?<!left )(?<!upper )(?<!lower )(?<!mild )(?<!small )(?<!acute )(?<!more )or)\b"
)
# Ends the reach of a cue to its right ("no effusion with stable cardiomegaly") ...
NEGATION_STOP: Final = (
    r"\b(?:with(?! or\b)|there (?:is|are)|is|are|was|were|has|have|remains?|due to|secondary to|"
    r"(?<!no )(?<!or )(?<!nor )(?<!any )(?<!of )(?<!for )(?<!without )(?<!acute )(?<!focal )"
    r"(?:stable|unchanged|persistent|continued|mild|mildly|minimal|moderate|severe|scattered|streaky|redemonstrat\w+))\b"
)
DOUBT_STOP: Final = r"\b(?:with(?! or\b)|there (?:is|are)|no|without|stable|unchanged|persistent|continued)\b"
# ... and to its left.
LEFT_STOP: Final = r"\b(?:is|are|was|were|may|might|could|which|with|that|has|have|represent\w*|reflect\w*|suggest\w*|no|without)\b"
