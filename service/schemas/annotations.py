"""What a text says about its findings: presence, side, regions and degree, as the answers have them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from model.text.annotations import Degree, Side, annotate_report, sentences_of
from model.types import Label

MAX_ANNOTATIONS = 500  # of a text; more are left out


class AnnotationOut(BaseModel):
    """One mention of a finding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: Annotated[str, Field(description="One of the 14, or another name, such as `scoliosis`.")]
    presence: Label
    side: Side | None = None
    regions: Annotated[list[str], Field(description="Such as `lower lobe`.")]
    degree: Degree | None = None
    degree_words: Annotated[str | None, Field(description="The degree as written, such as `small`.")] = None
    concept: Annotated[str | None, Field(description="A narrower name, such as `nodule`.")] = None
    words: Annotated[str, Field(description="The text from `start` to `end`, in characters.")]
    sentence: Annotated[int, Field(ge=0)]
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]

    @property
    def narrower(self) -> str | None:
        """The concept, unless the name of the finding says it: "nodule" of Lung Lesion, but not "lesion"."""
        return self.concept if self.concept and self.concept.lower() not in self.finding.lower() else None


Annotations = Annotated[list[AnnotationOut], Field(max_length=MAX_ANNOTATIONS)]


def read_annotations(text: str | None, *, use_cache: bool = True) -> list[AnnotationOut]:
    """The annotations of a text as the answer shows it, with the offsets of their words in it."""
    text = text or ""
    starts: list[int] = []
    end = 0
    for sentence in sentences_of(text):
        starts.append(text.index(sentence, end))
        end = starts[-1] + len(sentence)
    return [
        AnnotationOut.model_validate({**vars(each), "start": start + each.start, "end": start + each.end})
        for each in annotate_report(text, use_cache=use_cache)[:MAX_ANNOTATIONS]
        for start in [starts[each.sentence]]
    ]
