"""``stream=true``: the response as server-sent events, each sent as soon as its data is final.

``cases``, then one ``sentence`` event for each sentence, then ``report``; or ``problem`` if the
draft fails. The response starts with its first event, so a failure before it is an ordinary problem
response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from model.types import CasesFound
from service.formats.negotiation import EVENTS, VARY
from service.routes.responses import case_out
from service.schemas.events import CasesEvent, SentenceEvent
from service.schemas.models import ReportResponse
from service.web.disconnect import cancel_on_disconnect
from service.web.problems import PROBLEM_CODE_SCOPE_KEY, Problem, internal_error

KEEP_ALIVE_S = 5.0  # seconds without an event after which a comment is sent
SEND_TIMEOUT_S = 30.0  # a client that does not read during this time counts as disconnected
KEEP_ALIVE = format_sse_event(comment="keep-alive")
EarlyResult = CasesFound | ReportResponse  # the retrieved cases, or the report before it is refined
EarlyCallback = Callable[[EarlyResult], None]
_HEADERS = {**VARY, "Content-Type": EVENTS.media_type, "X-Accel-Buffering": "no"}  # the last one is for nginx


class EventStream(Response):
    """Runs one draft and sends its events."""

    def __init__(
        self, request: Request, report: Callable[[EarlyCallback], Awaitable[ReportResponse]], held: ExitStack
    ) -> None:
        """Store the arguments.

        Args:
            request: its body was read; the draft is cancelled when its client disconnects.
            report: drafts, calls its argument on this event loop, and returns the report.
            held: closed when the stream ends.
        """
        super().__init__()
        self._request, self._report, self._held = request, report, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events.

        Raises:
            Problem: the draft failed before the first event.
            ClientDisconnect: the client disconnected.
        """
        with self._held:
            await cancel_on_disconnect(self._request, self._stream(scope, _Sender(send)))

    async def _stream(self, scope: Scope, sender: _Sender) -> None:
        events: asyncio.Queue[EarlyResult | None] = asyncio.Queue()
        drafting = asyncio.ensure_future(self._report(events.put_nowait))
        drafting.add_done_callback(lambda _: events.put_nowait(None))
        sequence = EventSequence()
        try:
            while (event := await _next(events, sender)) is not None:
                await sender.events(sequence.on_event(event))
            await sender.events(sequence.on_report(drafting.result()))
        except ClientDisconnect:
            raise
        except Exception as error:
            if not sender.started:
                raise
            problem = error if isinstance(error, Problem) else internal_error(error)
            scope[PROBLEM_CODE_SCOPE_KEY] = problem.code
            await sender.event("problem", problem.details())
        finally:
            drafting.cancel()
            await asyncio.gather(drafting, return_exceptions=True)
        self._held.close()  # before the end is sent, so that the client's next request gets the slot
        await sender.end()


async def _next(events: asyncio.Queue[EarlyResult | None], sender: _Sender) -> EarlyResult | None:
    """The next event; comments keep the connection alive until then."""
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                return await events.get()
        except TimeoutError:
            if sender.started:
                await sender.send(KEEP_ALIVE)


class EventSequence:
    """The events of a draft, each once, even if the draft runs twice.

    ``cases`` is sent again if the second run found other cases.
    """

    def __init__(self) -> None:
        self._cases: CasesEvent | None = None
        self._drafted = False

    def on_event(self, event: EarlyResult) -> Iterator[tuple[str, BaseModel]]:
        """The events of an early result."""
        if isinstance(event, ReportResponse):
            yield from self._on_draft(event)
        elif self._cases is None:
            yield self._on_cases(CasesEvent(reference_cases=[case_out(case) for case in event.cases]))

    def on_report(self, report: ReportResponse) -> Iterator[tuple[str, BaseModel]]:
        """The remaining events, once the report is complete."""
        if not self._drafted:
            yield from self._on_draft(report)
        yield "report", report

    def _on_cases(self, event: CasesEvent) -> tuple[str, BaseModel]:
        self._cases = event
        return "cases", event

    def _on_draft(self, report: ReportResponse) -> Iterator[tuple[str, BaseModel]]:
        self._drafted = True
        if self._cases != (cases := CasesEvent(reference_cases=report.reference_cases)):
            yield self._on_cases(cases)
        for index, sentence in enumerate(report.sentences):
            without_maps = sentence.model_copy(update={"attention": None, "evidence": None})
            yield "sentence", SentenceEvent(index=index, sentence=without_maps)


class _Sender:
    """Sends the body of the response, and its headers before the first event."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send

    async def events(self, events: Iterator[tuple[str, BaseModel]]) -> None:
        for name, data in events:
            await self.event(name, data)

    async def event(self, name: str, data: BaseModel) -> None:
        if not self.started:
            self.started = True
            headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            await self._send_in_time({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send(format_sse_event(event=name, data_str=data.model_dump_json()))

    async def end(self) -> None:
        await self.send(b"", more=False)

    async def send(self, data: bytes, *, more: bool = True) -> None:
        await self._send_in_time({"type": "http.response.body", "body": data, "more_body": more})

    async def _send_in_time(self, message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError as error:
            raise ClientDisconnect from error
