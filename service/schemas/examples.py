"""Examples of requests, responses and problems in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from model.text.labeler import FINDINGS
from model.types import Label

DISCLAIMER = (
    "Draft for review by a radiologist. Not a diagnosis. Not a medical device. For research use only: "
    "the text may miss findings or state findings that are not there."
)
INTERNAL_DETAIL = "This request could not be answered; others are not affected. The service log says where it failed."
_NOT_MENTIONED: dict[str, Label | None] = dict.fromkeys(FINDINGS)
_TEXTS = (
    "Heart outline of ordinary width for this projection, so no cardiomegaly is read.",
    "A shallow pleural effusion fills the left angle on both views, with possible atelectasis above it.",
)
_CASE_TEXT = "Compared with the film of [redacted], the left pleural effusion has grown."


def _annotation(
    text: str, finding: str, presence: Label, words: str, sentence: int = 0, side: str | None = None
) -> dict[str, Any]:
    start = text.index(words)
    return {
        "finding": finding, "presence": presence, "side": side, "regions": [], "degree": None, "degree_words": None,
        "concept": finding.lower(), "words": words, "sentence": sentence, "start": start, "end": start + len(words),
    }  # fmt: skip


_MODEL = {
    "name": "iu-xray",
    "digest": "9f2c4e1ab0d7735c64f0e8812c9d5a3be6170f4429cd8be15a7703d2e4c1b690",
    "backbone": "densenet121",
    "image_size": 224,
    "retrieval_k": 5,
    "beam_size": 3,
    "hydrated": True,
    "trained_on": {"dataset": "openi", "split": "train"},
    "licence": "See the bundle's licence note.",
    "findings": {
        "Cardiomegaly": {"studies": 31, "called": 22, "right": 15},
        "Pleural Effusion": {"studies": 14, "called": 12, "right": 8},
        "Pneumothorax": {"studies": 2, "called": 0, "right": 0},
    },
}
REPORT_EXAMPLE: dict[str, Any] = {
    "report_id": "5b0f1c52-6f0e-4c0b-9a52-0d3f5ad1c8f7",
    "findings": " ".join(_TEXTS),
    "sentences": [
        {"text": _TEXTS[0], "confidence": 0.83, "labels": {"Cardiomegaly": "absent"}, "supported": None,
         "attention": None, "evidence": None, "show_confidence": True},
        {
            "text": _TEXTS[1],
            "confidence": 0.41,
            "labels": {"Atelectasis": "uncertain", "Pleural Effusion": "present"},
            "supported": True,
            "attention": None,
            "evidence": None,
            "show_confidence": True,
        },
    ],
    "labels": {**_NOT_MENTIONED, "Cardiomegaly": "absent", "Atelectasis": "uncertain", "Pleural Effusion": "present"},
    "annotations": [
        _annotation(" ".join(_TEXTS), "Cardiomegaly", "absent", "cardiomegaly"),
        _annotation(" ".join(_TEXTS), "Pleural Effusion", "present", "effusion fills the left", 1, "left"),
        _annotation(" ".join(_TEXTS), "Atelectasis", "uncertain", "atelectasis", 1, "left"),
    ],
    "finding_probabilities": {"Cardiomegaly": 0.07, "Pleural Effusion": 0.62},
    "not_assessed": [],
    "reference_cases": [
        {
            "rank": 1,
            "case_id": "CXR0000_IM-0000",
            "similarity": 0.71,
            "findings": _CASE_TEXT,
            "labels": {**_NOT_MENTIONED, "Pleural Effusion": "present"},
            "annotations": [
                _annotation(_CASE_TEXT, "Pleural Effusion", "present", "left pleural effusion", side="left")
            ],
            "source_url": "https://openi.nlm.nih.gov/detailedresult?img=CXR0000_IM-0000-0000",
            "images": {},
        }
    ],
    "image_checks": [{"view": "frontal", "frontal": 0.998, "unusual": 0.31}],
    "refined": None,
    "warnings": [
        {"code": "missing_view", "message": "No lateral image was given; the draft uses one view."}
    ],
    "model": _MODEL,
    "timings_ms": {
        "upload": 9.1, "images": 14.2, "queue": 0.2, "encode": 62.0, "retrieve": 0.4, "decode": 401.7,
        "total": 488.0,
    },
    "disclaimer": DISCLAIMER,
}  # fmt: skip
STUDY_REPORT_EXAMPLE: dict[str, Any] = {
    **REPORT_EXAMPLE,
    "study": {
        "study_instance_uid": "1.2.840.5",
        "images": [{"view": "frontal", "sop_instance_uid": "1.2.840.5.1.1", "series_instance_uid": "1.2.840.5.1"}],
        "left_out": [
            {
                "sop_instance_uid": "1.2.840.5.2.1",
                "series_instance_uid": "1.2.840.5.2",
                "code": "repeated_view",
                "reason": "A newer image of the same view is read instead.",
            }
        ],
        "stored": {
            "sop_instance_uid": "2.25.120872319",
            "series_instance_uid": "2.25.98273482",
            "status": "already_stored",
        },
    },
}
PRIOR_EXAMPLE: dict[str, Any] = {
    "status": "found",
    "study_date": "2026-03-01",
    "prior": {"study_instance_uid": "1.2.840.4", "study_date": "2024-11-20", "views": ["frontal", "lateral"]},
}
_ADDED_TEXT = "There is a small left pleural effusion. No pneumothorax."
CASE_EXAMPLE: dict[str, Any] = {
    "case_id": "teaching-0042",
    "findings": _ADDED_TEXT,
    "labels": {**_NOT_MENTIONED, "Pleural Effusion": "present", "Pneumothorax": "absent"},
    "annotations": [
        {
            **_annotation(_ADDED_TEXT, "Pleural Effusion", "present", "small left pleural effusion", side="left"),
            "degree": "mild",
            "degree_words": "small",
        },
        _annotation(_ADDED_TEXT, "Pneumothorax", "absent", "pneumothorax", 1),
    ],
    "source_url": "https://pacs.example.org/teaching/42",
    "images": {"frontal": "cases/teaching-0042/frontal"},
    "added": True,
}
HEALTH_EXAMPLE: dict[str, Any] = {
    "status": "ready",
    "device": "cpu",
    "bundle": {"name": "iu-xray", "digest": _MODEL["digest"], "hydrated": True},
    "cases": 2069,
    "texts": True,
    "refine": False,
    "queue": {"depth": 0, "waiting": 0, "capacity": 16},
    "model": _MODEL,
}
PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "urn:problem-type:cxr-report:unknown_field",
    "title": "Unknown field",
    "status": 422,
    "detail": "The field 'side' is not known. Send frontal, lateral, top_k, beam_size, include, stream, refine.",
    "code": "unknown_field",
    "field": "side",
}
REPORT_FORM_EXAMPLES: dict[str, Any] = {
    "both views": {
        "summary": "curl -F frontal=@frontal.png -F lateral=@lateral.png -F top_k=3 …/report",
        "value": {"frontal": "(bytes of frontal.png)", "lateral": "(bytes of lateral.png)", "top_k": 3},
    },
    "maps": {
        "summary": "curl -F frontal=@frontal.png -F include=attention,evidence …/report",
        "value": {"frontal": "(bytes of frontal.png)", "include": "attention,evidence"},
    },
    "DICOM": {
        "summary": "curl -F frontal=@frontal.dcm -F lateral=@lateral.dcm …/report",
        "value": {"frontal": "(bytes of frontal.dcm)", "lateral": "(bytes of lateral.dcm)"},
    },
    "one view": {
        "summary": "curl -F frontal=@frontal.jpg …/report",
        "value": {"frontal": "(bytes of frontal.jpg)"},
    },
}
STUDY_FORM_EXAMPLES: dict[str, Any] = {
    "store": {"summary": "curl -F store=true …/studies/1.2.840.5/report", "value": {"store": "true"}},
    "named images": {
        "summary": "curl -F frontal=1.2.840.5.1.1 …/studies/1.2.840.5/report",
        "value": {"frontal": "1.2.840.5.1.1"},
    },
}
PREVIEW_FORM_EXAMPLES: dict[str, Any] = {
    "DICOM": {"summary": "curl -F image=@frontal.dcm …/preview", "value": {"image": "(bytes of frontal.dcm)"}}
}
CASE_FORM_EXAMPLES: dict[str, Any] = {
    "with a picture": {
        "summary": "curl -F case_id=teaching-0042 -F 'findings=<report.txt' -F frontal=@pa.png …/cases",
        "value": {
            "case_id": "teaching-0042",
            "findings": "There is a small left pleural effusion. No pneumothorax.",
            "frontal": "(bytes of frontal.png)",
        },
    }
}
EXPORT_EXAMPLES: dict[str, Any] = {
    "edited": {
        "summary": "A response whose findings the reader edited",
        "value": {"report": REPORT_EXAMPLE, "findings": "No effusion.", "views": ["frontal"]},
    }
}
PROBLEM_EXAMPLES: dict[str, tuple[str, str | None]] = {  # code -> (detail, field)
    "not_found": ("No example has this file. GET /examples lists them.", None),
    "no_worklist": ("Set REPORT_WORKLIST to the file queue.sqlite of the DICOM node and restart.", None),
    "worklist_unreadable": (
        "The file of REPORT_WORKLIST cannot be read: FileNotFoundError. Check that the node has started.", None
    ),
    "malformed_multipart": ("The body ends before its last boundary. Send the whole body again.", None),
    "not_acceptable": (
        "application/dicom is not possible: no image was sent as a DICOM file, so that there is no study for it. "
        "Accept application/json, application/fhir+json or text/plain instead.", None
    ),
    "upload_timeout": ("The body did not arrive within 60 s. Check the connection and try again.", None),
    "upload_too_large": (
        "The file in frontal is larger than 33,554,432 bytes. Send it at a lower resolution.", "frontal"
    ),
    "not_multipart": (
        "The Content-Type is 'application/json'. Send multipart/form-data, as curl -F does.", None
    ),
    "not_json": (
        "The Content-Type is not application/json. Send the response of POST /report as JSON.", None
    ),
    "invalid_request": ("report does not match the schema: missing. See ExportRequest in /openapi.json.", "report"),
    "unsupported_format": (
        "TIFF files are not supported. Send a PNG, JPEG or DICOM file.", "frontal"
    ),
    "unsupported_transfer_syntax": (
        "The transfer syntax is MPEG2 Main Profile / Main Level, which is not supported. "
        "Send it uncompressed (Explicit VR Little Endian).", "frontal"
    ),
    "not_a_radiograph": (
        "The DICOM object is CT Image Storage, not a radiograph. "
        "Send a CR, DX or secondary capture image of the chest.", "frontal"
    ),
    "unknown_field": (
        "The field 'side' is not known. Send frontal, lateral, top_k, beam_size, include, stream, refine.", "side"
    ),
    "missing_image": ("Neither frontal nor lateral was sent. Send at least one of them as a file.", None),
    "too_small": (
        "The image is 1 x 1 pixels; at least 32 on each side are needed. "
        "Send the radiograph itself, not an icon or thumbnail.", "lateral"
    ),
    "too_complex": (
        "The JPEG has more than 100 scans. Save the image again, without metadata, and resend it.", "frontal"
    ),
    "unknown_value": ("stream is 'yes'. Send true or false, or leave it out.", "stream"),
    "out_of_range": ("beam_size is 9. Send a whole number from 1 to 8, or leave it out.", "beam_size"),
    "internal": (INTERNAL_DETAIL, None),
    "loading": ("The model is being loaded; try again in a few seconds.", None),
    "unauthorized": (
        "This endpoint requires an API key. Send it as Authorization: Bearer KEY or as X-API-Key: KEY.", None
    ),
    "busy": ("Try again in a moment: all 16 slots are in use.", None),
    "deadline": (
        "The draft was not ready within 30 s (REPORT_REQUEST_TIMEOUT_S). Try again in a moment.", None
    ),
    "no_api_key": (
        "This endpoint changes the service and requires an API key, but none is configured. "
        "Set REPORT_API_KEY or REPORT_API_KEY_FILE and restart.", None
    ),
    "replica_lost": (
        "The process that drafted this study was lost, and so was its replacement. Try again in a moment.", None
    ),
    "cases_off": (
        "No cases can be added to this service. Set REPORT_USER_CASES_DIR to a directory for them and restart.", None
    ),
    "no_such_case": ("There is no reference case with this id. Use an id from reference_cases of a response.", None),
    "case_exists": ("A case with this id exists already. Choose another id, or DELETE the case first.", "case_id"),
    "no_retrieval": ("The served bundle has no index. Serve a bundle with retrieval.", None),
    "case_of_bundle": ("This case belongs to the bundle. Only added cases can be removed.", None),
    "missing_field": ("The field findings is missing or empty. Send it.", "findings"),
    "malformed_value": (
        "The source_url is not an http or https address. Send one, or leave it out.", "source_url"
    ),
    "no_known_word": (
        "No word of the findings is in the vocabulary. Send a report in the model's language.", "findings"
    ),
    "cases_disk": (
        "The case was not added: No space left on device in REPORT_USER_CASES_DIR. "
        "Free disk space, check the disk, or restart the service.",
        None,
    ),
    "cross_origin": (
        "Pages of other origins may not read studies of the PACS. Call from the service's own page, or from an origin "
        "of REPORT_CORS_ORIGINS if the service has an API key.",
        None,
    ),
    "no_pacs": ("Set REPORT_DICOMWEB_URL to the DICOMweb address of the PACS and restart.", None),
    "no_such_study": ("The PACS has no study with this StudyInstanceUID. Check it.", None),
    "study_empty": (
        "None of the 3 instances of the study is a frontal or lateral chest radiograph: not_a_chest (1); "
        "not_a_radiograph (2). Send the radiographs to the PACS.",
        None,
    ),
    "study_ambiguous": (
        "2 radiographs of the study have no ViewPosition or ViewCodeSequence. "
        "Name the instances: send frontal or lateral, or both, with a SOPInstanceUID.",
        None,
    ),
    "study_too_large": ("The study has more than 1,000 instances.", None),
    "two_patients": (
        "The images of the study have 2 different values of PatientID. Correct the study in the PACS.", None
    ),
    "pacs_forbidden": (
        "The PACS refuses the service with status 401. Check REPORT_DICOMWEB_CREDENTIALS_FILE.", None
    ),
    "pacs_unreachable": (
        "The PACS cannot be reached (ConnectError). Check REPORT_DICOMWEB_URL and the log of the PACS.", None
    ),
    "pacs_broken": (
        "The answer of the PACS cannot be used: its status is 500. Check REPORT_DICOMWEB_URL and the log of the PACS.",
        None,
    ),
    "pacs_not_stored": (
        "The PACS refused the report with status 409. Check REPORT_DICOMWEB_URL and the log of the PACS.", None
    ),
    "pacs_timeout": ("The PACS did not answer within 20 s (REPORT_DICOMWEB_TIMEOUT_S). Try again.", None),
    "reload_refused": (
        "The previous bundle keeps serving: model.safetensors was altered since the bundle was written.", None
    ),
}  # fmt: skip
