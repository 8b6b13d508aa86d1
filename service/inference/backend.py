"""What the HTTP interface needs of whatever runs the model: the engine of this process, or replicas elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from model.drafter import Draft, DraftOptions, Listener
from service.schemas.models import ModelInfo


@dataclass(frozen=True, kw_only=True)
class RemoteDraft(Draft):
    """A draft from elsewhere, and which bundle wrote it: while bundles are rolled out, replicas may differ."""

    model: ModelInfo


class Backend(Protocol):
    """Drafts for the interface. ``service.inference.engine.Engine`` runs here, ``service.ray_app`` on others.

    Called on the event loop only, but for ``close``.
    """

    @property
    def capacity(self) -> int:
        """Requests in the house at once."""

    @property
    def depth(self) -> int:
        """Requests in the house: arriving, waiting or computed."""

    @property
    def waiting(self) -> int:
        """Studies that wait for the model."""

    @property
    def stalled_s(self) -> float:
        """How long the slowest batch has been computed by now; 0 where none is, or where that is seen elsewhere."""

    def place(self) -> AbstractContextManager[None]:
        """Hold one place from before the body is read until the answer is made.

        Raises:
            service.places.BusyError: none is free.
        """

    async def draft(self, images: dict[str, bytes], options: DraftOptions, listener: Listener | None = None) -> Draft:
        """Decode the images of one study and draft it.

        Args:
            images: view -> file content; it may be emptied.
            options: of this request.
            listener: may be told, on the event loop, of what is final early; again from the beginning where the study
                has to be drafted again.

        Raises:
            service.engine.FieldError: an image cannot be read.
            service.engine.MemoryShortError, service.engine.BrokenError, service.jobs.ClosedError: see there.
        """

    async def drain(self, timeout_s: float) -> None:
        """Wait until nobody holds a place any more, ``timeout_s`` at most, then close."""

    def refuse_waiting(self, reason: str) -> int:
        """Take no more and refuse what waits; how many waited."""

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish what waits, then stop; what is still computed after ``timeout_s`` is left behind."""
