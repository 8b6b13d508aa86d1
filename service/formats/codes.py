"""Codes of LOINC, SNOMED CT and HL7 for all formats, with their sources.

- LOINC 36643-5 and 36554-4: IHE Radiology's "Imaging Diagnostic Report" guide uses both in its
  chest X-ray examples, and Microsoft's list of LOINC procedure codes (Radiology Insights, appendix
  A) has both with these names. They include PA, AP and lateral; a code for one projection would
  claim more than the upload shows.
- SNOMED CT findings: pneumothorax, pleural effusion and pulmonary edema are in DICOM's
  dictionary (PS3.16), cardiomegaly, atelectasis and pneumonia in several published maps of chest
  findings. Findings without a code are written by name only; a wrong code is worse than none.
  (pydicom 3.0's dictionary gives cardiomegaly as 287272002, which is the enlarged septal foramen of
  the heart.)
- SNOMED CT present and absent: HL7's mCODE guide; uncertain: DICOM's dictionary.
"""

from __future__ import annotations

from typing import NamedTuple

from model.types import Label

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"


class Code(NamedTuple):
    """A code and its name in a code system."""

    value: str
    meaning: str


TWO_VIEWS = Code("36643-5", "XR Chest 2 Views")
SINGLE_VIEW = Code("36554-4", "XR Chest Single view")
FINDING_CODES = {
    "Cardiomegaly": Code("8186001", "Cardiomegaly"),
    "Edema": Code("19242006", "Pulmonary edema"),
    "Pneumonia": Code("233604007", "Pneumonia"),
    "Atelectasis": Code("46621007", "Atelectasis"),
    "Pneumothorax": Code("36118008", "Pneumothorax"),
    "Pleural Effusion": Code("60046008", "Pleural effusion"),
}
LABEL_CODES: dict[Label, Code] = {
    "present": Code("52101004", "Present"),
    "absent": Code("2667000", "Absent"),
    "uncertain": Code("64957009", "Uncertain"),
}


def study_code(views: int) -> Code:
    """The LOINC code of a chest study of one or of two views."""
    return SINGLE_VIEW if views == 1 else TWO_VIEWS
