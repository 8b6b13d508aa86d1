"""Dependencies for routes that need an API key.

``require_api_key_if_configured`` admits every request while the service has no key;
``require_api_key`` then refuses every request. Both run before the body is read.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.keys import Keys
from service.web.problems import Problem

BEARER = HTTPBearer(scheme_name="bearer", description="Authorization: Bearer KEY", auto_error=False)
HEADER = APIKeyHeader(name="X-API-Key", scheme_name="apiKey", description="The same key.", auto_error=False)
_HOW = "Send it as Authorization: Bearer KEY or as X-API-Key: KEY."

Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
Header = Annotated[str | None, Security(HEADER)]


async def require_api_key_if_configured(request: Request, bearer: Bearer, header: Header) -> None:
    """Refuse a request without a valid key; a service without keys refuses none.

    Raises:
        Problem: ``unauthorized``, 401.
    """
    keys: Keys = request.app.state.keys
    if not keys:
        return
    offered = [key for key in (bearer.credentials if bearer else None, header) if key]
    if not keys.accept(offered):
        was = "The API key is not valid." if offered else "This endpoint requires an API key."
        raise Problem("unauthorized", f"{was} {_HOW}", headers={"WWW-Authenticate": "Bearer"})


async def require_api_key(request: Request, bearer: Bearer, header: Header) -> None:
    """Refuse a request without a valid key, and every request where the service has no key.

    Raises:
        Problem: ``unauthorized``, 401; ``no_api_key``, 403.
    """
    if not request.app.state.keys:
        raise Problem(
            "no_api_key",
            "This endpoint changes the service and requires an API key, but none is configured. "
            "Set REPORT_API_KEY or REPORT_API_KEY_FILE and restart.",
        )
    await require_api_key_if_configured(request, bearer, header)
