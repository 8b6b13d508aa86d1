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
        ("port", r"port"),
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
    "scoliosis": (r"(?:dextro|levo|kypho)?scolio\w+", r"\bcurvature of the (?:thoracic |lumbar )?spine\b"),
    "kyphosis": (r"\bkyphosis\b|\bkyphotic\b",),
    "degenerative change": (
        r"\bdegenerative (?:\w+ ){0,3}?(?:changes?|disease|disc|spondylosis)|\bdegenerati(?:on|ve)\b",
        r"\bspondylosis\b|\bspondylitic\b|\barthritis\b|\bosteoarthrit\w+|\bdjd\b",
    ),
    "osteophyte": (r"\bosteophyt\w+|\bspurring\b",),
    "granuloma": (r"\bgranulom\w+(?! disease)",),
    "granulomatous disease": (r"\bgranulomatous (?:disease|process|infection|change)\w*",),
    "calcification": (r"\bcalcifi(?:cation|cations)\b|\bcalcified (?:\w+ )?(?:lymph ?)?nodes?\b",),
    "emphysema": (r"(?<!subcutaneous )\bemphysem\w+",),
    "copd": (r"\bcopd\b|\bchronic obstructive\b",),
    "hyperinflation": (r"\bhyper-?(?:inflat|expan|aerat|lucen)\w+|\bhyperdistend\w+",),
    "low lung volumes": (
        r"\blow (?:lung|inspiratory) volumes?|\blung volumes are (?:\w+ )?low",
        r"\bhypo-?(?:inflat|expan|ventilat|aerat)\w+",
    ),
    "atherosclerosis": (r"\batheroscl\w+|\batheromat\w+|\bcalcified (?:thoracic )?aort\w+|\baortic calcification\w*",),
    "tortuous aorta": (r"\btortuo\w+|\bectatic\b|\bectasia\b|\buncoil\w+",),
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
        r"\bblunt\w+ (?:of )?(?:the )?(?:[\w-]+ ){0,5}?(?:costophrenic|cp|phrenic) (?:\w+ )?(?:angle|sulc|recess)\w*",
        r"\b(?:costophrenic|cp|phrenic) (?:\w+ )?(?:angle|sulc|recess)\w* (?:[\w-]+ ){0,5}?blunt\w+",
    ),
    "osteopenia": (r"\bosteopeni\w+|\bosteoporo\w+|\bdemineraliz\w+",),
    "bronchiectasis": (r"\bbronchiecta\w+",),
    "surgical clip": (r"\bclips?\b|\bsutures?\b|\bsternotomy wires\b",),
}

UNSIDED: Final = frozenset({
    "cardiomegaly", "widened mediastinum", "mediastinal mass", "kyphosis", "degenerative change", "osteophyte",
    "atherosclerosis", "tortuous aorta", "hiatal hernia", "osteopenia", "hyperinflation", "low lung volumes",
    "heart failure", "volume overload",
})  # fmt: skip
"""Concepts of organs in the middle, or of both lungs: no side and no region of a lung."""
OF_BONE: Final = frozenset({"fracture", "scoliosis", "kyphosis", "degenerative change", "osteophyte", "osteopenia"})
"""Concepts whose regions are bones; those of the others are parts of the chest."""

# --- side -------------------------------------------------------------------------------------------------------------

_L: Final = r"(?:left|right|l|r)"
_MORE: Final = (
    r" ?(?:>|(?:is )?(?:slightly |much |somewhat )?(?:greater|larger|more|worse|bigger) than|-greater-than-) ?(?:the )?"
)
_OF_ELSE: Final = r"(?! (?:atri\w+|ventric\w+|main\b|lateral\b|(?:anterior|posterior) oblique))"
_PAIRED: Final = (
    r"(?:lungs?|sides?|bases|apices|lobes|hemithora\w+|hemi-?diaphragm\w*|hil\w+|costophrenic|pleural|upper|lower|mid\w*|"
    r"zones|fields|chest|shoulders|clavicles|lung)"
)
_LEFT: Final = r"\bleft(?:ward)?(?:[ -]?sided)?\b(?! in place)" + _OF_ELSE
_RIGHT: Final = r"\bright(?:ward)?(?:[ -]?sided)?\b" + _OF_ELSE
SIDES: Final[tuple[tuple[str, str], ...]] = (
    ("both", rf"\bbilateral(?:ly)?\b|\bbi-?(?:basilar|basal|apical)\w*|\bboth\b(?= (?:[\w-]+ ){{0,3}}?{_PAIRED})"),
    ("both", rf"\b{_L}{_MORE}{_L}\b|\b(?:on )?either (?:side|lung|base)\b|\bboth sides\b"),
    ("left", rf"{_LEFT}|\b(?:lll|lul)\b|\blingula\w*|\blevoscolio\w+|\blevoconvex\b"),
    ("right", rf"{_RIGHT}|\b(?:rll|rul|rml)\b|\bmiddle lobe\b|\bdextroscolio\w+|\bdextroconvex\b"),
)
PLURAL: Final = (
    r"\bbases\b|\bapices\b|\b(?:upper|lower) lobes\b|\bcostophrenic (?:angles|sulci|recesses)\b|\bhila\b|"
    r"\b(?:upper|lower|mid) (?:lungs|lung zones|zones)\b|\bperihilar regions\b"
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
    ("perihilar", r"\b(?:peri|supra|infra|para)-?hilar\b"),
    ("hilum", r"(?<![a-z-])hil(?:um|a|ar|us)\b"),
    ("retrocardiac", r"\bretro-?cardiac\b|\bbehind the heart\b"),
    ("peripheral", r"\bperipheral(?:ly)?\b|\bsubpleural\b"),
    ("fissure", r"\bfissures?\b|\bfissural\b"),
    ("paratracheal", r"\b(?:right |left )?paratracheal\b"),
    ("mediastinum", r"\bmediastin(?:um|al)\b"),
    ("aorta", r"\baort(?:a|ic)\b"),
)
BONES: Final[tuple[tuple[str, str], ...]] = (
    ("rib", r"\bribs?\b"),
    ("clavicle", r"\bclavic\w+"),
    ("thoracic spine", r"\bthoracic (?:spine|vertebra\w*|spondylosis|spinal|disc|scoliosis|kyphosis|degenerative)"
                       r"|\bdorsal spine|\bthoracolumbar|"
                       r"\bt-spine\b|\bt\d{1,2}\b|\b(?:mid|lower|upper) thoracic\b"),
    ("lumbar spine", r"\blumbar\b|\bthoracolumbar|\bl[1-5]\b"),
    ("cervical spine", r"\bcervical\b"),
    ("spine", r"(?<!thoracic )(?<!lumbar )(?<!cervical )(?<!dorsal )\bspin(?:e|al)\b|\bvertebra\w*"),
    ("humerus", r"\bhumer\w+"),
    ("shoulder", r"\bshoulders?\b|\bacromioclavicular\b|\bglenohumeral\b"),
    ("scapula", r"\bscapula\w*"),
    ("sternum", r"\bstern(?:um|al)\b"),
)  # fmt: skip

