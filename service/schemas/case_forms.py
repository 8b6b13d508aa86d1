"""The body of ``POST /cases``: its fields, and what they may hold."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import urlsplit

from starlette.requests import Request

from service.cases.store import NewCase
from service.schemas.forms import IMAGE_FIELDS
from service.web.multipart import Form, FormField, read_form
from service.web.problems import Problem

CASE_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_FINDINGS_BYTES = 8 * 1024
MAX_URL_BYTES = 2048
CASE_FIELDS = ("case_id", "findings", "source_url", *IMAGE_FIELDS)


async def read_case(request: Request, *, max_file_bytes: int, timeout_s: float) -> NewCase:
    """Read and check the body of a request.

    Args:
        request: its body must not have been read.
        max_file_bytes: largest image file; the body may hold two of them.
        timeout_s: seconds within which the whole body must arrive.

    Raises:
        Problem: 4xx; what is wrong with the request, but for the content of its images.
        ClientDisconnect: the client went away.
    """
    fields = {
        "case_id": FormField(64),
        "findings": FormField(MAX_FINDINGS_BYTES),
        "source_url": FormField(MAX_URL_BYTES),
        **dict.fromkeys(IMAGE_FIELDS, FormField.file(max_file_bytes)),
    }
    form = await read_form(request, fields, timeout_s=timeout_s)
    return NewCase(_case_id(form), _findings(form), _source_url(form), form.files(IMAGE_FIELDS))


def _needed(form: Form, name: str) -> str:
    text = form.text(name)
    if text is None:
        raise Problem("missing_field", f"The field {name} is missing or empty. Send it.", field=name)
    return text


def _case_id(form: Form) -> str:
    case_id = _needed(form, "case_id")
    if not re.fullmatch(CASE_ID, case_id):
        raise Problem(
            "malformed_value",
            "The case_id is of another form. Send 1 to 64 letters, digits, dots, hyphens and underscores, "
            "a letter or digit first; nothing that names a patient.",
            field="case_id",
        )
    return case_id


def _findings(form: Form) -> str:
    """Spaces and line ends run together; what no text format can hold, or no eye sees, is refused."""
    findings = " ".join(_needed(form, "findings").removeprefix("\ufeff").split())  # a mark of files by Windows editors
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co") for character in findings):
        raise Problem(
            "malformed_value",
            "The findings hold control characters or invisible ones. Send plain text.",
            field="findings",
        )
    return findings


def _source_url(form: Form) -> str | None:
    url = form.text("source_url")
    if url is None or _is_web_address(url):
        return url
    raise Problem(
        "malformed_value", "The source_url is no http or https address. Send one, or leave it out.", field="source_url"
    )


def _is_web_address(url: str) -> bool:
    if not re.fullmatch(r"[!-~]+", url):  # printable ASCII
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:  # a port that is none, a bracket left open
        return False
