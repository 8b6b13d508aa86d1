"""Content negotiation by ``Accept`` (RFC 9110, section 12.5.1): q-values, wildcards, the most specific range counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.request import parse_http_list

from python_multipart.multipart import parse_options_header


@dataclass(frozen=True)
class Offer:
    """A media type that can be answered.

    Attributes:
        media_type: without parameters, lower case.
        parameters: parameter name, lower case -> the values, lower case, that a request may ask for. What is not
            named here is ignored, as ``odata=verbose`` is; a version that is not ours is no match.
    """

    media_type: str
    parameters: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Range:
    kind: str
    parameters: Mapping[str, str]
    quality: float
    place: int

    def matches(self, offer: Offer) -> int:
        """How specific the match is: 1 for ``*/*``, 2 for ``text/*``, 3 and more for the type; 0 for none."""
        if self.kind in ("*/*", "*"):
            return 1
        if self.kind.endswith("/*"):
            return 2 if offer.media_type.startswith(self.kind[:-1]) else 0
        known = {name: value for name, value in self.parameters.items() if name in offer.parameters}
        if self.kind != offer.media_type or any(value not in offer.parameters[name] for name, value in known.items()):
            return 0
        return 3 + len(known)


def rank(accept: Sequence[str], offers: Sequence[Offer]) -> list[Offer]:
    """The offers that a request takes, the one it likes best first.

    Of equal q-values the more specific range wins, then the one named first, then the order of `offers`.

    Args:
        accept: values of the ``Accept`` headers; none, or only blank ones, takes everything.
        offers: what can be answered, the default first.
    """
    ranges = [found for place, element in enumerate(_elements(accept)) if (found := _range(element, place))]
    if not ranges and not any(value.strip() for value in accept):
        return list(offers)
    liked: list[tuple[float, int, int, int, Offer]] = []
    for order, offer in enumerate(offers):
        matching = [(specific, found) for found in ranges if (specific := found.matches(offer))]
        if matching:
            specific, best = max(matching, key=lambda match: (match[0], match[1].quality))
            if best.quality > 0:
                liked.append((-best.quality, -min(specific, 3), best.place, order, offer))
    return [offer for *_, offer in sorted(liked, key=lambda entry: entry[:4])]


def _elements(accept: Sequence[str]) -> list[str]:
    return parse_http_list(",".join(accept))


def _range(element: str, place: int) -> _Range | None:
    """One element of the header; None where it is blank or its q-value is no number from 0 to 1."""
    kind, options = parse_options_header(element)
    parameters = {name.decode("latin-1").lower(): value.decode("latin-1").lower() for name, value in options.items()}
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        return None
    if not kind or not 0 <= quality <= 1:
        return None
    return _Range(kind.decode("latin-1").lower(), parameters, quality, place)
