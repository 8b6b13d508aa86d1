"""Response of ``GET /examples``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.schemas.models import ResponseModel


class ExampleOut(ResponseModel):
    """A study to try the page with."""

    id: str
    kind: Annotated[Literal["study", "drawing"], Field(description="A drawing shows no patient.")]
    label: Annotated[str, Field(description="The finding, in plain words.")]
    images: Annotated[
        dict[str, str], Field(max_length=2, description="View -> path of the PNG, relative to this service.")
    ]
    attribution: str
    licence: str
    licence_url: str
    source_url: Annotated[str | None, Field(description="The page that publishes the study.")]


class ExamplesResponse(ResponseModel):
    """The example studies; radiographs before drawings."""

    examples: list[ExampleOut]
