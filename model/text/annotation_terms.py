"""Vocabulary of the annotations: finer names of findings, sides, regions and degrees, and what joins them.

Regular expressions for one clause as `model.text.labeler` normalises it: lower case, single spaces, no commas.
"""

from __future__ import annotations

from typing import Final

# label -> (finer name, its words in the mention that the labeler read); the first that fits
CONCEPTS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "Enlarged Cardiomediastinum": (
        ("lymphadenopathy", r"adenopathy"),
        ("mediastinal mass", r"mass|opacit"),
        ("widened mediastinum", r"mediastin"),
    ),
    "Cardiomegaly": (("cardiomegaly", r"."),),
    "Lung Opacity": (
        ("scar", r"scar"),
        ("infiltrate", r"infiltrat(?!ive)"),
        ("airspace disease", r"air[ -]?space"),
        ("interstitial opacity", r"interstitial|reticul"),
        ("bronchial wall thickening", r"bronchial"),
        ("opacity", r"opaci|densit|hazi"),
    ),
    "Lung Lesion": (
        ("nodule", r"nodul"),
        ("mass", r"\bmass"),
        ("neoplasm", r"neoplas|tumou?r|carcinoma|malignanc|metasta"),
        ("lesion", r"lesion"),
    ),
    "Edema": (
        ("edema", r"edema"),
        ("vascular congestion", r"congesti"),
        ("heart failure", r"failure|chf"),
        ("volume overload", r"overload"),
    ),
    "Consolidation": (("consolidation", r"."),),
    "Pneumonia": (("pneumonia", r"pneumonia"), ("infection", r"infecti")),
    "Atelectasis": (("atelectasis", r"atelecta"), ("collapse", r"collaps")),
    "Pneumothorax": (("pneumothorax", r"."),),
    "Pleural Effusion": (("hemothorax", r"ha?emo"), ("pleural effusion", r"effusion|fluid|hydro")),
    "Pleural Other": (
        ("pleural plaque", r"plaque"),
        ("pleural calcification", r"calcif"),
        ("fibrosis", r"fibro"),
        ("pleural scar", r"scar"),
        ("pleural thickening", r"thicken"),
    ),
    "Fracture": (("fracture", r"."),),
    "Support Devices": (
        ("central line", r"picc|cvc|svc|atri|brachioceph|\b(?:central|venous|ij|subclavian|jugular) .*(?:line|cath)"),
        ("port", r"port|a-xxxx"),
        ("pacemaker", r"pac(?:er|ing|emaker)|defibrillator|icd"),
        ("tracheostomy", r"tracheostomy"),
        ("endotracheal tube", r"endotracheal|\bet tube"),
        ("chest tube", r"chest tube"),
        ("feeding tube", r"nasogastric|\bng\b|enteric|feeding|gastrostomy"),
        ("lead", r"leads"),
        ("catheter", r"catheter"),
    ),
}  # fmt: skip

