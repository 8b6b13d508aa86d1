"""CORS: off unless configured, exact origins, few paths; the security headers stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.settings import Settings, explain
from tests.support.service import AUTHORIZED, KEY, PROBLEM, png, ready_client

ORIGIN, FOREIGN = "https://pacs.example.org", "https://pacs.example.org.evil.example"


@pytest.fixture(scope="module")
def sharing(bundle: Path) -> Iterator[httpx.Client]:
    origins = f"{ORIGIN}, http://localhost:3000"
    with ready_client(bundle, warm_up=False, cors_origins=origins, api_key=KEY) as client:
        yield client


def preflight(client: httpx.Client, origin: str, path: str = "/report", **requested: str) -> httpx.Response:
    wanted = {"Method": "POST", "Headers": "authorization, x-request-id", **requested}
    headers = {"Origin": origin} | {f"Access-Control-Request-{name}": value for name, value in wanted.items()}
    return client.options(path, headers=headers)


def shared(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


def test_cors_is_off_by_default(client: httpx.Client) -> None:
    answer = client.get("/health", headers={"Origin": ORIGIN})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert preflight(client, ORIGIN).status_code == 405


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_configured_origin_may_request_and_read(sharing: httpx.Client, origin: str) -> None:
    answer = preflight(sharing, origin)  # browsers send no key with it
    assert answer.status_code == 200
    assert shared(answer) == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "x-api-key", "x-request-id"))
    assert "access-control-allow-credentials" not in answer.headers
    bearer = {"Origin": origin, **AUTHORIZED}
    answer = sharing.post("/report", files={"frontal": ("f", png())}, headers=bearer)
    assert answer.status_code == 200
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    exported = sharing.post("/export", json={"report": answer.json()}, headers=bearer)
    assert exported.status_code == 200
    drawn = sharing.post("/preview", files={"image": ("i", png())}, headers=bearer)
    assert drawn.status_code == 200
    assert preflight(sharing, origin, "/export", Headers="authorization, content-type").status_code == 200
    health, unauthorized = sharing.get("/health", headers=bearer), sharing.post("/report", headers={"Origin": origin})
    assert (health.status_code, unauthorized.status_code) == (200, 401)
    for each in (answer, exported, drawn, health, unauthorized):
        assert shared(each) == origin
        assert "Origin" in each.headers["vary"]
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["content-security-policy"].startswith("default-src 'none'")
        assert each.headers["x-request-id"]


@pytest.mark.parametrize("origin", [FOREIGN, "http://pacs.example.org", f"{ORIGIN}:8443", "null", f"{ORIGIN}/"])
def test_other_origins_are_refused(sharing: httpx.Client, origin: str) -> None:
    refused = preflight(sharing, origin)
    assert refused.status_code == 400
    assert refused.headers["content-type"] == PROBLEM
    assert refused.json()["code"] == "cross_origin"
    assert origin not in refused.json()["detail"]
    assert shared(refused) is None
    assert shared(sharing.get("/health", headers={"Origin": origin})) is None


def test_other_origins_may_read_cases_only(sharing: httpx.Client) -> None:
    assert preflight(sharing, ORIGIN, "/cases/CXR9001_IM-0001", Method="GET").status_code == 200
    answer = sharing.get("/cases/CXR9001_IM-0001", headers={"Origin": ORIGIN, **AUTHORIZED})
    assert (answer.status_code, shared(answer)) == (200, ORIGIN)
    assert preflight(sharing, ORIGIN, "/cases/CXR9001_IM-0001", Method="DELETE").status_code == 400
    assert shared(preflight(sharing, ORIGIN, "/cases")) is None


@pytest.mark.parametrize("path", ["/studies/1.2.3/report", "/studies/1.2.3/images", "/studies/1.2.3/prior"])
def test_configured_origin_may_use_studies_with_a_key(sharing: httpx.Client, path: str) -> None:
    method = "POST" if path.endswith("report") else "GET"
    assert preflight(sharing, ORIGIN, path, Method=method).status_code == 200
    headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    answer = sharing.request(method, path, headers={**headers, **AUTHORIZED})
    assert (answer.json()["code"], shared(answer)) == ("no_pacs", ORIGIN)
    assert "x-stored-report" in answer.headers["access-control-expose-headers"].lower()
    assert sharing.request(method, path, headers=headers).status_code == 401
    for other in ({**headers, "Origin": FOREIGN}, {"Sec-Fetch-Site": "cross-site"}):
        refused = sharing.request(method, path, headers={**other, **AUTHORIZED})
        assert (refused.json()["code"], shared(refused)) == ("cross_origin", None)


def test_studies_are_not_shared_without_a_key(bundle: Path) -> None:
    with ready_client(bundle, warm_up=False, cors_origins=ORIGIN) as client:
        refused = client.post("/studies/1.2.3/report", headers={"Origin": ORIGIN})
        assert (refused.json()["code"], shared(refused)) == ("cross_origin", None)
        assert shared(preflight(client, ORIGIN, "/studies/1.2.3/report")) is None


def test_other_methods_headers_and_paths_are_not_shared(sharing: httpx.Client) -> None:
    assert preflight(sharing, ORIGIN, Method="DELETE").status_code == 400
    assert preflight(sharing, ORIGIN, Headers="x-patient").status_code == 400
    for path in ("/", "/openapi.json", "/static/page.js", "/nothing"):
        assert shared(sharing.get(path, headers={"Origin": ORIGIN})) is None, path
        assert shared(preflight(sharing, ORIGIN, path)) is None, path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("*", "any web page"),
        ("https://*.example.org", "any web page"),
        (f"{ORIGIN},*", "any web page"),
        (f"{ORIGIN}/", "not an origin"),
        ("pacs.example.org", "not an origin"),
        ("https://PACS.example.org", "lower case"),
        ("null", "not an origin"),
        ("ftp://pacs.example.org", "not an origin"),
        ("https://user@pacs.example.org", "not an origin"),
        ("https://pacs.example.org:443", "default port"),
        ("http://pacs.example.org:80", "default port"),
    ],
)
def test_rejects_invalid_origins_at_start(monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    monkeypatch.setenv("REPORT_CORS_ORIGINS", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    message = explain(caught.value)
    assert message.startswith(f"REPORT_CORS_ORIGINS={value!r}: ")
    assert words in message


def test_origins_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_CORS_ORIGINS", " https://a.example ,http://[::1]:8080,")
    assert Settings().cors_origins == ("https://a.example", "http://[::1]:8080")
    monkeypatch.setenv("REPORT_CORS_ORIGINS", "")
    assert Settings().cors_origins == ()
