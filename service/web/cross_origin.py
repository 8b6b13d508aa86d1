"""Pages of other origins, where the settings name them: CORS for the addresses that programs use."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.web.problems import Problem

PATHS = ("/report", "/preview", "/export", "/health")
UNDER = "/cases/"  # what answers refer to, to be read; adding cases is for no other page


class CrossOrigin:
    """Middleware: lets pages of exactly these `origins` use ``PATHS`` and ``UNDER``; browsers keep all others out."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self.shared = _Cors(
            app,
            allow_origins=tuple(origins),
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "X-API-Key", "X-Request-ID"),
            expose_headers=("X-Request-ID", "Retry-After"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shared = scope["type"] == "http" and (scope["path"] in PATHS or scope["path"].startswith(UNDER))
        await (self.shared if shared else self.app)(scope, receive, send)


class _Cors(CORSMiddleware):
    """Starlette's, whose refusal of a preflight is a problem like every other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        detail = "Pages of this origin, or this method or header, are not let in. See REPORT_CORS_ORIGINS."
        return Problem("cross_origin", detail, headers=kept).response()
