"""The multipart forms of ``POST /report``, ``/preview`` and ``/cases``: fields, limits, checks.

A check fails with a ``PydanticCustomError``: its type is the code of the problem, its message the
problem's detail.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from model.images.dicom.header import is_uid
from model.types import MAX_BEAM_SIZE, MAX_TOP_K, View
from retrieval_index.cases import CASE_ID, MAX_URL_BYTES, check_case_id, is_web_address
from retrieval_index.user_cases import MAX_FINDINGS_BYTES, has_invisible

_MAX_PROSE_BYTES = 4096


@dataclass(frozen=True)
class FormPart:
    """One part of a multipart body; its file name is not stored."""

    data: bytes = field(repr=False)
    has_filename: bool


@dataclass(frozen=True)
class PartLimit:
    """Maximum size of a field in bytes, and the problem code of a larger one."""

    max_bytes: int
    code: str = "out_of_range"


class FileLimit:
    """Marks a field that holds a file; the settings limit its size (``upload_too_large``)."""


def quote(text: str) -> str:
    """A client's text for an error message: printable and short."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return repr(clean if len(clean) <= 40 else clean[:40] + "…")


def _file(part: FormPart, info: ValidationInfo) -> bytes:
    """The bytes of a file; text without a file name is refused, because it is usually a path."""
    name = info.field_name
    if not part.data:
        raise PydanticCustomError(
            "empty", f"The field {name} is empty. Send a PNG, JPEG or DICOM file, or leave it out."
        )
    if not part.has_filename and len(part.data) <= _MAX_PROSE_BYTES and _is_prose(part.data):
        raise PydanticCustomError(
            "not_a_file", f"The field {name} holds text, not a file. With curl write -F {name}=@FILE, with the @."
        )
    return part.data


def _is_prose(data: bytes) -> bool:
    try:
        return data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _whole_number(most: int) -> BeforeValidator:
    def parse(part: FormPart, info: ValidationInfo) -> int:
        name, text = info.field_name, part.data.decode("utf-8", "replace").strip()
        allowed = f"Send a whole number from 1 to {most}, or leave it out."
        if not text:
            raise PydanticCustomError("empty", f"The field {name} is empty. {allowed}")
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise PydanticCustomError("not_a_number", f"{name} is {quote(text)}. {allowed}")
        value = int(text)
        if not 1 <= value <= most:
            raise PydanticCustomError("out_of_range", f"{name} is {value}. {allowed}")
        return value

    return BeforeValidator(parse)


def _one_of(*words: str) -> BeforeValidator:
    def parse(part: FormPart, info: ValidationInfo) -> str:
        text = part.data.decode("utf-8", "replace").strip()
        if text not in words:
            was = f"is {quote(text)}" if text else "is empty"
            detail = f"{info.field_name} {was}. Send {' or '.join(words)}, or leave it out."
            raise PydanticCustomError("unknown_value", detail)
        return text

    return BeforeValidator(parse)


def _some_of(*words: str) -> BeforeValidator:
    def parse(part: FormPart, info: ValidationInfo) -> str:
        text = part.data.decode("utf-8", "replace")
        sent = {word.strip() for word in text.split(",")}
        if not sent <= set(words):
            was = f"is {quote(text.strip())}" if text.strip() else "is empty"
            detail = f"{info.field_name} {was}. Send {', '.join(words)} or {','.join(words)}, or leave it out."
            raise PydanticCustomError("unknown_value", detail)
        return ",".join(word for word in words if word in sent)

    return BeforeValidator(parse)


def _text(check: Callable[[str], str], *, required: bool) -> BeforeValidator:
    def parse(part: FormPart, info: ValidationInfo) -> str | None:
        try:
            text = part.data.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise PydanticCustomError(
                "malformed_value", f"The field {info.field_name} is not UTF-8. Send it as UTF-8."
            ) from None
        if not text and required:
            raise missing_field(info.field_name)
        return check(text) if text else None

    return BeforeValidator(parse)


def missing_field(name: str | None) -> PydanticCustomError:
    """The error of a required text field that is missing or empty."""
    return PydanticCustomError("missing_field", f"The field {name} is missing or empty. Send it.")


def _check_case_id(text: str) -> str:
    try:
        check_case_id(text)
    except ValueError:
        raise PydanticCustomError(
            "malformed_value",
            "The case_id is malformed. Send 1 to 64 letters, digits, dots, hyphens and underscores, "
            "a letter or digit first; nothing that identifies a patient.",
        ) from None
    return text


def _check_findings(text: str) -> str:
    """Join the lines; refuse control and invisible characters."""
    findings = " ".join(text.removeprefix("\ufeff").split())  # the byte order mark of Windows editors
    if has_invisible(findings):
        raise PydanticCustomError(
            "malformed_value", "The findings have control or invisible characters. Send plain text."
        )
    return findings


def _check_source_url(text: str) -> str:
    if not is_web_address(text):
        raise PydanticCustomError(
            "malformed_value", "The source_url is not an http or https address. Send one, or leave it out."
        )
    return text


def _check_uid(text: str) -> str:
    if not is_uid(text):
        raise PydanticCustomError("malformed_value", "An instance is named by a SOPInstanceUID, such as 1.2.840.5.")
    return text


