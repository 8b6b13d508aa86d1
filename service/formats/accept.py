"""Which format ``POST /report`` answers in, and the answer in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response

from service.formats import fhir, sr
from service.formats.dicom_source import Study
from service.formats.negotiation import Offer, rank
from service.formats.text import plain_text
from service.schemas.models import ReportResponse
from service.web.problems import Problem

VARY = {"Vary": "Accept"}
_UTF_8 = {"charset": frozenset({"utf-8", "utf8"})}
JSON = Offer("application/json", _UTF_8)
FHIR = Offer("application/fhir+json", {**_UTF_8, "fhirversion": frozenset({"4.0", "4.0.1"})})
TEXT = Offer("text/plain", _UTF_8)
SR = Offer("application/dicom", {"transfer-syntax": frozenset({"*", "1.2.840.10008.1.2.1"})})
OFFERS = (JSON, FHIR, TEXT, SR)  # the default first
EVENTS = Offer("text/event-stream", _UTF_8)  # to stream=true
_CONTENT_TYPES = {
    FHIR.media_type: "application/fhir+json; fhirVersion=4.0",
    TEXT.media_type: "text/plain; charset=utf-8",
    SR.media_type: "application/dicom",
}


@dataclass(frozen=True)
class Wanted:
    """The formats that a request takes, best first; never empty."""

    offers: tuple[Offer, ...]

    @property
    def prefer_sr(self) -> bool:
        """Whether a structured report is wanted before other documents, so that the images' identities are needed."""
        return next((offer for offer in self.offers if offer is not EVENTS), None) is SR

    def check_stream(self) -> None:
        """Whether the answer may be a stream: where one is taken, or the JSON that it tells piece by piece.

        Raises:
            Problem: ``not_acceptable``, 406.
        """
        if EVENTS not in self.offers and JSON not in self.offers:
            raise _not_acceptable(
                "stream=true is answered as text/event-stream, which the Accept header does not take. "
                "Accept text/event-stream, application/json or */*, or leave stream out."
            )

    def choose(self, study: Study, *, no_sr: str | None = None) -> Offer:
        """The best of them that can be written of `study`; no structured report where `no_sr` says why not.

        Raises:
            Problem: ``not_acceptable``, 406; only a structured report would do, and why it cannot be written; or only
                a stream.
        """
        reason = (no_sr or sr.why_not(study.sources)) if SR in self.offers else None
        for offer in self.offers:
            if offer is not EVENTS and (offer is not SR or reason is None):
                return offer
        if reason is None:
            raise _not_acceptable(
                f"text/event-stream answers stream=true only. Send that too, or ask for {_listed(OFFERS)}."
            )
        others = _listed([offer for offer in OFFERS if offer is not SR])
        raise _not_acceptable(f"No application/dicom can be answered: {reason}. Ask for {others} instead.")


def wanted(accept: Sequence[str], *, streams: bool = True) -> Wanted:
    """What the ``Accept`` headers of a request ask for; ``streams``: whether a stream of events is on offer too.

    Raises:
        Problem: ``not_acceptable``, 406; nothing that is offered is accepted.
    """
    offers = rank(accept, (*OFFERS, EVENTS) if streams else OFFERS)
    if not offers:
        raise _not_acceptable(f"The Accept header takes nothing that is offered. Ask for {_listed(OFFERS)}.")
    return Wanted(tuple(offers))


def respond(report: ReportResponse, study: Study, offer: Offer) -> Response | None:
    """The answer in a format other than JSON; None for JSON, which the route's response model writes."""
    if offer is JSON:
        return None
    return Response(_body(report, study, offer), headers={**VARY, "Content-Type": _CONTENT_TYPES[offer.media_type]})


def _body(report: ReportResponse, study: Study, offer: Offer) -> bytes:
    if offer is FHIR:
        return json.dumps(fhir.diagnostic_report(report, study), ensure_ascii=False).encode()
    if offer is SR:
        return sr.structured_report(report, len(study.views), study.sources)
    return f"{plain_text(report)}\n".encode()


def _listed(offers: Sequence[Offer]) -> str:
    names = [offer.media_type for offer in offers]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _not_acceptable(detail: str) -> Problem:
    return Problem("not_acceptable", detail, headers=VARY)
