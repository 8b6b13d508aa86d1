"""The body of ``POST /report``: its fields, and what they may hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from model.types import MAX_BEAM_SIZE, MAX_TOP_K
from service.web.multipart import FormField, read_form
from service.web.problems import Problem

IMAGE_FIELDS = ("frontal", "lateral")
NUMBER_FIELDS = {"top_k": MAX_TOP_K, "beam_size": MAX_BEAM_SIZE}  # each 1..most
WORD_FIELDS = {"include": ("attention",), "stream": ("true", "false"), "refine": ("true", "false")}
FIELDS = (*IMAGE_FIELDS, *NUMBER_FIELDS, *WORD_FIELDS)
_MAX_VALUE_BYTES = 32


@dataclass(frozen=True)
class Upload:
    """A request, complete and checked but for the content of its images.

    Attributes:
        images: field name (``frontal``, ``lateral``) -> bytes of the file; at least one.
        top_k: reference cases wanted, or None for the bundle's default.
        beam_size: beam size wanted, or None for the bundle's default.
        attention: ``include=attention``: each sentence's attention is wanted.
        stream: server-sent events are wanted.
        refine: a rewritten draft is wanted beside the model's.
    """

    images: dict[str, bytes] = field(repr=False)
    top_k: int | None = None
    beam_size: int | None = None
    attention: bool = False
    stream: bool = False
    refine: bool = False


async def read_upload(request: Request, *, max_file_bytes: int, timeout_s: float) -> Upload:
    """Read and check the body of a request.

    Args:
        request: its body must not have been read.
        max_file_bytes: largest image file; the body may hold two of them.
        timeout_s: seconds within which the whole body must arrive.

    Raises:
        Problem: 4xx; what is wrong with the request.
        ClientDisconnect: the client went away.
    """
    fields = {
        **dict.fromkeys(IMAGE_FIELDS, FormField.file(max_file_bytes)),
        **dict.fromkeys(NUMBER_FIELDS, FormField(_MAX_VALUE_BYTES, "not_a_number")),
        **dict.fromkeys(WORD_FIELDS, FormField(_MAX_VALUE_BYTES, "unknown_value")),
    }
    form = await read_form(request, fields, timeout_s=timeout_s)
    images = form.files(IMAGE_FIELDS)
    numbers = {name: form.number(name, most) for name, most in NUMBER_FIELDS.items()}
    if not images:
        raise Problem("missing_image", "Neither frontal nor lateral was sent. Send at least one of them as a file.")
    words = {name: form.word(name, allowed) for name, allowed in WORD_FIELDS.items()}
    return Upload(
        images,
        numbers["top_k"],
        numbers["beam_size"],
        attention=words["include"] == "attention",
        stream=words["stream"] == "true",
        refine=words["refine"] == "true",
    )
