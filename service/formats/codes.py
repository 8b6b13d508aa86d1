"""Codes of LOINC and SNOMED CT for all formats, with their sources.

- LOINC 36643-5 and 36554-4: IHE Radiology's "Imaging Diagnostic Report" guide uses both in its
  chest X-ray examples, and Microsoft's list of LOINC procedure codes (Radiology Insights, appendix
  A) has both with these names. They include PA, AP and lateral; a code for one projection would
  claim more than the upload shows.
- SNOMED CT findings, sides, regions and degrees: `model.text.annotation_codes`. Pneumothorax, pleural
  effusion and pulmonary edema are in DICOM's dictionary (PS3.16), cardiomegaly, atelectasis and
  pneumonia in several published maps of chest findings. What has no code is written by name only; a
  wrong code is worse than none. (pydicom 3.0's dictionary gives cardiomegaly as 287272002, which is
  the enlarged septal foramen of the heart.)
- SNOMED CT present and absent: HL7's mCODE guide; uncertain: DICOM's dictionary.
- SNOMED CT finding site and laterality: DICOM's TID 300 and HL7's guide "DICOM SR to FHIR Resource
  Mapping"; severity: DICOM's dictionary.
"""

from __future__ import annotations

from typing import NamedTuple

from model.text.annotation_codes import CODES, DICOM, SNOMED, Code, code_of
from model.types import Label
from service.schemas.annotations import AnnotationOut

LOINC = "http://loinc.org"
TWO_VIEWS = Code(LOINC, "36643-5", "XR Chest 2 Views")
SINGLE_VIEW = Code(LOINC, "36554-4", "XR Chest Single view")
FINDING_CODES = CODES["finding"]
LABEL_CODES: dict[Label, Code] = {
    "present": Code(SNOMED, "52101004", "Present"),
    "absent": Code(SNOMED, "2667000", "Absent"),
    "uncertain": Code(SNOMED, "64957009", "Uncertain"),
}
FINDING = Code(DICOM, "121071", "Finding")
FINDING_SITE = Code(SNOMED, "363698007", "Finding Site")
LATERALITY = Code(SNOMED, "272741003", "Laterality")
SEVERITY = Code(SNOMED, "246112005", "Severity")


class Value(NamedTuple):
    """A concept, side, region or degree: its words, and its code where one could be verified."""

    words: str
    code: Code | None


def concept_of(annotation: AnnotationOut) -> Value | None:
    concept = annotation.narrower
    return Value(concept, code_of("concept", concept)) if concept else None


def side_of(annotation: AnnotationOut) -> Value | None:
    side = annotation.side
    return Value(side, code_of("side", side)) if side else None


def regions_of(annotation: AnnotationOut) -> list[Value]:
    return [Value(region, code_of("region", region)) for region in annotation.regions]


def degree_of(annotation: AnnotationOut) -> Value | None:
    """The degree as it was written: "small" rather than mild."""
    degree, written = annotation.degree, annotation.degree_words
    return Value(written or degree, code_of("degree_words", written) or code_of("degree", degree)) if degree else None


def study_code(views: int) -> Code:
    """The LOINC code of a chest study of one or of two views."""
    return SINGLE_VIEW if views == 1 else TWO_VIEWS
