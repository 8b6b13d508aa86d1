"""API keys: which requests are admitted, which settings are refused, and that no key is shown."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from service.app import create_app
from service.keys import Keys, check_key
from service.settings import Settings, explain, read_keys
from tests.support.service import KEY, PROBLEM, Live, live_server, png, settings_for

OTHER = "second-key-0123456789abcdef"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys"
    file.write_text(f"\ufeff# the first of each month\n{KEY}\n\n  {OTHER}\r\n")
    with live_server(bundle, warm_up=False, api_key_file=file) as live:
        yield live


@pytest.fixture
def keyed(live: Live) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client


def post(client: httpx.Client, **headers: str) -> httpx.Response:
    files = {"frontal": ("f", png())}
    return client.post("/report", files=files, headers={name.replace("_", "-"): v for name, v in headers.items()})


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {OTHER}"},
        {"X-API-Key": KEY},
        {"X-API-Key": OTHER, "Authorization": "Basic bm90Om1pbmU="},  # with the login of a proxy
    ],
)
def test_accepts_each_configured_key(keyed: httpx.Client, headers: dict[str, str]) -> None:
    answer = post(keyed, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["findings"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "requires an API key"),
        ({"Authorization": "Basic bm90Om1pbmU="}, "requires an API key"),
        ({"Authorization": "Bearer"}, "requires an API key"),
        ({"X-API-Key": ""}, "requires an API key"),
        ({"X-API-Key": KEY[:-1]}, "not valid"),
        ({"X-API-Key": KEY + "x"}, "not valid"),
        ({"X-API-Key": KEY.upper()}, "not valid"),
        ({"X-API-Key": "# the first of each month"}, "not valid"),
        ({"Authorization": f"Bearer {KEY},{OTHER}"}, "not valid"),
        ({"Authorization": "Bearer schl\xfcssel-mit-umlaut"}, "not valid"),
    ],
)
def test_rejects_other_keys(keyed: httpx.Client, headers: dict[str, str], words: str) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = keyed.post("/report", files={"frontal": ("f", png())}, headers=raw)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["code"] == "unauthorized"
    assert words in answer.json()["detail"]
    assert KEY[:-1] not in answer.text


def test_the_key_is_checked_before_the_body_is_read(live: Live) -> None:
    head = (
        b"POST /report HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 999\r\n"
    )
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(head + b"\r\n\r\n")  # and no byte of the body
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_open_routes_need_no_key(keyed: httpx.Client) -> None:
    for path in ("/", "/health", "/openapi.json", "/static/page.js", "/static/key.js"):
        assert keyed.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("method", "path", "changes"),
    [
        ("POST", "/report", False),
        ("POST", "/studies/1.2.840/report", False),
        ("POST", "/preview", False),
        ("POST", "/export", False),
        ("GET", "/cases/x", False),
        ("POST", "/cases", True),
        ("DELETE", "/cases/x", True),
        ("POST", "/reload", True),
    ],
)
def test_guarded_routes_need_a_key(
    keyed: httpx.Client, client: httpx.Client, method: str, path: str, changes: bool
) -> None:
    """Without configured keys only the routes that change something are closed."""
    for headers in ({}, {"X-API-Key": KEY + "x"}):
        refused = keyed.request(method, path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert keyed.request(method, path, headers={"X-API-Key": OTHER}).status_code != 401
    for headers in ({}, {"X-API-Key": KEY}):
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code == 403) == changes
        assert not changes or answer.json()["code"] in ("no_api_key", "cases_off")


# --- keys -------------------------------------------------------------------------------------------------------


def test_repr_of_keys_shows_only_their_number() -> None:
    keys = Keys([KEY, OTHER])
    assert repr(keys) == "Keys(2)"
    assert KEY not in str(vars(keys))
    assert keys
    assert not Keys()
    assert keys.accept([OTHER])
    assert keys.accept(["wrong", KEY])
    assert not keys.accept(["wrong"])
    assert not keys.accept([])
    assert not Keys().accept([""])


def test_every_key_is_compared_even_after_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def watched(offered: bytes, configured: bytes) -> bool:
        compared.append(configured)
        return real(offered, configured)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert Keys([KEY, OTHER]).accept([KEY])
    assert len(set(compared)) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n\n", "holds no key"),
        (f"{KEY}\nshort-key\n".encode(), "line 2 of the file it names: a key of 9 characters"),
        (f"two words and {KEY}\n".encode(), "line 1 of the file it names: a key may have only"),
        (b"\xff\xfe\x00" * 30, "is not UTF-8 text"),
        (b"x" * 100_000, "larger than"),
    ],
)
def test_rejects_wrong_key_file_without_quoting_keys(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_keys(file)
    assert KEY not in str(caught.value)
    assert "short-key" not in str(caught.value)


def test_accepts_the_shortest_key() -> None:
    check_key("a" * 16)
    with pytest.raises(ValueError, match="15 characters; at least 16"):
        check_key("a" * 15)


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"REPORT_API_KEY": "hunter2-hunter2"}, "REPORT_API_KEY: a key of 15 characters"),
        ({"REPORT_API_KEY": ""}, "REPORT_API_KEY: a key of 0 characters"),
        ({"REPORT_API_KEY": "with blanks in the middle"}, "REPORT_API_KEY: "),
        (
            {"REPORT_API_KEY_FILE": KEY},  # a key in place of a file name
            "REPORT_API_KEY_FILE: the file it names cannot be read: No such file or directory",
        ),
        (
            {"REPORT_API_KEY": KEY, "REPORT_API_KEY_FILE": "keys"},
            "REPORT_API_KEY and REPORT_API_KEY_FILE are both set; unset one of them",
        ),
    ],
)
def test_rejects_wrong_keys_at_start_without_quoting_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    (tmp_path / "keys").write_text(OTHER)
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert explain(caught.value).startswith(expected)
    for text in (str(caught.value), repr(caught.value), explain(caught.value)):
        assert not any(len(value) > 4 and value in text for value in environment.values()), text


def test_settings_do_not_print_the_key() -> None:
    settings = Settings(api_key=SecretStr(KEY))
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert KEY not in text
    assert settings.keys().accept([KEY])


# --- description ------------------------------------------------------------------------------------------------


def test_openapi_describes_keys_only_when_configured() -> None:
    bundle = Path("bundles/none")
    plain: dict[str, Any] = create_app(settings_for(bundle)).openapi()
    assert "securitySchemes" not in plain["components"]
    assert "security" not in plain["paths"]["/report"]["post"]
    assert "401" not in plain["paths"]["/report"]["post"]["responses"]
    keyed: dict[str, Any] = create_app(settings_for(bundle, api_key=KEY)).openapi()
    schemes = keyed["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["apiKey"]["in"], schemes["apiKey"]["name"]) == ("header", "X-API-Key")
    report = keyed["paths"]["/report"]["post"]
    assert report["security"] == [{"bearer": []}, {"apiKey": []}]  # either will do
    assert list(report["responses"]["401"]["content"]) == [PROBLEM]
    assert "security" not in keyed["paths"]["/health"]["get"]
    pytest.importorskip("openapi_spec_validator").validate(keyed)
    assert KEY not in str(keyed)
