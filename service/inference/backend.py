"""The interface between HTTP and inference, and the errors that a backend raises.

Two backends exist: ``service.inference.engine.Engine`` runs the model in this process,
``service.ray_app.ingress.RayBackend`` sends requests to replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from model.types import Draft, DraftOptions, EventCallback
from service.schemas.models import ModelInfo


class OutOfMemoryError(RuntimeError):
    """The device has too little memory for a batch of one study."""


class DeviceLostError(RuntimeError):
    """The device fails on every call; the service must be restarted."""


class ClosedError(RuntimeError):
    """The backend accepts no more studies; the message gives the reason."""


class FieldError(ValueError):
    """An image cannot be read; ``field`` is its form field, ``code`` its problem code."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field, self.code = field, code

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, str, str]]:
        return FieldError, (self.field, self.code, str(self))


@dataclass(frozen=True, kw_only=True)
class RemoteDraft(Draft):
    """A draft of a replica, with the bundle that made it: during a rollout replicas may serve different bundles."""

    model: ModelInfo


class Backend(Protocol):
    """Drafts studies. All methods but ``close`` are called on the event loop only."""

    @property
    def waiting(self) -> int:
        """Studies in the queue."""

    @property
    def stalled_s(self) -> float:
        """Age in seconds of the oldest running batch; 0 if none runs in this process."""

    @property
    def seconds_per_study(self) -> float:
        """Mean time between two drafts under load; 0 if not measured."""

    async def draft(
        self, images: dict[str, bytes], options: DraftOptions, on_event: EventCallback | None = None
    ) -> Draft:
        """Decode the images of one study and draft it.

        Args:
            images: view -> file content, one or two; may be cleared after decoding.
            options: decoding options of this request.
            on_event: called with partial results on the event loop. If a failed batch is repeated, the partial results
                of the study are sent again from the first.

        Raises:
            FieldError: an image cannot be read.
            OutOfMemoryError: the device has too little memory.
            DeviceLostError: the device fails on every call.
            ClosedError: the backend is stopping.
        """

    async def drain(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` until no call of ``draft`` is running, then close."""

    def refuse_waiting(self, reason: str) -> int:
        """Accept no more studies and fail the queued ones with ``ClosedError``; returns their number."""

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the queued studies, then stop; abandon what still runs after ``timeout_s``."""
