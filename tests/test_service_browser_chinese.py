"""The page in a real browser, in Chinese: errors and warnings of the service with their values in place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from model.calibration import ood
from model.calibration.sentence_confidence import unsupported
from model.images import ImageLimits, read_image
from model.types import View
from service.inference.admission import BusyError
from service.schemas.examples import PROBLEM_EXAMPLES
from tests.support.dicom import dicom, film, png, refused
from tests.support.hostile_images import exif_jpeg, progressive_jpeg

if TYPE_CHECKING:
    from playwright.sync_api import Page

CT = "1.2.840.10008.5.1.4.1.1.2"
FILM = dicom(film(), stored=12)
ON_THE_PAGE = [  # codes of problems that a reader of the page can meet
    *("upload_timeout", "upload_too_large", "unsupported_format", "unsupported_transfer_syntax", "not_a_radiograph"),
    *("missing_image", "too_small", "too_complex", "out_of_range", "internal", "loading", "busy", "deadline"),
    *("replica_lost", "no_pacs", "no_such_study", "study_empty", "study_ambiguous", "study_too_large", "two_patients"),
    *("pacs_forbidden", "pacs_unreachable", "pacs_broken", "pacs_not_stored", "pacs_timeout"),
]
LATIN = re.compile(r"[a-z]{3,}|[A-Za-z]{4,} [A-Za-z]{2,}")
TERMS = re.compile(  # names that Chinese text keeps
    r"\b(?:DICOMweb|DICOM|JPEG|PNG|EXIF|FOR (?:PRESENTATION|PROCESSING)|Explicit VR Little Endian|MPEG2.*?Level|"
    r"\w+_\w+|KiB|\w*[a-z][A-Z]\w*)"
)


def messages() -> list[str]:
    """Real messages of the service: refused images, warnings of headers and checks, examples of problems."""
    images = [
        b"", b"GIF89a" + bytes(90), b"neither image nor DICOM" * 9, png(np.zeros((9, 8), np.uint8)),
        png(film(bits=8))[:100], exif_jpeg(2000), progressive_jpeg(64, 101), FILM[:200], FILM[:-900],
        dicom(film(), PresentationIntentType="FOR PROCESSING"), dicom(film(), sop_class=CT),
        dicom(film(), Modality="MR"), dicom(film(), NumberOfFrames=3), dicom(film(), RescaleSlope=0),
        dicom(film(), photometric="YBR_ICT"), dicom(film(), Rows=90), dicom(film(), BitsAllocated=64),
        dicom(film(), HighBit=2),
    ]  # fmt: skip
    errors = [refused(data) for data in images]
    errors.append(refused(FILM, ImageLimits(max_pixels=1000)))
    headers = [
        {"ViewPosition": "LL"}, {"ViewPosition": "LLO"}, {"BodyPartExamined": "HAND"},
        {"PatientOrientation": ["R", "F"]}, {"PatientOrientation": ["L", "H"]}, {"Modality": "RF"},
        {"PresentationLUTShape": "INVERSE"}, {"WindowCenter": -9000, "WindowWidth": 2},
    ]  # fmt: skip
    warnings = [ood._SWAPPED, ood._corrected(View.LATERAL), ood._same(View.FRONTAL), ood._unusual(View.LATERAL)]
    warnings += [unsupported(1), unsupported(3)]
    for tags in headers:
        found = read_image(dicom(film(), stored=12, **tags), 64).warnings(View.FRONTAL)
        assert found, tags
        warnings += found
    examples = [PROBLEM_EXAMPLES[code][0] for code in ON_THE_PAGE]
    return [str(error) for error in errors] + [warning.message for warning in warnings] + examples


def test_messages_are_chinese_with_the_values_of_the_english_text(page: Page) -> None:
    assert BusyError("all 16 slots are in use").detail == PROBLEM_EXAMPLES["busy"][0]
    english = messages()
    chinese = page.evaluate(
        "(texts) => import('/static/messages.zh.js').then((m) => texts.map((text) => m.translated(text)))", english
    )
    for message, text in zip(english, chinese, strict=True):
        assert text, message
        assert not LATIN.search(TERMS.sub("", text)), (message, text)
        values = re.findall(r"\d[\d,.]*\d|\d", message.split(" Export ")[0])
        for value in values:
            assert value in text or value in ("8", "16", "10") or "MPEG2" in message, (message, text)


def test_unknown_message_keeps_its_english_text_after_the_remedy(page: Page) -> None:
    page.select_option("#language", "zh-Hans")
    words = page.evaluate(
        """() => import('/static/i18n.js').then((m) =>
             m.problemWords({code: "too_small", title: "Too small", detail: "A text that is new. Try again."}))"""
    )
    assert words["title"] == "图像太小"
    assert words["detail"] == "请发送胸片原图\uff0c而不是缩略图。\uff08A text that is new. Try again.\uff09"
    page.select_option("#language", "en")
