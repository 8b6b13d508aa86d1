"""What OpenAPI cannot read off the handlers of ``/cases``: the form, which is parsed by hand, paths and problems."""

from __future__ import annotations

from typing import Any

from service.openapi import IMAGE_TYPES, UNSUPPORTED_MEDIA_RESPONSES, file_field, problem_responses
from service.schemas.case_forms import CASE_ID, MAX_FINDINGS_BYTES, MAX_URL_BYTES
from service.schemas.forms import IMAGE_FIELDS


def _path(name: str, description: str, **schema: object) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", **schema},
    }


_ID = _path("case_id", "As in the answers.")
_VIEW = _path("view", "One that the case's images name.", enum=list(IMAGE_FIELDS))
_FORM = {
    "required": True,
    "description": "Each field at most once; other fields are refused.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "title": "CaseRequest",
                "type": "object",
                "properties": {
                    "case_id": {
                        "type": "string",
                        "pattern": f"^{CASE_ID}$",
                        "description": "Unlike all others; nothing that names a patient.",
                    },
                    "findings": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": MAX_FINDINGS_BYTES,
                        "description": f"The text of the report's findings, at most {MAX_FINDINGS_BYTES:,} bytes.",
                    },
                    "source_url": {
                        "type": "string",
                        "format": "uri",
                        "maxLength": MAX_URL_BYTES,
                        "description": "http or https address where the case is shown.",
                    },
                    "frontal": file_field("A radiograph, of which a small picture is kept: DICOM, PNG or JPEG."),
                    "lateral": file_field("Likewise."),
                },
                "required": ["case_id", "findings"],
                "additionalProperties": False,
            },
            "encoding": {view: {"contentType": IMAGE_TYPES} for view in IMAGE_FIELDS},
            "examples": {
                "with a picture": {
                    "summary": "curl -F case_id=teaching-0042 -F 'findings=<report.txt' -F frontal=@pa.png …/cases",
                    "value": {
                        "case_id": "teaching-0042",
                        "findings": "There is a small left pleural effusion. No pneumothorax.",
                        "frontal": "(bytes of frontal.png)",
                    },
                }
            },
        }
    },
}
_NOT_READY = problem_responses(503, "Not ready, or busy (with Retry-After).", "loading", "busy")
_OFF = problem_responses(403, "No cases are added here, or the service has no key.", "cases_off", "no_api_key")
_DISK = problem_responses(507, "The disk is full or fails.", "cases_disk")
_NO_SUCH = problem_responses(404, "No such case, or no such picture of it.", "no_such_case")
_ELSEWHERE = problem_responses(403, "The cases are held by replicas in other processes.", "cases_off")

# Arguments of the route decorators.
ADD_CASE: dict[str, Any] = {
    "openapi_extra": {"requestBody": _FORM},
    "responses": {
        201: {
            "description": "The case, as it is kept.",
            "headers": {"Location": {"description": "Of the case.", "schema": {"type": "string"}}},
        },
        **problem_responses(400, "The multipart body cannot be parsed.", "malformed_multipart"),
        **_OFF,
        **problem_responses(408, "The body arrived too slowly.", "upload_timeout"),
        **problem_responses(409, "There is such a case, or there is no index.", "case_exists", "no_retrieval"),
        **problem_responses(413, "The body or a file is too large.", "upload_too_large"),
        **UNSUPPORTED_MEDIA_RESPONSES,
        **problem_responses(
            422,
            "A field is wrong; it is named.",
            "unknown_field",
            "missing_field",
            "malformed_value",
            "no_known_word",
            "too_small",
            "not_a_radiograph",
        ),
        **_NOT_READY,
        **_DISK,
    },
}
GET_CASE: dict[str, Any] = {
    "openapi_extra": {"parameters": [_ID]},
    "responses": {**_ELSEWHERE, **_NO_SUCH, **problem_responses(503, "Not ready.", "loading")},
}
GET_PICTURE: dict[str, Any] = {
    "openapi_extra": {"parameters": [_ID, _VIEW]},
    "responses": {
        200: {
            "description": "The picture.",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        },
        **_ELSEWHERE,
        **_NO_SUCH,
        **problem_responses(503, "Not ready.", "loading"),
    },
}
REMOVE_CASE: dict[str, Any] = {
    "openapi_extra": {"parameters": [_ID]},
    "responses": {
        204: {"description": "Removed."},
        **_OFF,
        **_NO_SUCH,
        **problem_responses(409, "The case is the bundle's.", "case_of_bundle"),
        **problem_responses(503, "Not ready.", "loading"),
        **_DISK,
    },
}
