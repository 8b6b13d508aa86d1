"""Settings of the DICOM node, and its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.pacs.node_settings import Archive, NodeSettings, Peer, node_settings_or_exit
from service.settings import unknown_variables

GIVEN = {"peers": "MODALITY", "destination": "ARCHIVE@10.0.0.5:4242"}


def test_peers_and_destination_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_PACS_PEERS", "MODALITY, PACS ONE@10.0.0.5,")
    monkeypatch.setenv("REPORT_PACS_DESTINATION", "ARCHIVE@[fe80::1]:4242")
    settings = NodeSettings()
    assert settings.allowed() == (Peer("MODALITY", None), Peer("PACS ONE", "10.0.0.5"))
    assert settings.archive() == Archive("ARCHIVE", "fe80::1", 4242)
    assert (settings.ae_title, settings.host, settings.port, settings.spool) == ("CXRREPORT", "127.0.0.1", 11112, False)


@pytest.mark.parametrize("peers", ["", "A" * 17, "A\\B", "MODALITY@", "ä", " ,"])
def test_refuses_peers_that_are_no_titles(peers: str) -> None:
    with pytest.raises(ValidationError):
        NodeSettings(**GIVEN | {"peers": peers})


@pytest.mark.parametrize("value", ["", "ARCHIVE", "ARCHIVE@host", "ARCHIVE@host:0", "ARCHIVE@host:70000", "ftp://a"])
def test_refuses_destinations_that_are_no_addresses(value: str) -> None:
    with pytest.raises(ValidationError):
        NodeSettings(**GIVEN | {"destination": value})


@pytest.mark.parametrize("changes", [{}, {"destination": "dicomweb", "peers": "dicomweb"}])
def test_refuses_commitment_of_an_archive_that_is_no_peer(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="REPORT_PACS_COMMITMENT=true needs an AE title"):
        NodeSettings(**GIVEN | {"commitment": "true"} | changes)
    assert NodeSettings(**GIVEN | {"commitment": "true", "peers": "MODALITY,ARCHIVE"}).commitment


def test_missing_settings_are_named_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        node_settings_or_exit()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error == "REPORT_PACS_PEERS: Field required\nREPORT_PACS_DESTINATION: Field required\n"


def test_service_ignores_settings_of_the_node() -> None:
    assert unknown_variables({"REPORT_PACS_PEERS": "A"}) == []


def test_command_reports_an_address_that_it_cannot_use(tmp_path: Path) -> None:
    environment = {"REPORT_PACS_PEERS": "A", "REPORT_PACS_DESTINATION": "B@h:1", "REPORT_PACS_HOST": "203.0.113.1"}
    command = [sys.executable, "-m", "service.dicom_node"]
    ended = subprocess.run(
        command, env=environment | {"REPORT_PACS_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 4
    assert ended.stderr.startswith("the node cannot start: ")
    assert ended.stderr.count("\n") == 1