# --- degree -----------------------------------------------------------------------------------------------------------

DEGREES: Final[tuple[tuple[str, str], ...]] = (
    ("severe", r"\b(?:moderate(?:ly)?[ -](?:to[ -])?)?(?:severe(?:ly)?|large)(?:[ -]sized)?\b|"
               r"\bmarked(?:ly)?\b|\bmassive(?:ly)?\b|\bextensive(?:ly)?\b|"
               r"\bgross(?:ly)?\b(?= (?:enlarged|cardiomegaly))"),
    ("moderate", r"\b(?:(?:mild|small)(?:ly)?[ -](?:to[ -])?)?moderate(?:ly)?(?:[ -]sized?)?\b"
                 r"(?![ -](?:to[ -])?(?:severe|large))|\bmedium(?:[ -]sized)?\b"),
    ("minimal", r"\bminimal(?:ly)?\b|\btrace\b|\btiny\b|\btrivial\b|\bminimum\b|\bvery small\b|\bminute\b"),
    ("mild", r"\bmild(?:ly)?\b(?![ -](?:to[ -])?moderate)|\bslight(?:ly)?\b|"
             r"(?<!very )\bsmall(?:[ -]sized)?\b(?![ -](?:to[ -])?moderate)(?! bowel)|"
             r"\bsubtle\b|\bfaint(?:ly)?\b|\bminor\b"),
)  # fmt: skip

# --- what joins -------------------------------------------------------------------------------------------------------

POST: Final = (
    r"\b(?:in|at|on|of|within|along|over|near|involving|throughout|overlying|overlies|adjacent|projecting|projected|about|"
    r"around|behind|under|above|below|beneath|towards?|(?<!there )(?:is|are|was|were)|appears?|remains?|bilaterally|"
    r"measur\w+|which)\b"
    rf"|\b{_L}{_MORE}{_L}\b"
)
"""After a finding: what follows describes it."""
CONNECTOR: Final = (
    r"\b(?:and|or|nor|with|without|versus|vs|no|plus|as well as|along with|there (?:is|are|has been|may be)|"
    r"consistent with|compatible with|represent\w*|reflect\w*|suggest\w*|due to|secondary to|likely|probably|possibly|"
    r"may (?:be|represent|reflect)|related to|associated|adjacent|suspicious for|concerning for)\b|[/¦]"
)
EXPLAINS: Final = (
    r"\b(?:consistent with|compatible with|represent\w*|reflect\w*|suggest\w*|due to|secondary to|likely|probably|"
    r"possibly|may (?:be|represent|reflect)|related to|suspicious for|suspected|concerning for|versus|vs|or|"
    r"cannot exclude|in keeping with|from|such as|relat\w+)\b|/"
)
"""Between a finding and its explanation, of the same location: "left basilar opacity, likely atelectasis"."""
LISTS: Final = (
    r"(?: |,|¦|/|\b(?:and|or|nor|versus|vs|focal|acute|underlying|associated|adjacent|superimposed|overlying|pleural|"
    r"subsegmental|linear|airspace|lobar|discrete|any|possible|chronic|patchy|streaky|plate-?like|discoid|developing|early|"
    r"compressive|with|adjoining|accompanying|some|interstitial|pulmonary|lung|parenchymal|mild|minimal|small|no)\b)*"
)
"""Between two findings that share a location: "left basilar atelectasis or infiltrate"."""
VERB: Final = (
    r"(?<!there )(?<!seen )(?<!noted )(?<!again )"
    r"\b(?:is|are|was|were|has|have|appears?|shows?|demonstrates?|remains?)\b"
)
CLAUSE: Final = rf"\bthere (?:is|are|has been)\b|{VERB}"
LOCATES: Final = r"^\W*(?:in|within|at|on|over|along|overlying|near|projecting|throughout)\b"
"""Starts a location before its finding: "in the right upper lobe there is a nodule"."""
