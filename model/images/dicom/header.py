"""Metadata of a DICOM header: kind of object, view, body part and orientation.

Only elements with a closed vocabulary are read, and messages quote only its values, because other
header values may identify a patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from model.images.errors import ImageError
from model.types import DraftWarning, View


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WARNINGS: dict[str, str] = {  # code -> meaning; tools.api_docs writes it into docs/api.md
    "view_mismatch": "the view in the header differs from the form field",
    "not_a_chest": "the header names another body part",
    "unusual_orientation": "PatientOrientation is mirrored, rotated or upside down; the pixels were not changed",
    "fluoroscopy": "a single frame of angiography or fluoroscopy",
    "window_ignored": "the window maps all values to one grey; it was ignored and the full range of values was used",
    "voi_lut_depth": "the entries of the VOI LUT do not fit its stated bits; they were spread",
    "contradictory_polarity": "PhotometricInterpretation and PresentationLUTShape contradict each other",
}

_IMAGES = "1.2.840.10008.5.1.4.1.1."
FOR_PROCESSING = f"{_IMAGES}1.1.1"
RADIOGRAPHS = {f"{_IMAGES}{tail}" for tail in ("1", "1.1")}  # CR; DX for presentation
CAPTURES = {f"{_IMAGES}{tail}" for tail in ("7", "7.1", "7.2", "7.3", "7.4")}
_FLUOROSCOPY = {f"{_IMAGES}{tail}" for tail in ("12.1", "12.2")}
_OTHER_MODALITIES = _words(
    "AR ASMT AU BDUS BI BMD CT CTPROTOCOL CFM DMS DOC ECG EEG EMG EOG EPS ES FA FS GM IO IOL IVOCT IVUS KER KO LEN LP "
    "LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS PLAN POS PR PT PX REG RESP RTDOSE RTIMAGE RTPLAN "
    "RTRECORD RTSTRUCT RWV SEG SM SMR SR SRF STAIN TG US VA VF DD"
)

_POSITIONS = {
    **dict.fromkeys(("PA", "AP", "FRONTAL", "POSTERO_ANTERIOR", "ANTERO_POSTERIOR"), View.FRONTAL),
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"), View.LATERAL),
}
_OTHER_POSITIONS = {"RLD", "LLD", "RLO", "LLO", "RAO", "LAO", "RPO", "LPO", "OBLIQUE", "AXIAL", "DECUBITUS"}
_VIEW_CODES = {  # CID 4010, SNOMED CT and its older SNOMED RT codes
    **dict.fromkeys(("272479007", "R-40888", "R-10214", "399348003", "R-10206", "399033003", "R-10202"), View.FRONTAL),
    **dict.fromkeys(("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232"), View.LATERAL),
}
_SCHEMES = {"SCT", "SRT", "SNM3", "99SDM"}
_CHEST_CODES = {  # CID 4031: chest, thorax, its cavity, lungs, mediastinum, and regions that include the chest
    *("51185008", "T-D3000", "43799004", "T-D3200", "816094009", "39607008", "T-28000", "86598002", "72410000"),
    *("416775004", "416550000", "417437006", "416319003", "416152001"),
}
_CHEST = {"CHEST", "THORAX", "LUNG", "LUNGS", "HEART", "CHESTABDOMEN", "CHESTABDPELVIS", "CXR"}
_OTHER_PARTS = _words(
    "ABDOMEN ABDOMENPELVIS ANKLE ARM BLADDER BREAST CALCANEUS CALF CAROTID CLAVICLE COCCYX COLON CSPINE ELBOW "
    "ESOPHAGUS EXTREMITY EYE FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HIP HUMERUS JAW KIDNEY KNEE LEG "
    "LIVER LSPINE MANDIBLE MAXILLA NASAL NECK ORBIT PANCREAS PATELLA PELVIS RIB RIBS SCAPULA SHOULDER SINUS SKULL "
    "SPINE SSPINE STERNUM STOMACH TEETH THIGH THUMB TIBIA TIBIAFIBULA TMJ TOE TSPINE ULNA UTERUS WHOLEBODY WRIST ZYGOMA"
)
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_ORIENTATION = re.compile(r"[ALPRHF]{1,3}")


@dataclass(frozen=True)
class DicomMetadata:
    """The metadata of one image.

    Attributes:
        view: by ViewPosition, or else by ViewCodeSequence; None if unknown.
        position: the term, or "other", of an image that is neither frontal nor lateral.
        body_part: a part other than the chest: a defined term, or "a region other than the chest".
        orientation: PatientOrientation, the directions of rows and columns; None if missing or
            malformed.
        fluoroscopy: whether it is a frame of angiography or fluoroscopy.
        pixel_warnings: warnings about the pixels.
    """

    view: View | None
    position: str | None = None
    body_part: str | None = None
    orientation: tuple[str, str] | None = None
    fluoroscopy: bool = False
    pixel_warnings: tuple[DraftWarning, ...] = ()

    def warnings(self, sent_as: View) -> Iterator[DraftWarning]:
        """Warnings about the image, which was sent as ``sent_as``."""
        for code, words in self._problems(sent_as):
            yield DraftWarning(code, f"The {sent_as.value} image: {words}.")

    def _problems(self, sent_as: View) -> Iterator[tuple[str, str]]:
        view = self.view.value if self.view else "another projection" if self.position == "other" else self.position
        if view and view != sent_as.value:
            yield "view_mismatch", f"its DICOM header says {view}. Check that the views were not swapped"
        if self.body_part:
            yield "not_a_chest", f"its DICOM header says {self.body_part}; the model was trained on chests only"
        if self.orientation:
            row, column = self.orientation
            mirrored = row.startswith("R") and sent_as is View.FRONTAL
            if mirrored or not column.startswith("F"):
                yield (
                    "unusual_orientation",
                    (
                        f"its DICOM header says that rows run to {row} and columns to {column}, so that it "
                        f"{'is mirrored' if column.startswith('F') else 'is not upright'}; it was read unchanged"
                    ),
                )
        if self.fluoroscopy:
            yield (
                "fluoroscopy",
                "it is a frame of angiography or fluoroscopy; the model was trained on radiographs only",
            )
        for warning in self.pixel_warnings:
            yield warning.code, warning.message


def is_uid(text: str) -> bool:
    """Whether the text is a valid UID (PS3.5, section 9)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def check_kind(header: Dataset) -> None:
    """Check that the object may be a radiograph: CR, DX for presentation, secondary capture, a frame of XA or RF.

    Raises:
        ImageError: ``not_a_radiograph`` or ``for_processing``; the message names the SOP class.
    """
    uid = UID(_text(header, "SOPClassUID"))
    intent = _text(header, "PresentationIntentType").upper()
    if uid == FOR_PROCESSING or (uid in RADIOGRAPHS and intent == "FOR PROCESSING"):
        raise ImageError(
            "for_processing",
            "The DICOM object is a digital X-ray image for processing, raw detector values. "
            "Send the image for presentation of the same exposure.",
        )
    remedy = "Send a CR, DX or secondary capture image of the chest."
    if uid and uid not in RADIOGRAPHS | CAPTURES | _FLUOROSCOPY:
        name = uid.name if uid.name != uid else "an object of a non-standard class"
        raise ImageError("not_a_radiograph", f"The DICOM object is {name}, not a radiograph. {remedy}")
    modality = _text(header, "Modality").upper()
    if modality in _OTHER_MODALITIES:
        name = uid.name if uid else "object"
        raise ImageError(
            "not_a_radiograph", f"The DICOM {name} has modality {modality}; this is not a radiograph. {remedy}"
        )