# Findings outside the labels: name -> phrases.
OTHER: Final[dict[str, tuple[str, ...]]] = {
    "scoliosis": (
        r"(?:dextro|levo|kypho|roto)?-?scolio\w+",
        r"\b(?:dextro|levo)[ -]?curvature\b",
        r"\bcurvature (?:of |within )?(?:the )?(?:\w+ ){0,2}(?:spine|thoracolumbar)\b",
        r"\b(?:spine|spinal|thoracolumbar|thoracic|lumbar) curvature\b",
    ),
    "kyphosis": (r"\bkyphosis\b|\bkyphotic\b",),
    "degenerative change": (
        r"\bdegenerative (?:\w+ ){0,3}?(?:changes?|disease|disc|spondylosis)|\bdegenerati(?:on|ve)\b",
        r"\bspondylosis\b|\bspondylitic\b|\barthritis\b|\bosteoarthrit\w+|\bdjd\b",
    ),
    "osteophyte": (r"\bosteophyt\w+|\bspurring\b",),
    "granuloma": (r"\bgranulom(?:as?|ata)\b",),
    "granulomatous disease": (r"\bgranulomatous\b(?: (?:disease|process|infection|change)\w*)?",),
    "calcification": (r"\bcalcifi(?:cation|cations)\b|\bcalcified (?:\w+ )?(?:lymph ?)?nodes?\b",),
    "emphysema": (r"(?<!subcutaneous )\bemphysem\w+",),
    "copd": (r"\bcopd\b|\bchronic obstructive\b",),
    "hyperinflation": (r"\bhyper-?(?:inflat|expan|aerat|lucen)\w+|\bhyperdistend\w+",),
    "low lung volumes": (
        r"\b(?:low(?:er)?|decreased|diminished|reduced|small) (?:lung |inspiratory )?volumes?",
        r"\blung volumes are (?:\w+ )?(?:low|decreased|diminished|reduced|small)",
        r"\bhypo-?(?:inflat|expan|ventilat|aerat)\w+|\bunder[- ]?(?:inflat|expan|aerat)\w+",
    ),
    "atherosclerosis": (r"\batheroscl\w+|\batheromat\w+|\bcalcified (?:thoracic )?aort\w+|\baortic calcification\w*",),
    "tortuous aorta": (r"\btortuo\w+|\bectatic\b|\bectasia\b|\buncoil\w+|\bunfold\w+",),
    "hiatal hernia": (r"\bhiatal hernia|\bhiatus hernia",),
    "elevated diaphragm": (
        r"\b(?:elevat|rais)\w+ (?:of )?(?:the )?(?:\w+ ){0,3}?(?:hemi-?)?diaphragm\w*",
        r"\b(?:hemi-?)?diaphragm\w* (?:\w+ ){0,3}?elevat\w+",
    ),
    "flattened diaphragm": (
        r"\bflatten\w+ (?:of )?(?:the )?(?:\w+ ){0,3}?(?:hemi-?)?diaphragm\w*",
        r"\b(?:hemi-?)?diaphragm\w* (?:\w+ ){0,3}?flatten\w+",
    ),
    "eventration": (r"\beventrat\w+",),
    "blunted costophrenic angle": (
        r"\bblunt\w+ (?:[\w-]+ ){0,6}?(?:costophrenic|cp)\b(?: (?:\w+ )?(?:angle|sulc|recess)\w*)?",
        r"\b(?:costophrenic|cp) (?:[\w-]+ ){0,5}?blunt\w+",
    ),
    "osteopenia": (r"\bosteopeni\w+|\bosteoporo\w+|\bdemineraliz\w+",),
    "bronchiectasis": (r"\bbronchiecta\w+",),
    "surgical clip": (r"\bclips?\b|\bsutures?\b|\bsternotomy wires\b",),
}

UNSIDED: Final = frozenset({
    "cardiomegaly", "widened mediastinum", "mediastinal mass", "kyphosis", "degenerative change", "osteophyte",
    "atherosclerosis", "tortuous aorta", "hiatal hernia", "osteopenia", "hyperinflation", "low lung volumes",
    "heart failure", "volume overload", "endotracheal tube", "tracheostomy", "feeding tube",
})  # fmt: skip
"""Concepts of the middle, or of both lungs: no side and no region of a lung."""
UNSHARED: Final = frozenset({"elevated diaphragm", "flattened diaphragm", "eventration", "surgical clip"})
"""Concepts that share no location with other findings of their list."""
OF_BONE: Final = frozenset({"fracture", "scoliosis", "kyphosis", "degenerative change", "osteophyte", "osteopenia"})
"""Concepts whose regions are bones; those of the others are parts of the chest."""

# --- side -------------------------------------------------------------------------------------------------------------

