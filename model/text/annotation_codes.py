"""Codes of the vocabulary of annotations: SNOMED CT, and DICOM's own where SNOMED CT has none that fits.

A name without a verified code has none, and is text only: a wrong code is worse than none. DICOM's dictionary (PS3.16,
of which pydicom carries a copy) has most of them; ``SOURCES`` says where each other code is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

SNOMED: Final = "http://snomed.info/sct"
DICOM: Final = "http://dicom.nema.org/resources/ontology/DCM"

Kind = Literal["finding", "concept", "side", "region", "degree", "degree_words"]


class Code(NamedTuple):
    """A code, its code system as FHIR names it, and its name in that system."""

    system: str
    code: str
    display: str


def _sct(code: str, display: str) -> Code:
    return Code(SNOMED, code, display)


def _dcm(code: str, display: str) -> Code:
    return Code(DICOM, code, display)


_FINDINGS: Final = {
    "Cardiomegaly": _sct("8186001", "Cardiomegaly"),
    "Edema": _sct("19242006", "Pulmonary edema"),
    "Pneumonia": _sct("233604007", "Pneumonia"),
    "Atelectasis": _sct("46621007", "Atelectasis"),
    "Pneumothorax": _sct("36118008", "Pneumothorax"),
    "Pleural Effusion": _sct("60046008", "Pleural effusion"),
}
CODES: Final[Mapping[Kind, Mapping[str, Code]]] = {
    "finding": _FINDINGS,
    "concept": {
        "cardiomegaly": _FINDINGS["Cardiomegaly"],
        "edema": _FINDINGS["Edema"],
        "pneumonia": _FINDINGS["Pneumonia"],
        "atelectasis": _FINDINGS["Atelectasis"],
        "pneumothorax": _FINDINGS["Pneumothorax"],
        "pleural effusion": _FINDINGS["Pleural Effusion"],
        "lymphadenopathy": _sct("30746006", "Lymphadenopathy"),
        "opacity": _dcm("112001", "Opacity"),
        "infiltrate": _dcm("112121", "Infiltrate"),
        "scar": _sct("12402003", "Scar"),
        "nodule": _sct("27925004", "Nodule"),
        "mass": _sct("4147007", "Mass"),
        "lesion": _sct("52988006", "Lesion"),
        "consolidation": _sct("95436008", "Lung consolidation"),
        "fracture": _sct("125605004", "Fracture of bone"),
        "central line": _dcm("112174", "Central line"),
        "port": _dcm("112172", "Portacath"),
        "pacemaker": _sct("14106009", "Cardiac pacemaker"),
        "endotracheal tube": _sct("26412008", "Endotracheal tube"),
        "chest tube": _dcm("112173", "Chest tube"),
        "feeding tube": _sct("25062003", "Feeding tube"),
        "lead": _sct("360129009", "Cardiac pacemaker lead"),
        "catheter": _sct("19923001", "Catheter"),
        "scoliosis": _sct("298382003", "Scoliosis deformity of spine"),
        "kyphosis": _sct("414564002", "Kyphosis deformity of spine"),
        "granuloma": _sct("45647009", "Granuloma"),
        "emphysema": _sct("87433001", "Pulmonary emphysema"),
        "copd": _sct("13645005", "Chronic obstructive pulmonary disease"),
        "atherosclerosis": _sct("38716007", "Atherosclerosis"),
        "hiatal hernia": _sct("84089009", "Hiatal hernia"),
        "bronchiectasis": _sct("12295008", "Bronchiectasis"),
        "surgical clip": _sct("77720000", "Clip"),
    },
    "side": {
        "left": _sct("7771000", "Left"),
        "right": _sct("24028007", "Right"),
        "both": _sct("51440002", "Right and left"),
    },
    "region": {
        "upper lobe": _sct("45653009", "Upper lobe of lung"),
        "middle lobe": _sct("72481006", "Middle lobe of right lung"),
        "lower lobe": _sct("90572001", "Lower lobe of lung"),
        "lingula": _sct("50837003", "Structure of lingula of left lung"),
        "upper zone": _sct("281392002", "Upper zone of lung"),
        "middle zone": _sct("281393007", "Middle zone of lung"),
        "lower zone": _sct("281394001", "Lower zone of lung"),
        "base": _sct("10024003", "Base of lung"),
        "apex": _sct("86598002", "Apex of lung"),
        "hilum": _sct("46750007", "Hilum of lung"),
        "peripheral": _sct("14414005", "Peripheral"),
        "mediastinum": _sct("72410000", "Mediastinum"),
        "aorta": _sct("15825003", "Aorta"),
        "rib": _sct("113197003", "Rib"),
        "clavicle": _sct("51299004", "Clavicle"),
        "thoracic spine": _sct("122495006", "Thoracic spine"),
        "lumbar spine": _sct("122496007", "Lumbar spine"),
        "cervical spine": _sct("122494005", "Cervical spine"),
        "spine": _sct("421060004", "Spine"),
        "humerus": _sct("85050009", "Humerus"),
        "shoulder": _sct("16982005", "Shoulder"),
        "scapula": _sct("79601000", "Scapula"),
        "sternum": _sct("56873002", "Sternum"),
    },
    "degree": {
        "minimal": _sct("255605001", "Minimal"),
        "mild": _sct("255604002", "Mild"),
        "moderate": _sct("6736007", "Moderate"),
        "severe": _sct("24484000", "Severe"),
    },
    "degree_words": {  # where the words have a code that is closer than that of the degree
        "small": _sct("255507004", "Small"),
        "large": _sct("255509001", "Large"),
    },
}

SOURCES: Final[Mapping[str, str]] = {
    "8186001": "published maps of chest findings (see service.formats.codes)",
    "233604007": "published maps of chest findings (see service.formats.codes)",
    "46621007": "published maps of chest findings (see service.formats.codes)",
    "95436008": "OMOP vocabulary, ancestor of pneumonia: Lung consolidation",
    "125605004": "SNOMED CT expression constraint guide: Fracture of bone",
    "298382003": "SNOMED CT: Scoliosis deformity of spine (disorder)",
    "414564002": "SNOMED CT: Kyphosis deformity of spine (disorder)",
    "45647009": "SNOMED CT: Granuloma (morphologic abnormality)",
    "87433001": "SNOMED CT: Pulmonary emphysema (disorder)",
    "13645005": "SNOMED CT: Chronic obstructive pulmonary disease (disorder)",
    "38716007": "SNOMED CT: Atherosclerosis (disorder)",
    "84089009": "SNOMED CT: Hiatal hernia (disorder)",
    "12295008": "SNOMED CT: Bronchiectasis (disorder)",
    "50837003": "SNOMED CT: Structure of lingula of left lung (body structure)",
    "10024003": "HL7 Da Vinci DME orders: Base of lung",
}
"""Source of each code that DICOM's dictionary lacks."""


def code_of(kind: Kind, name: str | None) -> Code | None:
    """The code of a name; None where it has none."""
    return CODES[kind].get(name) if name else None