def read_metadata(header: Dataset, pixel_warnings: Sequence[DraftWarning] = ()) -> DicomMetadata:
    """The metadata of a header; values outside the vocabulary become None."""
    term = _text(header, "ViewPosition").upper()
    codes = _codes(header, "ViewCodeSequence")
    view = _POSITIONS.get(term)
    position = term if term in _OTHER_POSITIONS else None
    if view is None and position is None and codes:
        view = next((_VIEW_CODES[code] for code in codes if code in _VIEW_CODES), None)
        position = None if view else "other"
    return DicomMetadata(
        view=view,
        position=position,
        body_part=_body_part(header),
        orientation=_orientation(header),
        fluoroscopy=_text(header, "SOPClassUID") in _FLUOROSCOPY or _text(header, "Modality").upper() in ("RF", "XA"),
        pixel_warnings=tuple(pixel_warnings),
    )


def _body_part(header: Dataset) -> str | None:
    term = re.sub(r"[^A-Z]", "", _text(header, "BodyPartExamined").upper())
    codes = _codes(header, "AnatomicRegionSequence")
    if term in _CHEST or _CHEST_CODES & set(codes):
        return None
    if term in _OTHER_PARTS:
        return term
    return "a region other than the chest" if codes else None


def _orientation(header: Dataset) -> tuple[str, str] | None:
    value = header.get("PatientOrientation")
    parts = [] if value is None or isinstance(value, str) else [str(part).strip().upper() for part in value]
    if len(parts) != 2 or not all(_ORIENTATION.fullmatch(part) for part in parts):
        return None
    return parts[0], parts[1]


def _codes(header: Dataset, name: str) -> list[str]:
    """SNOMED codes of a sequence."""
    items = header.get(name) or ()
    return [_text(item, "CodeValue") for item in items if _text(item, "CodingSchemeDesignator").upper() in _SCHEMES]


def _text(header: Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()