_L: Final = r"(?:left|right|l|r)"
_MORE: Final = (
    r" ?(?:>|(?:is )?(?:slightly |much |somewhat )?(?:greater|larger|more|worse|bigger) than|-greater-than-) ?(?:the )?"
)
_OF_ELSE: Final = (
    r"(?! (?:atri\w+|ventric\w+|brachioceph\w+|innominate|main(?:[ -]?stem)?\b|"
    r"lateral (?:view|projection|decubitus|radiograph|film|image)|(?:anterior|posterior) oblique))"
)
# a side that the finding does not have: "compared to the left", "right but not left effusion", "left, not on the right"
_OTHER_SIDE: Final = "".join(
    rf"(?<!\b{words} )"
    for words in (
        *("compared to", "compared to the", "compared with the", "relative to the", "unlike the", "rather than"),
        *("not", "not the", "not on the", "not in the", "not at the", "rather than the", "rather than on the"),
    )
)
_PAIRED: Final = (
    r"(?:lungs?|sides?|bases|apices|lobes|hemithora\w+|hemi-?diaphragm\w*|hil\w+|costophrenic|pleural|upper|lower|mid\w*|"
    r"zones|fields|chest|shoulders|clavicles|lung)"
)
_LEFT: Final = _OTHER_SIDE + r"\bleft(?:ward)?(?:[ -]?sided)?\b(?! in place)" + _OF_ELSE
_RIGHT: Final = _OTHER_SIDE + r"\b(?:mid)?right(?:ward)?(?:[ -]?sided)?\b" + _OF_ELSE
SIDES: Final[tuple[tuple[str, str], ...]] = (
    ("both", rf"\bbilateral(?:ly)?\b|\bbi-?(?:basilar|basal|apical)\w*|\bboth\b(?= (?:[\w-]+ ){{0,3}}?{_PAIRED})"),
    ("both", rf"\b{_L}{_MORE}{_L}\b|\b(?:on )?either (?:side|lung|base)\b|\bboth sides\b"),
    ("left", rf"{_LEFT}|\b(?:lll|lul)\b|\blingula\w*|\blevo(?:scolio|curv|convex|[ -])\w*"),
    ("right", rf"{_RIGHT}|\b(?:rll|rul|rml)\b|\bmiddle lobe\b|\bdextro(?:scolio|curv|convex|[ -])\w*"),
)
EITHER: Final = rf"\b{_L} or (?:the )?{_L}\b"
"""One side, but not which: "nodule in the left or right base". A denied finding is on neither."""
DIRECTION: Final = (
    r"\b(?:mediastinal )?(?:shift|deviat|displac|rotat|pull|push)\w*(?: (?!due|secondary|related|adjacent)[\w-]+){0,4}?"
    rf" (?:to|towards?) (?:the )?{_L}\b|\b(?:left|right)ward\b(?! (?:\w+ )?(?:curv|convex|scolio|bow))"
    r"(?: shift of the mediastinum)?"
)
"""A side to which something moves, which is no side of a finding: "the trachea is deviated to the right"."""
PLURAL: Final = (
    r"\bbases\b|\bapices\b|\b(?:upper|lower) lobes\b|\bcostophrenic (?:angles|sulci|recesses)\b|\bhila\b|"
    r"\b(?:upper|lower|mid) (?:lungs|lung zones|zones)\b|\bperihilar regions\b|"
    r"\b(?:hemi-?)?diaphragms\b|\bthroughout the lungs\b|\bcostophrenic (?:\w+ )?are\b"
)
"""Regions that exist on both sides: "scarring in the apices"."""

# --- region -----------------------------------------------------------------------------------------------------------