_SHORT = 32  # bytes of numbers and words
OptionalFile = Annotated[bytes | None, FileLimit(), BeforeValidator(_file), Field(repr=False)]
Switch = Annotated[Literal["true", "false"] | None, PartLimit(_SHORT, "unknown_value"), _one_of("true", "false")]


class MultipartForm(BaseModel):
    """Base of the forms: each field at most once, other fields are refused."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class _ViewsForm(MultipartForm):
    """A form with one radiograph for each view."""

    def take_images(self) -> dict[str, bytes]:
        """The images by view.

        The form drops them, so that their memory is free once they are decoded.
        """
        images = {}
        for view in ("frontal", "lateral"):
            if (data := getattr(self, view)) is not None:
                images[view] = data
                setattr(self, view, None)
        return images


class DraftForm(MultipartForm):
    """The options of a draft."""

    top_k: Annotated[
        Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None,
        PartLimit(_SHORT, "not_a_number"),
        _whole_number(MAX_TOP_K),
        Field(description="Number of reference cases shown, K if left out. The draft does not depend on it."),
    ] = None
    beam_size: Annotated[
        Annotated[int, Field(ge=1, le=MAX_BEAM_SIZE)] | None,
        PartLimit(_SHORT, "not_a_number"),
        _whole_number(MAX_BEAM_SIZE),
        Field(description="Beam size of decoding; the bundle's default if left out."),
    ] = None
    include: Annotated[
        Literal["attention", "evidence", "attention,evidence"] | None,
        PartLimit(_SHORT, "unknown_value"),
        _some_of("attention", "evidence"),
        Field(description="attention: attention maps of each sentence; evidence: maps of the findings; or both."),
    ] = None
    stream: Annotated[Switch, Field(description="true: server-sent events, see the description of this endpoint.")] = (
        None
    )
    refine: Annotated[
        Switch, Field(description="true: also a rewritten draft, if the operator configured a language model.")
    ] = None


class _StudyImages(_ViewsForm):
    """The images of ``POST /report``, the first fields of its form: the last base class."""

    frontal: Annotated[
        OptionalFile, Field(description="The PA or AP radiograph: DICOM (CR, DX, secondary capture), PNG or JPEG.")
    ] = None
    lateral: Annotated[OptionalFile, Field(description="The lateral radiograph, likewise.")] = None


class ReportForm(DraftForm, _StudyImages):
    """The form of ``POST /report``; at least one image."""

    model_config = ConfigDict(
        title="ReportRequest", json_schema_extra={"anyOf": [{"required": ["frontal"]}, {"required": ["lateral"]}]}
    )

    @model_validator(mode="after")
    def _has_an_image(self) -> Self:
        if self.frontal is None and self.lateral is None:
            raise PydanticCustomError(
                "missing_image", "Neither frontal nor lateral was sent. Send at least one of them as a file."
            )
        return self


class StudyForm(DraftForm):
    """The form of ``POST /studies/{StudyInstanceUID}/report``; every field may be missing."""

    model_config = ConfigDict(title="StudyReportRequest")

    store: Annotated[
        Switch,
        Field(
            description="true: store the draft in the study as a DICOM structured report, once for each set of images "
            "and bundle."
        ),
    ] = None
    frontal: Annotated[
        str | None,
        PartLimit(64),
        _text(_check_uid, required=False),
        Field(description="SOPInstanceUID of the frontal image; chosen by the headers if both are left out."),
    ] = None
    lateral: Annotated[
        str | None,
        PartLimit(64),
        _text(_check_uid, required=False),
        Field(description="Of the lateral image, likewise."),
    ] = None

    def named(self) -> dict[View, str]:
        """The instances that the request names."""
        return {view: uid for view in View if (uid := getattr(self, view.value)) is not None}


class PreviewForm(MultipartForm):
    """The form of ``POST /preview``."""

    model_config = ConfigDict(title="PreviewRequest")

    image: Annotated[
        bytes,
        FileLimit(),
        BeforeValidator(_file),
        Field(repr=False, description="A radiograph: DICOM, PNG or JPEG."),
    ]


class CaseForm(_ViewsForm):
    """The form of ``POST /cases``."""

    model_config = ConfigDict(title="CaseRequest")

    case_id: Annotated[
        Annotated[str, Field(pattern=f"^{CASE_ID}$")],
        PartLimit(64),
        _text(_check_case_id, required=True),
        Field(description="Unique; nothing that identifies a patient."),
    ]
    findings: Annotated[
        str,
        PartLimit(MAX_FINDINGS_BYTES),
        _text(_check_findings, required=True),
        Field(
            repr=False,
            min_length=1,
            max_length=MAX_FINDINGS_BYTES,
            description=f"The text of the report's findings, at most {MAX_FINDINGS_BYTES:,} bytes.",
        ),
    ]
    source_url: Annotated[
        str | None,
        PartLimit(MAX_URL_BYTES),
        _text(_check_source_url, required=False),
        Field(
            json_schema_extra={"format": "uri", "maxLength": MAX_URL_BYTES},
            description="http or https address of the case.",
        ),
    ] = None
    frontal: Annotated[
        OptionalFile, Field(description="A radiograph, of which a small picture is kept: DICOM, PNG or JPEG.")
    ] = None
    lateral: Annotated[OptionalFile, Field(description="Likewise.")] = None
