"""The proxy of docker-compose.tls.yml: Caddy with the real Caddyfile in front of a real service."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest

from tests.support.paths import REPOSITORY
from tests.support.service import PROBLEM, WAIT_S, free_port, live_server, png

CADDY = shutil.which("caddy", path=f"{os.environ.get('CADDY_DIR', '')}:{os.environ['PATH']}")
CADDYFILE = REPOSITORY / "deploy" / "Caddyfile"
CANARY = "Canary-Patient-4711"
pytestmark = pytest.mark.skipif(
    CADDY is None,
    reason="no caddy on this machine (Debian: apt install caddy; or CADDY_DIR names the folder of the binary)",
)


@dataclass(frozen=True)
class Proxy:
    """A running Caddy: its addresses, the certificate of its authority, its log."""

    https: str
    http: str
    authority: Path
    log: Path

    def client(self) -> httpx.Client:
        """A client that trusts this authority and no other."""
        context = ssl.create_default_context(cafile=str(self.authority))
        return httpx.Client(base_url=self.https, verify=context, timeout=WAIT_S, trust_env=False)


def environment(data: Path, **variables: str) -> dict[str, str]:
    folders = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"), str(data))
    return {"PATH": os.environ["PATH"], "CADDY_ADMIN": "off", **folders, **variables}


@contextmanager
def proxy(data: Path, upstream: int, **variables: str) -> Iterator[Proxy]:
    """Caddy with the project's Caddyfile, its ports and its upstream on this machine."""
    assert CADDY is not None
    https, http = free_port(), free_port()
    given = environment(data, UPSTREAM=f"127.0.0.1:{upstream}", HTTPS_PORT=str(https), HTTP_PORT=str(http), **variables)
    log = data / "caddy.log"
    authority = data / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [CADDY, "run", "--adapter", "caddyfile", "--config", str(CADDYFILE)], env=given, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + WAIT_S
        while not (authority.exists() and shows_certificate(https)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Proxy(f"https://localhost:{https}", f"http://localhost:{http}", authority, log)
    finally:
        process.terminate()
        assert process.wait(WAIT_S) == 0


def shows_certificate(port: int) -> bool:
    """Whether a handshake succeeds: the port is open a little before the certificate is issued."""
    try:
        return bool(ssl.get_server_certificate(("localhost", port), timeout=5))
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[tuple[Proxy, httpx.Client]]:
    """The proxy, and a client of the service behind it."""
    data = tmp_path_factory.mktemp("caddy")
    with (
        live_server(bundle, max_upload_bytes=100_000) as live,
        live.client() as direct,
        proxy(data, live.port, MAX_BODY_BYTES="300000") as front,
    ):
        yield front, direct


@pytest.mark.parametrize("tls", ["internal", "/certificates/site.pem /certificates/site.key", "someone@example.org"])
def test_the_caddyfile_is_valid_and_formatted(tls: str, tmp_path: Path) -> None:
    assert CADDY is not None
    command = [CADDY, "adapt", "--adapter", "caddyfile", "--config", str(CADDYFILE)]
    given = environment(tmp_path, TLS=tls, SITE="cxr.example.org")
    run = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "warn" not in run.stderr.lower(), run.stderr
    assert ("/certificates/site.key" in run.stdout) == ("site.key" in tls)


def test_a_draft_through_tls_equals_that_of_the_service(served: tuple[Proxy, httpx.Client]) -> None:
    front, direct = served
    files, headers = {"frontal": ("f", png())}, {"X-Request-ID": "6f1d3c8e-0f57-4d0b-9d38-2f4f8d1f0a11"}
    with front.client() as client:
        through = client.post("/report", files=files, headers=headers)
    plain = direct.post("/report", files=files, headers=headers)
    assert through.status_code == plain.status_code == 200
    assert through.json()["sentences"] == plain.json()["sentences"]
    assert through.headers.get("x-request-id") == plain.headers.get("x-request-id")
    assert through.headers["strict-transport-security"] == "max-age=31536000"
    assert "server" not in through.headers
    for name in ("content-security-policy", "cache-control", "x-content-type-options"):
        assert through.headers[name] == plain.headers[name]


def test_the_internal_authority_is_untrusted_and_plain_http_is_redirected(served: tuple[Proxy, httpx.Client]) -> None:
    front, _ = served
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{front.https}/health", trust_env=False)
    answer = httpx.get(f"{front.http}/report", trust_env=False)
    assert answer.status_code == 308
    assert answer.headers["location"] == "https://localhost/report"


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "//metrics", "/METRICS", "/%6detrics", "/x/../metrics", "/reload"]
)
def test_internal_paths_are_not_proxied(served: tuple[Proxy, httpx.Client], path: str) -> None:
    front, _ = served
    context = ssl.create_default_context(cafile=str(front.authority))
    for method in ("GET", "POST"):
        connection = HTTPSConnection(front.https.removeprefix("https://"), context=context, timeout=WAIT_S)
        connection.request(method, path)  # httpx would normalise the path
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 404, body
        assert answer.headers["content-type"] == PROBLEM
        assert json.loads(body)["detail"] == "Not served to the outside."


def test_large_bodies_get_the_problem_of_the_service_or_of_the_proxy(served: tuple[Proxy, httpx.Client]) -> None:
    """Above the limit of the proxy either may respond first: the service has the smaller limit."""
    front, _ = served
    with front.client() as client:
        for size, limits in ((150_000, ("100,000",)), (400_000, ("265,536", "proxy"))):
            answer = client.post("/report", files={"frontal": ("f", bytes(size))})
            assert answer.status_code == 413, answer.text
            assert answer.headers["content-type"] == PROBLEM
            assert answer.json()["code"] == "upload_too_large"
            assert any(limit in answer.json()["detail"] for limit in limits)


def test_an_unreachable_service_gives_a_problem_and_logs_nothing_of_the_request(tmp_path: Path) -> None:
    with proxy(tmp_path, free_port()) as front, front.client() as client:
        answer = client.post(
            f"/report?name={CANARY}", files={"frontal": (f"{CANARY}.png", png())},
            headers={"X-Patient": CANARY, "X-API-Key": CANARY, "Authorization": f"Bearer {CANARY}"},
        )  # fmt: skip
    assert answer.status_code == 502
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["code"] == "unreachable"
    assert answer.json()["status"] == 502
    log = front.log.read_text()
    assert '"status":502' in log
    assert CANARY not in log
    assert "127.0.0.1" not in log.partition('"status":502')[2].partition("\n")[0]