_JOINED: Final = r"(?:(?: (?:and|or|to|left|right|upper|mid|middle|lower)| ?/ ?|-)*[ /-]?"
_LOBE: Final = _JOINED + r"lobes?\b)"  # after "upper", with others between: "upper and left lower lobes"
_ZONE: Final = _JOINED + r"(?:lungs?|zones?|fields?|hemithora\w+|chest|thorax)\b)"
REGIONS: Final[tuple[tuple[str, str], ...]] = (
    ("upper lobe", rf"\bupper(?={_LOBE})|\b(?:rul|lul)\b"),
    ("middle lobe", rf"\b(?:middle|mid)(?={_LOBE})|\brml\b"),
    ("lower lobe", rf"\blower(?={_LOBE})|\b(?:rll|lll)\b"),
    ("lingula", r"\blingula\w*"),
    ("upper zone", rf"\bupper(?!{_LOBE})(?={_ZONE})"),
    ("middle zone", rf"\bmid(?:dle)?\b(?!{_LOBE})(?={_ZONE})|\bmid-?(?:lungs?|zones?)\b"),
    ("lower zone", rf"\blower(?!{_LOBE})(?={_ZONE})"),
    ("base", r"\bbases?\b(?! of the (?:neck|heart|skull))|\bbi-?basilar\b|\bbi-?basal\b|\bbasilar\b|\bbasal\b"),
    ("apex", r"(?<!cardiac )\bapex\b(?! of the heart)|\bapices\b|\b(?:bi-?)?apical\b"),
    ("costophrenic angle", r"\bcostophrenic (?:\w+ )?(?:angle|sulc|recess|area)\w*|\bcp (?:angle|sulc)\w*"),
    ("cardiophrenic angle", r"\bcardiophrenic\b"),
    ("perihilar", r"\b(?:peri|supra|infra|para|juxta)-?hilar\b"),
    ("hilum", r"(?<![a-z-])hil(?:um|a|ar|us)\b"),
    ("retrocardiac", r"\bretro-?cardiac\b|\b(?:behind|posterior to) the (?:left )?heart\b"),
    ("peripheral", r"\bperipheral(?:ly)?\b|\bsubpleural\b"),
    ("fissure", r"\bfissures?\b|\bfissural\b"),
    ("paratracheal", r"\b(?:right |left )?paratracheal\b"),
    ("mediastinum", r"\bmediastin(?:um|al)\b"),
    ("aorta", r"\baort(?:a|ic)\b"),
)
BONES: Final[tuple[tuple[str, str], ...]] = (
    ("rib", r"\bribs?\b"),
    ("clavicle", r"\bclavic\w+"),
    ("thoracic spine", r"\b(?:mid)?-?(?:thoracic|dorsal)\b(?! (?:aort|inlet|cavity|wall|cage|outlet|duct))|"
                       r"\bthoracolumbar|\bt[ -]spine\b|\bt\d{1,2}\b"),
    ("lumbar spine", r"\blumbar\b|\bthoracolumbar|\bl[1-5]\b"),
    ("cervical spine", r"\bcervical\b"),
    ("spine", r"(?<!thoracic )(?<!lumbar )(?<!cervical )(?<!dorsal )(?<!\bt[ -])\bspin(?:e|al)\b|"
              r"(?<!thoracic )(?<!lumbar )(?<!cervical )\bvertebra\w*"),
    ("humerus", r"\bhumer\w+"),
    ("shoulder", r"\bshoulders?\b|\bacromioclavicular\b|\bglenohumeral\b"),
    ("scapula", r"\bscapula\w*"),
    ("sternum", r"\bstern(?:um|al)\b"),
)  # fmt: skip

# --- degree -----------------------------------------------------------------------------------------------------------

_LY: Final = r"(?:ly)?"
_SIZED: Final = r"(?:[ -]sized?)?"
# of a change or of an overlap, not of the finding: "slightly worse", "mild interval increase"
_CHANGE: Final = (
    r"(?! (?:interval|wors\w+|improve\w*|decreas\w+|larger|smaller|more|less|different|rotat\w+|"
    r"limited|bowel|prior|obscur\w+))"
)
DEGREES: Final[tuple[tuple[str, str], ...]] = (
    (
        "severe",
        rf"\b(?:moderate{_LY}[ -](?:to[ -])?)?(?:(?<!most )severe{_LY}|large{_SIZED})\b{_CHANGE}"
        rf"|(?<!more )\bmarked{_LY}\b{_CHANGE}|\b(?:massive|extensive|significant){_LY}\b{_CHANGE}"
        r"|\bgross(?:ly)?\b(?= (?:enlarged|cardiomegaly))|\bcomplete(?= (?:collapse|opacif|atelec|whiteout))"
        r"|\badvanced\b|\b(?:exaggerat|accentuat)ed(?= (?:thoracic )?kyph)",
    ),
    (
        "moderate",
        rf"\b(?:(?:mild|small){_LY}[ -](?:to[ -])?)?moderate{_LY}{_SIZED}\b(?![ -](?:to[ -])?(?:severe|large)){_CHANGE}"
        rf"|\bmedium{_SIZED}\b",
    ),
    ("minimal", rf"\bminimal{_LY}\b{_CHANGE}|\b(?:trace|tiny|trivial|minimum|very small|minute)\b"),
    (
        "mild",
        rf"\bmild{_LY}\b(?![ -](?:to[ -])?moderate){_CHANGE}|\bslight{_LY}\b{_CHANGE}|\bfaint{_LY}\b"
        rf"|\bsubtle\b|\bminor\b|(?<!very )\bsmall{_SIZED}\b(?![ -](?:to[ -])?moderate)(?! bowel)",
    ),
)

