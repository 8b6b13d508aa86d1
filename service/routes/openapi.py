"""OpenAPI parts that FastAPI cannot derive: request bodies, problems, formats and keys."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from service.formats.dicom_source import ExportContext
from service.formats.fhir import diagnostic_report
from service.formats.negotiation import EVENTS, FHIR, SR, TEXT
from service.formats.text import plain_text
from service.routes.streaming import EventSequence
from service.schemas.events import EVENT_DATA
from service.schemas.examples import PROBLEM_EXAMPLES, REPORT_EXAMPLE
from service.schemas.export import ExportRequest
from service.schemas.forms import MultipartForm
from service.schemas.models import ReportResponse
from service.web.problems import CODES, MEDIA_TYPE, TYPE_PREFIX

Responses = dict[int | str, dict[str, Any]]
_IMAGE_TYPES = "image/png, image/jpeg, application/dicom"
_SCHEMAS = "#/components/schemas/"


# -- requests --


def form_body(form: type[MultipartForm], examples: dict[str, Any], description: str | None = None) -> dict[str, Any]:
    """The argument ``openapi_extra`` of a route that reads a form."""
    schema = form.model_json_schema()
    del schema["description"]
    for name, field in schema["properties"].items():
        schema["properties"][name] = _without_null(field)
    files = [name for name, field in schema["properties"].items() if field.get("format") == "binary"]
    content = {"schema": schema, "encoding": {name: {"contentType": _IMAGE_TYPES} for name in files}}
    return _body("multipart/form-data", {**content, "examples": examples}, description)


def json_body(model: type[BaseModel], examples: dict[str, Any], description: str) -> dict[str, Any]:
    """The argument ``openapi_extra`` of a route that reads JSON."""
    return _body("application/json", {"schema": {"$ref": _SCHEMAS + model.__name__}, "examples": examples}, description)


def _body(media_type: str, content: dict[str, Any], description: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"required": True, "content": {media_type: content}}
    return {"requestBody": body if description is None else {**body, "description": description}}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """Remove null from the schema: a form leaves out the field instead."""
    kept = {name: value for name, value in field.items() if name not in ("anyOf", "default", "title")}
    for kind in field.get("anyOf", []):
        if kind != {"type": "null"}:
            kept |= kind
    return kept


# -- responses --


def problem_responses(status: int, description: str, *codes: str) -> Responses:
    """The problems of one status, with an example of each code."""
    examples = {}
    for code in codes:
        (detail, field), title = PROBLEM_EXAMPLES[code], CODES[code][1]
        value = {"type": TYPE_PREFIX + code, "title": title, "status": status, "detail": detail, "code": code}
        examples[code] = {"summary": title, "value": {**value, "field": field}}
    content = {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "ProblemDetails"}, "examples": examples}}
    return {status: {"description": description, "content": content}}


NOT_READY = problem_responses(503, "Not ready; detail gives the reason.", "loading")
NOT_READY_OR_BUSY = problem_responses(503, "Not ready, or busy (with Retry-After).", "loading", "busy")
NO_KEY = problem_responses(403, "The service has no API key, which this endpoint requires.", "no_api_key")
NOT_ACCEPTABLE = problem_responses(
    406, "No supported media type is accepted, or no structured report can be written.", "not_acceptable"
)
INTERNAL = problem_responses(500, "The service failed on this request.", "internal")
BODY_PROBLEMS: Responses = {
    **problem_responses(408, "The body arrived too slowly.", "upload_timeout"),
    **problem_responses(413, "The body or a file is too large.", "upload_too_large"),
}
FORM_PROBLEMS: Responses = {
    **problem_responses(400, "The multipart body cannot be parsed.", "malformed_multipart"),
    **BODY_PROBLEMS,
    **problem_responses(
        415,
        "The type of the body or of a file is not supported.",
        *("not_multipart", "unsupported_format", "unsupported_transfer_syntax"),
    ),
}
PICTURE: Responses = {
    200: {
        "description": "The picture.",
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def formats_response(*, drafts: bool, schema: type[ReportResponse] = ReportResponse) -> Responses:
    """The 200 response in every format; `drafts`: structured reports and event streams too; `schema`: of JSON."""
    report = ReportResponse.model_validate(REPORT_EXAMPLE)
    resource = diagnostic_report(report, ExportContext(("frontal",)), datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    events = [
        format_sse_event(event=name, data_str=data.model_dump_json())
        for name, data in EventSequence().on_report(report)
    ]
    content: dict[str, Any] = {
        FHIR.media_type: {
            "schema": {
                "title": "DiagnosticReport",
                "description": "FHIR R4 (4.0.1). Status preliminary; no subject.",
                "externalDocs": {"url": "https://hl7.org/fhir/R4/diagnosticreport.html"},
                "type": "object",
                "properties": {"resourceType": {"const": "DiagnosticReport"}, "status": {"const": "preliminary"}},
                "required": ["resourceType", "status"],
            },
            "example": resource,
        },
        TEXT.media_type: {"schema": {"type": "string"}, "example": plain_text(report)},
    }
    if drafts:
        content[EVENTS.media_type] = {
            "schema": {  # of each event; itemSchema came with OpenAPI 3.2
                "title": "Event",
                "description": "An event of the response to stream=true: `cases`, each `sentence`, then `report`; "
                "or `problem`, if the draft fails after the first event. Comments keep the connection alive.",
                "oneOf": [
                    _event(name, (schema if model is ReportResponse else model).__name__)
                    for name, model in EVENT_DATA.items()
                ],
            },
            "example": b"".join(events).decode(),
        }
        content[SR.media_type] = {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "DICOM Enhanced SR, TID 2000, if an image was sent as DICOM.",
            }
        }
    return {
        200: {
            "description": "The draft, in the format that Accept selects; application/json by default.",
            "headers": {"Vary": {"schema": {"type": "string", "const": "Accept"}}},
            "content": content,
        }
    }


def _event(name: str, data: str) -> dict[str, Any]:
    content = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _SCHEMAS + data},
    }
    properties = {"event": {"const": name}, "data": content}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


# -- the document --


def complete_openapi(app: FastAPI) -> None:
    """Add the schemas that no handler refers to; describe keys only if the service has one; serve the document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:  # complete since the first call
            return app.openapi_schema
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):  # every error is a problem
            schemas.pop(unused, None)
        models: list[type[BaseModel]] = [*EVENT_DATA.values(), ExportRequest]
        for model in models:
            schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
            schema.pop("$defs", None)  # already there, by the responses
            schemas.setdefault(model.__name__, schema)
        if not app.state.keys:
            document["components"].pop("securitySchemes", None)
        for operations in document["paths"].values():
            for operation in operations.values():
                _complete_operation(operation, keys=bool(app.state.keys))
        return document

    @functools.cache
    def encoded() -> bytes:
        return bytes(JSONResponse(openapi()).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def send_openapi() -> Response:
        """The document; FastAPI's route would write it for every request, which takes 13 ms."""
        return Response(encoded(), media_type="application/json")

    app.openapi = openapi  # type: ignore[method-assign]


def _complete_operation(operation: dict[str, Any], *, keys: bool) -> None:
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if not keys:
        operation.pop("security", None)
    elif "security" in operation:
        unauthorized = problem_responses(401, "No key was sent, or a wrong one.", "unauthorized")[401]
        unauthorized["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}}
        responses["401"] = unauthorized
