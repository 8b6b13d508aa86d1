"""``stream=true``: the answer as server-sent events, each part of it as soon as it is final.

``cases``, then a ``sentence`` each, then ``report``, the whole answer; or ``problem`` where it fails on the way. The
response begins with its first event, so that whatever fails before it is an ordinary problem response.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from model.types import CasesFound, DraftEvent, EventCallback
from service.formats.negotiation import EVENTS, VARY
from service.routes.responses import case_out, sentence_out
from service.schemas.events import CasesEvent, SentenceEvent
from service.schemas.models import ReportResponse
from service.web.disconnect import cancel_on_disconnect
from service.web.problems import PROBLEM_CODE_SCOPE_KEY, Problem, internal_error

KEEP_ALIVE_S = 5.0  # of silence, after which a comment says that the draft is still being made
TAKE_WITHIN_S = 30.0  # a client that leaves an event lying for so long counts as gone: it holds a place
KEEP_ALIVE = format_sse_event(comment="keep-alive")
REDRAFTED = "The draft had to be made again and came out otherwise than it began. Send the study again."
log = logging.getLogger(__name__)
_HEADERS = {**VARY, "Content-Type": EVENTS.media_type, "X-Accel-Buffering": "no"}  # the last for nginx


class EventStream(Response):
    """The events of one draft, which is made while they are sent."""

    def __init__(
        self, request: Request, report: Callable[[EventCallback], Awaitable[ReportResponse]], held: ExitStack
    ) -> None:
        """Do nothing yet.

        Args:
            request: read to its end; work for it is dropped once its client leaves.
            report: drafts, tells the listener early on this event loop, and returns the answer.
            held: closed when the stream ends.
        """
        super().__init__()
        self._request, self._report, self._held = request, report, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events.

        Raises:
            Problem: the draft failed before the first event.
            ClientDisconnect: the client left.
        """
        with self._held:
            await cancel_on_disconnect(self._request, self._stream(scope, _Sender(send)))

    async def _stream(self, scope: Scope, sender: _Sender) -> None:
        news: asyncio.Queue[DraftEvent | None] = asyncio.Queue()
        drafting = asyncio.ensure_future(self._report(news.put_nowait))
        drafting.add_done_callback(lambda _: news.put_nowait(None))
        parts = EventSequence()
        try:
            while (one := await _next(news, sender)) is not None:
                await sender.events(parts.on_event(one))
            await sender.events(parts.on_report(drafting.result()))
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
        self._held.close()  # before the client sees the end: its next request finds the place free
        await sender.end()


async def _next(news: asyncio.Queue[DraftEvent | None], sender: _Sender) -> DraftEvent | None:
    """What comes next; comments keep the connection alive until then."""
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                return await news.get()
        except TimeoutError:
            if sender.started:
                await sender.send(KEEP_ALIVE)


class EventSequence:
    """What is said of a draft, each part once.

    A draft that had to be made again begins anew. Where other cases were found for it, ``cases`` comes again.
    """

    def __init__(self) -> None:
        self._cases: CasesEvent | None = None
        self._texts: list[str] = []

    def on_event(self, news: DraftEvent) -> Iterator[tuple[str, BaseModel]]:
        """The events of what is final early."""
        if isinstance(news, CasesFound):
            if self._cases is None:
                yield self._of_cases(CasesEvent(reference_cases=[case_out(case) for case in news.cases]))
        elif news.index == len(self._texts):
            yield self._of_sentence(SentenceEvent(index=news.index, sentence=sentence_out(news.sentence)))

    def on_report(self, report: ReportResponse) -> Iterator[tuple[str, BaseModel]]:
        """The events that are still to come once the answer is there.

        Raises:
            Problem: what was said before is not in it.
        """
        said = len(self._texts)
        if self._texts != [sentence.text for sentence in report.sentences[:said]]:
            log.error("a draft was made again and came out otherwise than the %d sentences said of it", said)
            raise Problem("internal", REDRAFTED)
        if self._cases != (cases := CasesEvent(reference_cases=report.reference_cases)):
            yield self._of_cases(cases)
        for index, sentence in enumerate(report.sentences[said:], said):
            yield self._of_sentence(
                SentenceEvent(index=index, sentence=sentence.model_copy(update={"attention": None}))
            )
        yield "report", report

    def _of_cases(self, event: CasesEvent) -> tuple[str, BaseModel]:
        self._cases = event
        return "cases", event

    def _of_sentence(self, event: SentenceEvent) -> tuple[str, BaseModel]:
        self._texts.append(event.sentence.text)
        return "sentence", event


class _Sender:
    """The body of the response; its head goes before the first event."""

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
            await self._pass({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send(format_sse_event(event=name, data_str=data.model_dump_json()))

    async def end(self) -> None:
        await self.send(b"", more=False)

    async def send(self, data: bytes, *, more: bool = True) -> None:
        await self._pass({"type": "http.response.body", "body": data, "more_body": more})

    async def _pass(self, message: Message) -> None:
        try:
            async with asyncio.timeout(TAKE_WITHIN_S):
                await self._send(message)
        except TimeoutError as error:
            raise ClientDisconnect from error
