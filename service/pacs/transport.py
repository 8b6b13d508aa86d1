"""Carries the requests of dicomweb-client over httpx, with limits that requests lacks.

One deadline for all exchanges of an operation, a size for each answer, no redirect, no proxy, no
cookie, no compression, no server but the configured one. Every failure is a problem with its code;
no part of an answer is quoted.
"""

from __future__ import annotations

import asyncio
import functools
import io
import ssl
import time
from concurrent.futures import Future
from typing import Any

import httpx

from service.inference.threads import background_loop
from service.web.problems import Problem

CHECK = "Check REPORT_DICOMWEB_URL and the log of the PACS."
_JSON = "application/dicom+json"


def broken(reason: str) -> Problem:
    """The problem of an answer that cannot be used."""
    return Problem("pacs_broken", f"The answer of the PACS cannot be used: {reason}. {CHECK}")


class Transport:
    """Carries the requests of one operation."""

    def __init__(self, url: str, authorization: str | None, timeout_s: float) -> None:
        """Open no connection.

        Args:
            url: base address of the server.
            authorization: value of the header of this name.
            timeout_s: seconds from now for all exchanges.
        """
        self.authorization = authorization
        self._base = httpx.URL(f"{url}/")
        self._max_bytes, self._expected = 0, "The answer"
        self._timeout_s, self._deadline = timeout_s, time.monotonic() + timeout_s
        self._loop = background_loop("dicomweb")
        self._http: httpx.AsyncClient | None = None
        self._running: Future[tuple[str, bytes]] | None = None
        self._closed = False
        self.session = _session(self)

    def expect(self, max_bytes: int, what: str) -> None:
        """Limit the next answers; ``what`` begins the detail of a larger one."""
        self._max_bytes, self._expected = max_bytes, what

    def exchange(self, request: httpx.Request) -> tuple[str, bytes]:
        """Content-Type and body of an answer with status 200 to 299.

        Raises:
            Problem: there is no such answer.
        """
        is_same = (request.url.scheme, request.url.netloc) == (self._base.scheme, self._base.netloc)
        if self._closed or not is_same or not request.url.path.startswith(self._base.path):
            raise broken("it leads to another server")
        self._running = asyncio.run_coroutine_threadsafe(self._exchange(request), self._loop)
        return self._running.result()

    async def _exchange(self, request: httpx.Request) -> tuple[str, bytes]:
        try:
            async with asyncio.timeout(max(self._deadline - time.monotonic(), 0.001)):
                return await self._send(request)
        except TimeoutError:
            detail = f"The PACS did not answer within {self._timeout_s:g} s (REPORT_DICOMWEB_TIMEOUT_S). Try again."
            raise Problem("pacs_timeout", detail) from None
        except httpx.NetworkError as error:
            detail = f"The PACS cannot be reached ({type(error).__name__}). {CHECK}"
            raise Problem("pacs_unreachable", detail) from None
        except httpx.HTTPError as error:
            raise broken(f"it is not HTTP ({type(error).__name__})") from None

    async def _send(self, request: httpx.Request) -> tuple[str, bytes]:
        if self._http is None:
            self._http = httpx.AsyncClient(verify=_ssl_context(), timeout=None, trust_env=False)
        received = bytearray()
        response = await self._http.send(request, stream=True, follow_redirects=False)
        try:
            _check_status(request.method, response.status_code)
            async for part in response.aiter_raw():
                received += part
                if len(received) > self._max_bytes:
                    detail = f"{self._expected} is larger than {self._max_bytes:,} bytes."
                    raise Problem("study_too_large", detail)
        finally:
            await response.aclose()
        return response.headers.get("Content-Type", ""), bytes(received)

    def close(self) -> None:
        """End the running exchange and the connections."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
        if self._http is not None:
            asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop)


def _check_status(method: str, status: int) -> None:
    if 200 <= status < 300:
        return
    if status in (401, 403):
        detail = f"The PACS refuses the service with status {status}. Check REPORT_DICOMWEB_CREDENTIALS_FILE."
        raise Problem("pacs_forbidden", detail)
    if method == "POST":
        raise Problem("pacs_not_stored", f"The PACS refused the report with status {status}. {CHECK}")
    if status == 404:
        raise Problem("no_such_study", "The PACS has no such study, or no longer. Check the StudyInstanceUID.")
    raise broken(f"its status is {status}")


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _session(transport: Transport) -> Any:
    """A session of requests, which dicomweb-client needs, over the transport."""
    import requests
    from requests.adapters import BaseAdapter

    class Adapter(BaseAdapter):
        def send(self, request: Any, *_: Any, **__: Any) -> Any:
            headers = {"Accept": _JSON, "Accept-Encoding": "identity"}  # a gzip bomb would pass the limit of bytes
            if transport.authorization is not None:
                headers["Authorization"] = transport.authorization
            sent = {name: value for name, value in request.headers.items() if name in ("Content-Type", "Accept")}
            headers |= {name: value for name, value in sent.items() if value != "*/*"}
            message = httpx.Request(request.method, request.url, headers=headers, content=request.body)
            response = requests.Response()
            response.headers["Content-Type"], body = transport.exchange(message)
            response.status_code, response.url, response.request = 200, request.url, request
            response.raw = io.BytesIO(body)
            return response

        def close(self) -> None:
            pass

    session = requests.Session()
    session.trust_env = False  # no proxy, no .netrc
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session
