"""Content negotiation by ``Accept`` (RFC 9110, section 12.5.1), and the response body."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.request import parse_http_list

from python_multipart.multipart import parse_options_header
from starlette.responses import Response

from service.formats.dicom_source import ExportContext, unsupported_reason
from service.formats.fhir import diagnostic_report
from service.formats.text import plain_text
from service.schemas.models import ReportResponse
from service.web.problems import Problem


@dataclass(frozen=True)
class Offer:
    """A media type that the service can send.

    Attributes:
        media_type: without parameters, lower case.
        parameters: parameter name -> accepted values, both lower case. Other parameters, such as
            ``odata=verbose``, are ignored; another value of a listed one is not a match.
    """

    media_type: str
    parameters: Mapping[str, frozenset[str]] = field(default_factory=dict)


VARY = {"Vary": "Accept"}
_UTF_8 = {"charset": frozenset({"utf-8", "utf8"})}
JSON = Offer("application/json", _UTF_8)
FHIR = Offer("application/fhir+json", {**_UTF_8, "fhirversion": frozenset({"4.0", "4.0.1"})})
TEXT = Offer("text/plain", _UTF_8)
SR = Offer("application/dicom", {"transfer-syntax": frozenset({"*", "1.2.840.10008.1.2.1"})})
OFFERS = (JSON, FHIR, TEXT, SR)  # the default first
EVENTS = Offer("text/event-stream", _UTF_8)  # with stream=true
_CONTENT_TYPES = {
    FHIR.media_type: "application/fhir+json; fhirVersion=4.0",
    TEXT.media_type: "text/plain; charset=utf-8",
    SR.media_type: "application/dicom",
}

_MAX_ACCEPT = 4096  # bytes; parsing takes the event loop time


@dataclass(frozen=True)
class AcceptedFormats:
    """The formats that a request accepts, preferred first; never empty."""

    offers: tuple[Offer, ...]

    @property
    def prefer_sr(self) -> bool:
        """Whether a structured report is preferred. It needs the patient and study in the headers of the images."""
        return next((offer for offer in self.offers if offer is not EVENTS), None) is SR

    def check_stream(self) -> None:
        """Check that the request accepts a stream, or JSON, the content of its events.

        Raises:
            Problem: ``not_acceptable``, 406.
        """
        if EVENTS not in self.offers and JSON not in self.offers:
            raise _not_acceptable(
                "The response to stream=true is text/event-stream, which the Accept header does not accept. "
                "Accept text/event-stream, application/json or */*, or leave stream out."
            )

    def choose(self, context: ExportContext, *, no_sr: str | None = None) -> Offer:
        """The preferred format that can be written; `no_sr`: why it cannot be a structured report.

        Raises:
            Problem: ``not_acceptable``, 406; no accepted format can be written.
        """
        reason = (no_sr or unsupported_reason(context.sources)) if SR in self.offers else None
        for offer in self.offers:
            if offer is not EVENTS and (offer is not SR or reason is None):
                return offer
        if reason is None:
            raise _not_acceptable(f"text/event-stream needs stream=true. Send it, or accept {_listed(OFFERS)}.")
        others = _listed([offer for offer in OFFERS if offer is not SR])
        raise _not_acceptable(f"application/dicom is not possible: {reason}. Accept {others} instead.")


def parse_accept(accept: Sequence[str], *, streams: bool = True) -> AcceptedFormats:
    """Parse the ``Accept`` headers; `streams`: whether an event stream is offered too.

    Raises:
        Problem: ``not_acceptable``, 406; no offered format is accepted.
    """
    if sum(map(len, accept)) > _MAX_ACCEPT:
        raise _not_acceptable(
            f"The Accept header is longer than {_MAX_ACCEPT:,} bytes. Send only the media types used."
        )
    offers = rank(accept, (*OFFERS, EVENTS) if streams else OFFERS)
    if not offers:
        raise _not_acceptable(f"The Accept header has no supported media type. Accept {_listed(OFFERS)}.")
    return AcceptedFormats(tuple(offers))


def respond(report: ReportResponse, context: ExportContext, offer: Offer) -> Response | ReportResponse:
    """The response; for JSON the report itself, which the route's response model writes."""
    if offer is JSON:
        return report
    return _response(_body(report, context, offer), offer)


def sr_response(data: bytes) -> Response:
    """The response with a structured report."""
    return _response(data, SR)


def _response(body: bytes, offer: Offer) -> Response:
    return Response(body, headers={**VARY, "Content-Type": _CONTENT_TYPES[offer.media_type]})


def _body(report: ReportResponse, context: ExportContext, offer: Offer) -> bytes:
    if offer is FHIR:
        return json.dumps(diagnostic_report(report, context), ensure_ascii=False).encode()
    if offer is SR:
        from service.formats.sr import structured_report  # highdicom is an extra and slow to import

        return structured_report(report, len(context.views), context.sources)
    return f"{plain_text(report)}\n".encode()


def _listed(offers: Sequence[Offer]) -> str:
    names = [offer.media_type for offer in offers]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _not_acceptable(detail: str) -> Problem:
    return Problem("not_acceptable", detail, headers=VARY)


@dataclass(frozen=True)
class _Range:
    kind: str
    parameters: Mapping[str, str]
    quality: float
    position: int

    def matches(self, offer: Offer) -> int:
        """Specificity: 1 for ``*/*``, 2 for ``text/*``, 3 and more for the type; 0 for no match."""
        if self.kind in ("*/*", "*"):
            return 1
        if self.kind.endswith("/*"):
            return 2 if offer.media_type.startswith(self.kind[:-1]) else 0
        known = {name: value for name, value in self.parameters.items() if name in offer.parameters}
        if self.kind != offer.media_type or any(value not in offer.parameters[name] for name, value in known.items()):
            return 0
        return 3 + len(known)


def rank(accept: Sequence[str], offers: Sequence[Offer]) -> list[Offer]:
    """The offers that a request accepts, the preferred one first.

    Of equal q-values the more specific range wins, then the earlier one, then the order of
    `offers`.

    Args:
        accept: values of the ``Accept`` headers; none, or only blank ones, accept everything.
        offers: what the service can send, the default first.
    """
    elements = parse_http_list(",".join(accept))
    ranges = [found for position, element in enumerate(elements) if (found := _parse_range(element, position))]
    if not ranges and not any(value.strip() for value in accept):
        return list(offers)
    accepted: list[tuple[float, int, int, int, Offer]] = []
    for order, offer in enumerate(offers):
        matching = [(specific, found) for found in ranges if (specific := found.matches(offer))]
        if matching:
            specific, best = max(matching, key=lambda match: (match[0], match[1].quality))
            if best.quality > 0:
                accepted.append((-best.quality, -min(specific, 3), best.position, order, offer))
    return [offer for *_, offer in sorted(accepted, key=lambda entry: entry[:4])]


def _parse_range(element: str, position: int) -> _Range | None:
    """One element of the header; None if it is blank or its q-value is not from 0 to 1."""
    kind, options = parse_options_header(element)
    parameters = {name.decode("latin-1").lower(): value.decode("latin-1").lower() for name, value in options.items()}
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        return None
    if not kind or not 0 <= quality <= 1:
        return None
    return _Range(kind.decode("latin-1").lower(), parameters, quality, position)