# --- what joins -------------------------------------------------------------------------------------------------------

POST: Final = (
    r"\b(?:in|at|on|of|within|along|over|near|involving|throughout|overlying|overlies|projecting|projected|about|around|"
    r"behind|under|above|below|beneath|towards?|(?<!there )(?:is|are|was|were)|appears?|remains?|bilaterally|"
    r"measur\w+|which)\b"
    rf"|\b{_L}{_MORE}{_L}\b"
)
"""After a finding: what follows describes it."""
EXPLAINS: Final = (
    r"\b(?:(?:is |are )?(?:consistent|compatible) with|represent\w*|reflect\w*|suggest\w*|likely|probabl[ey]|"
    r"possibl[ey]|may (?:be|represent|reflect)|suspicious for|suspected|concerning for|versus|vs|in keeping with|"
    r"favor\w*|xxxx|either|cannot exclude|due to|secondary to|related to|from|such as)\b"
)
"""Between a finding and its explanation, of the same location: "left basilar opacity, likely atelectasis"."""
CONNECTOR: Final = (
    r"\b(?:and|or|nor|with(?! (?:its |the |a )?(?:\w+ )?tip\b)|without|no|plus|as well as|along with|"
    r"there (?:is|are|has been|may be)|associated|adjacent)\b"
    rf"|[/¦]|{EXPLAINS}"
)
COORDINATES: Final = r"and|or|/|,|there (?:is|are|has been|may be)|xxxx"
"""Of the connectors, those with words of one phrase on both sides: "right basilar and left apical opacity"."""
_KIND: Final = (
    r"focal|acute|underlying|associated|adjacent|superimposed|overlying|pleural|subsegmental|linear|airspace|air|space|"
    r"lobar|discrete|any|chronic|patchy|streaky|plate-?like|discoid|developing|early|compressive|adjoining|residual|"
    r"accompanying|some|interstitial|pulmonary|lung|parenchymal|calcified|dense|hazy|ill-defined|new|old|stable|"
    r"persistent|increased|bandlike|passive|dependent|nodular|combination|of|its|mild|minimal|small|moderate"
)
LISTS: Final = rf"(?: |,|¦|/|\b(?:and|or|nor|with|no|{_KIND})\b|{EXPLAINS})*"
"""Between two findings that share a location: "left basilar atelectasis or infiltrate"."""
ALTERNATIVE: Final = r"\b(?:or|versus|vs)\b|/"
_OF_LOCATION: Final = (
    r"the|in|at|on|within|to|also|lungs?|lobes?|zones?|fields?|regions?|areas?|sides?|mid|portion|aspects?|medial|"
    r"lateral|anterior|posterior|inferior|superior|seen|noted|present|again|as|well|a|lesser|extent|degree|upper|lower|"
    r"middle|both|chest|wall|greater|than|more|less|bases?|angles?|predominantly|mainly|xxxx|"
    r"\d+(?:st|nd|rd|th)|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth"
)
FILLER: Final = rf"(?:{_OF_LOCATION}|{_KIND})"
"""Words of a location besides sides and regions."""
VERB: Final = (
    r"(?<!there )(?<!seen )(?<!noted )(?<!again )"
    r"\b(?:is|are|was|were|has|have|appears?|shows?|demonstrates?|remains?)\b"
)
PREDICATE: Final = r"\b(?:is|are|was|were|appears?|remains?|size|silhouette|also|now|borderline/?|/) ?$"
"""Before a degree that follows its finding: "the effusion is small"."""
FORMER: Final = r"\b(?:previously|formerly) $"
NOW: Final = r"\bnow $"
"""Before a degree of an earlier study, and of this one: "the previously large effusion is now small"."""
ADJECTIVE: Final = r"(?:nodular|interstitial|reticular|granulomatous|degenerative|emphysematous|atelectatic|infectious)"
"""A finding that describes the next one: "nodular right lower lobe opacity"."""
