"""What OpenAPI cannot read off the handlers: the multipart body, which is parsed by hand, and problems."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.sse import format_sse_event
from pydantic import BaseModel

from service.formats.dicom_source import ExportContext
from service.formats.fhir import diagnostic_report
from service.formats.negotiation import EVENTS, FHIR, SR, TEXT
from service.formats.text import plain_text
from service.routes.export import MAX_BODY_BYTES, ExportRequest
from service.routes.streaming import EVENT_DATA, EventSequence
from service.schemas.forms import FIELDS, NUMBER_FIELDS, WORD_FIELDS
from service.schemas.models import REPORT_EXAMPLE, ReportResponse
from service.web.problems import CODES, INTERNAL_DETAIL, MEDIA_TYPE, TYPE_PREFIX

IMAGE_TYPES = "image/png, image/jpeg, application/dicom"
_PROBLEM_REF = {"$ref": "#/components/schemas/ProblemDetails"}
_EXAMPLES: dict[str, tuple[str, str | None]] = {  # code -> (detail, field)
    "malformed_multipart": ("The body ends before its last boundary. Send it again, whole.", None),
    "not_acceptable": (
        "No application/dicom can be answered: no image came as a DICOM file, so that there is no study to file it in. "
        "Ask for application/json, application/fhir+json or text/plain instead.", None
    ),
    "upload_timeout": ("The body did not arrive within 60 s. Check the connection and try again.", None),
    "upload_too_large": (
        "The file in frontal is larger than 33,554,432 bytes. Send it at a lower resolution.", "frontal"
    ),
    "not_multipart": (
        "The Content-Type is 'application/json'. Send multipart/form-data, as curl -F does.", None
    ),
    "not_json": (
        "The Content-Type is not application/json. Send the answer of POST /report as JSON.", None
    ),
    "invalid_request": ("report is not as described: missing. See ExportRequest in /openapi.json.", "report"),
    "unsupported_format": (
        "TIFF files are not read. Send a PNG, JPEG or DICOM file.", "frontal"
    ),
    "unsupported_transfer_syntax": (
        "The transfer syntax is MPEG2 Main Profile / Main Level, which is not read here. "
        "Send it uncompressed (Explicit VR Little Endian).", "frontal"
    ),
    "not_a_radiograph": (
        "The DICOM object is CT Image Storage, no radiograph. "
        "Send a CR, DX or secondary capture image of the chest.", "frontal"
    ),
    "unknown_field": (f"The field 'side' is not known. Send {', '.join(FIELDS)}.", "side"),
    "missing_image": ("Neither frontal nor lateral was sent. Send at least one of them as a file.", None),
    "too_small": (
        "The image is 1 x 1 pixels; at least 32 on each side are needed. "
        "Send the radiograph itself, not an icon or thumbnail.", "lateral"
    ),
    "unknown_value": ("stream is 'yes'. Send true or false, or leave it out.", "stream"),
    "out_of_range": ("beam_size is 9. Send a whole number from 1 to 8, or leave it out.", "beam_size"),
    "internal": (
        INTERNAL_DETAIL, None
    ),
    "loading": ("The model is being loaded; try again in a few seconds.", None),
    "unauthorized": ("This address asks for a key. Send it as Authorization: Bearer KEY or as X-API-Key: KEY.", None),
    "busy": ("Try again in a moment: all 16 slots are in use.", None),
    "deadline": (
        "The draft was not ready within 30 s (REPORT_REQUEST_TIMEOUT_S). Try again in a moment.", None
    ),
    "no_api_key": (
        "This address changes the service and answers only to a key, and none is configured. "
        "Set REPORT_API_KEY or REPORT_API_KEY_FILE and restart.", None
    ),
    "replica_lost": (
        "The process that drafted this study was lost, and so was the one after it. Try again in a moment.", None
    ),
    "cases_off": (
        "No cases can be added to this service. Set REPORT_USER_CASES_DIR to a directory for them and restart.", None
    ),
    "no_such_case": ("No reference case of this id is served. Take ids from the answers.", None),
    "case_exists": ("A case of this id is here already. Choose another, or DELETE it first.", "case_id"),
    "no_retrieval": ("The bundle that is served has no index. Serve one made with retrieval.", None),
    "case_of_bundle": ("This case belongs to the bundle. Only cases that were added can be removed.", None),
    "missing_field": ("The field findings is missing or empty. Send it.", "findings"),
    "malformed_value": (
        "The source_url is no http or https address. Send one, or leave it out.", "source_url"
    ),
    "no_known_word": (
        "The model knows no word of the findings. Send the findings of a report, in the model's language.", "findings"
    ),
    "cases_disk": (
        "The case was not added: No space left on device in REPORT_USER_CASES_DIR. Free disk space, or check the disk.",
        None,
    ),
    "reload_refused": (
        "The present bundle goes on serving: model.safetensors was altered since the bundle was written.", None
    ),
}  # fmt: skip


def problem_responses(status: int, description: str, *codes: str) -> dict[int | str, dict[str, Any]]:
    """The responses of one status that are problems, with an example of each code."""
    examples = {}
    for code in codes:
        detail, field = _EXAMPLES[code]
        value = {"type": TYPE_PREFIX + code, "title": CODES[code][1], "status": status, "detail": detail,
                 "code": code, "field": field}  # fmt: skip
        examples[code] = {"summary": CODES[code][1], "value": value}
    content = {MEDIA_TYPE: {"schema": _PROBLEM_REF, "examples": examples}}
    return {status: {"description": description, "content": content}}


def file_field(description: str) -> dict[str, Any]:
    """A form field that holds a file."""
    return {"type": "string", "format": "binary", "description": description}


def _number(name: str, description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": NUMBER_FIELDS[name], "description": description}


def _word(name: str, description: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(WORD_FIELDS[name]), "description": description}


_BODY = {
    "required": True,
    "description": "At least one of frontal and lateral. Each field at most once; other fields are refused.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "title": "ReportRequest",
                "type": "object",
                "properties": {
                    "frontal": file_field("The PA or AP radiograph: DICOM (CR, DX, secondary capture), PNG or JPEG."),
                    "lateral": file_field("The lateral radiograph, likewise."),
                    "top_k": _number("top_k", "Reference cases returned; the bundle's own number if left out."),
                    "beam_size": _number("beam_size", "Hypotheses kept while writing; the bundle's if left out."),
                    "include": _word("include", "attention: where the decoder looked, sentence by sentence."),
                    "stream": _word("stream", "true: server-sent events, see the description of this address."),
                    "refine": _word("refine", "true: also a rewritten draft, where the operator configured one."),
                },
                "anyOf": [{"required": ["frontal"]}, {"required": ["lateral"]}],
                "additionalProperties": False,
            },
            "encoding": {
                "frontal": {"contentType": IMAGE_TYPES},
                "lateral": {"contentType": IMAGE_TYPES},
            },
            "examples": {
                "both views": {
                    "summary": "curl -F frontal=@frontal.png -F lateral=@lateral.png -F top_k=3 …/report",
                    "value": {
                        "frontal": "(bytes of frontal.png)",
                        "lateral": "(bytes of lateral.png)",
                        "top_k": 3,
                    },
                },
                "DICOM": {
                    "summary": "curl -F frontal=@frontal.dcm -F lateral=@lateral.dcm …/report",
                    "value": {"frontal": "(bytes of frontal.dcm)", "lateral": "(bytes of lateral.dcm)"},
                },
                "one view": {
                    "summary": "curl -F frontal=@frontal.jpg …/report",
                    "value": {"frontal": "(bytes of frontal.jpg)"},
                },
            },
        }
    },
}


def _event(name: str, data: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{data}"}
    return {
        "type": "object",
        "properties": {
            "event": {"const": name},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": schema},
        },
        "required": ["event", "data"],
    }


_REPORT = ReportResponse.model_validate(REPORT_EXAMPLE)
_FRONTAL_ALONE = ExportContext(("frontal",))
_FORMATS: dict[str, Any] = {
    FHIR.media_type: {
        "schema": {
            "title": "DiagnosticReport",
            "description": "FHIR R4 (4.0.1). Status preliminary; no subject.",
            "externalDocs": {"url": "https://hl7.org/fhir/R4/diagnosticreport.html"},
            "type": "object",
            "properties": {"resourceType": {"const": "DiagnosticReport"}, "status": {"const": "preliminary"}},
            "required": ["resourceType", "status"],
        },
        "example": diagnostic_report(_REPORT, _FRONTAL_ALONE, datetime(2026, 3, 1, 9, 30, tzinfo=UTC)),
    },
    TEXT.media_type: {"schema": {"type": "string"}, "example": plain_text(_REPORT)},
    EVENTS.media_type: {
        "schema": {  # of each event; itemSchema came with OpenAPI 3.2
            "title": "Event",
            "description": "An event of the answer to stream=true: `cases`, then a `sentence` each, then `report`; "
            "or `problem`, where the draft fails after the first event. Comments keep the connection alive.",
            "oneOf": [_event(name, model.__name__) for name, model in EVENT_DATA.items()],
        },
        "example": b"".join(
            format_sse_event(event=name, data_str=data.model_dump_json())
            for name, data in EventSequence().on_report(_REPORT)
        ).decode(),
    },
    SR.media_type: {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": "DICOM Enhanced SR, TID 2000, where an image came as DICOM.",
        }
    },
}

UNSUPPORTED_MEDIA_RESPONSES = problem_responses(
    415,
    "The body or a file is of a kind that is not read.",
    "not_multipart",
    "unsupported_format",
    "unsupported_transfer_syntax",
)

# Arguments of the route decorators.
REPORT: dict[str, Any] = {
    "openapi_extra": {"requestBody": _BODY},
    "responses": {
        200: {
            "description": "The draft, in the format that Accept chooses; application/json by default.",
            "headers": {"Vary": {"schema": {"type": "string", "const": "Accept"}}},
            "content": _FORMATS,
        },
        **problem_responses(
            406, "No format that is offered is accepted, or no structured report can be written.", "not_acceptable"
        ),
        **problem_responses(400, "The multipart body cannot be parsed.", "malformed_multipart"),
        **problem_responses(408, "The body arrived too slowly.", "upload_timeout"),
        **problem_responses(413, "The body or a file is too large.", "upload_too_large"),
        **UNSUPPORTED_MEDIA_RESPONSES,
        **problem_responses(
            422,
            "A field is wrong; it is named.",
            "unknown_field",
            "missing_image",
            "too_small",
            "not_a_radiograph",
            "out_of_range",
            "unknown_value",
        ),
        **problem_responses(500, "The service failed on this request.", "internal"),
        **problem_responses(
            503,
            "Not ready, busy, too slow, or lost (with Retry-After).",
            "loading",
            "busy",
            "deadline",
            "replica_lost",
        ),
    },
}
EXPORT: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": f"At most {MAX_BODY_BYTES:,} bytes.",
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ExportRequest"},
                    "examples": {
                        "edited": {
                            "summary": "An answer whose findings the reader edited",
                            "value": {"report": REPORT_EXAMPLE, "findings": "No effusion.", "views": ["frontal"]},
                        }
                    },
                }
            },
        }
    },
    "responses": {
        200: {
            **REPORT["responses"][200],
            "content": {
                kind: body for kind, body in _FORMATS.items() if kind not in (SR.media_type, EVENTS.media_type)
            },
        },
        **problem_responses(406, "No format that is offered is accepted.", "not_acceptable"),
        **problem_responses(408, "The body arrived too slowly.", "upload_timeout"),
        **problem_responses(413, "The body is too large.", "upload_too_large"),
        **problem_responses(415, "The body is not JSON.", "not_json"),
        **problem_responses(422, "The body is not as described.", "invalid_request"),
        **problem_responses(503, "Busy (with Retry-After).", "busy"),
        **problem_responses(500, "The service failed on this request.", "internal"),
    },
}
PREVIEW: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "title": "PreviewRequest",
                        "type": "object",
                        "properties": {"image": file_field("A radiograph: DICOM, PNG or JPEG.")},
                        "required": ["image"],
                        "additionalProperties": False,
                    },
                    "encoding": {"image": {"contentType": IMAGE_TYPES}},
                    "examples": {
                        "DICOM": {
                            "summary": "curl -F image=@frontal.dcm …/preview",
                            "value": {"image": "(bytes of frontal.dcm)"},
                        }
                    },
                }
            },
        }
    },
    "responses": {
        200: {
            "description": "The picture.",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problem_responses(400, "The multipart body cannot be parsed.", "malformed_multipart"),
        **problem_responses(408, "The body arrived too slowly.", "upload_timeout"),
        **problem_responses(413, "The body or the file is too large.", "upload_too_large"),
        **UNSUPPORTED_MEDIA_RESPONSES,
        **problem_responses(
            422, "The image is missing or wrong.", "unknown_field", "missing_image", "too_small", "not_a_radiograph"
        ),
        **problem_responses(500, "The service failed on this request.", "internal"),
        **problem_responses(503, "Not ready, or busy (with Retry-After).", "loading", "busy"),
    },
}
HEALTH: dict[str, Any] = {"responses": problem_responses(503, "Not ready; detail says why.", "loading")}
RELOAD: dict[str, Any] = {
    "responses": {
        **problem_responses(403, "The service has no key, and this address answers only to one.", "no_api_key"),
        **problem_responses(409, "Not swapped; the present bundle goes on serving.", "reload_refused"),
        **problem_responses(503, "Not ready.", "loading"),
    },
}


def describe(app: FastAPI) -> None:
    """Add the schemas that no handler names, and say that a key is needed only where it is."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        unnamed: list[type[BaseModel]] = [*EVENT_DATA.values(), ExportRequest]
        for model in unnamed:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)  # of the answers, and there already
            schemas.setdefault(model.__name__, schema)
        _keys(document, needed=bool(app.state.keys))
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _keys(document: dict[str, Any], *, needed: bool) -> None:
    """FastAPI lists the schemes of every guarded route; without a configured key there is nothing to send."""
    if not needed:
        document["components"].pop("securitySchemes", None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if not needed:
                operation.pop("security", None)
            elif "security" in operation:
                unauthorized = problem_responses(401, "No key was sent, or a wrong one.", "unauthorized")
                unauthorized[401]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}}
                operation["responses"]["401"] = unauthorized[401]
