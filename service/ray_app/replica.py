"""A replica of the model on Ray Serve: the service's engine in a process that Ray starts and replaces.

It receives images as bytes and returns plain values: a draft, or a ``Failure`` with a message of this package. No
exception crosses process borders, because its message might quote a report.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch

from model.types import DraftOptions
from service.inference.admission import BusyError
from service.inference.backend import ClosedError, DeviceLostError, FieldError, OutOfMemoryError, RemoteDraft
from service.inference.runtime import Runtime
from service.schemas.models import ModelInfo
from service.settings import Settings
from service.web import logging as logs
from service.web.problems import Problem, format_traceback_locations

log = logging.getLogger(__name__)
LOAD_POLL_S = 0.05


@dataclass(frozen=True)
class Failure:
    """Why there is no draft. ``field`` and ``code`` belong to a ``FieldError``; ``detail`` quotes no report.

    Attributes:
        kind: ``image``: it cannot be read; ``memory``: the device has too little; ``busy``: no free slot; ``gone``:
            this replica stops or its device is lost, another may draft; ``unexpected``: see the replica's log.
    """

    kind: Literal["image", "memory", "busy", "gone", "unexpected"]
    detail: str
    field: str = ""
    code: str = ""


@dataclass(frozen=True)
class Description:
    """The bundle that a replica serves, and the number of studies in its queue."""

    model: ModelInfo
    device: str
    cases: int | None
    texts: bool
    waiting: int


class ModelReplica:
    """One bundle on the devices of one process. Ray Serve calls the public methods on one event loop."""

    async def __init__(self, settings: Settings, threads: int) -> None:  # type: ignore[misc] # Ray Serve awaits it
        """Load and warm up.

        Args:
            settings: of the service; ``max_concurrent_requests`` bounds the requests in this replica.
            threads: of PyTorch; the environment has those of the process that started Ray.

        Raises:
            RuntimeError: the bundle cannot be served; the message gives the reason.
        """
        logs.configure(settings.log_level, settings.log_format)
        torch.set_num_threads(threads)
        self._runtime = Runtime(settings)
        self._runtime.start()
        while self._runtime.state == "loading":
            await asyncio.sleep(LOAD_POLL_S)
        self.check_health()

    async def draft(self, images: dict[str, bytes], options: DraftOptions) -> RemoteDraft | Failure:
        """Draft one study.

        Args:
            images: view -> content of its file, one or both.
            options: of this request.
        """
        try:
            serving = self._runtime.serving()
            with self._runtime.admission.acquire_slot():
                draft = await serving.backend.draft(images, options)
        except FieldError as error:
            return Failure("image", str(error), error.field, error.code)
        except OutOfMemoryError as error:
            return Failure("memory", str(error))
        except BusyError as error:
            return Failure("busy", error.reason)
        except (DeviceLostError, ClosedError) as error:
            return Failure("gone", str(error))
        except Problem as problem:  # the device is lost already
            return Failure("gone", problem.detail)
        except Exception as error:
            log.error("unexpected %s\n%s", type(error).__name__, format_traceback_locations(error))
            return Failure("unexpected", type(error).__name__)
        cases = tuple(replace(case, images=()) for case in draft.reference_cases)  # the ingress has no pictures
        return RemoteDraft(**{**vars(draft), "reference_cases": cases}, model=serving.model)

    async def describe(self) -> Description | None:
        """Describe the served bundle; None if the device is lost."""
        try:
            serving = self._runtime.serving()
        except Problem:
            return None
        index = serving.case_index
        return Description(serving.model, serving.device, index.cases, index.texts, serving.backend.waiting)

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose health check fails.

        Raises:
            RuntimeError: the bundle could not be loaded, the device was lost, or a batch does not end.
        """
        if self._runtime.state == "failed":
            raise RuntimeError(self._runtime.reason)

    async def __del__(self) -> None:
        await self._runtime.stop()
