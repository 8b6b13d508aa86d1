"""Settings of the DICOM node: typed, read from the environment (``REPORT_PACS_…``), checked once at start."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.settings import EXIT_SETTINGS, MIB, explain, read_keys

ENV_PREFIX = "REPORT_PACS_"
_TITLE = r"[!-?A-\[\]-~]([ -?A-\[\]-~]{0,14}[!-?A-\[\]-~])?"  # 1 to 16 characters of ASCII, no backslash, no @
_PEER = re.compile(rf"({_TITLE})(@([0-9a-zA-Z.:-]+))?")
_DESTINATION = re.compile(rf"({_TITLE})@([0-9a-zA-Z.-]+|\[[0-9a-fA-F:]+\]):([0-9]{{1,5}})")
_HTTP_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
DICOMWEB = "dicomweb"


class Peer(NamedTuple):
    """A peer that may send: its AE title, and its IP address if only this one is allowed."""

    title: str
    address: str | None


class Archive(NamedTuple):
    """The Storage SCP that receives structured reports."""

    title: str
    host: str
    port: int


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _checked_peers(peers: tuple[str, ...]) -> tuple[str, ...]:
    if not peers:
        raise ValueError("name at least one AE title that may send, such as MODALITY,PACS@10.0.0.5")
    for peer in peers:
        if not _PEER.fullmatch(peer):
            raise ValueError(f"{peer!r} is no AE title; write up to 16 characters of ASCII, then @ADDRESS if wanted")
    return peers


def _checked_destination(value: str) -> str:
    found = _DESTINATION.fullmatch(value)
    if value != DICOMWEB and (found is None or not 0 < int(found[4]) < 65536):
        raise ValueError(
            "write AE@host:port for C-STORE, such as ORTHANC@127.0.0.1:4242, or dicomweb for STOW-RS "
            "to the server of REPORT_DICOMWEB_URL"
        )
    return value


def _checked_url(value: str) -> str:
    if not _HTTP_URL.fullmatch(value):
        raise ValueError(
            "write an address such as http://127.0.0.1:8000; the key goes into REPORT_PACS_REPORT_KEY_FILE"
        )
    return value.rstrip("/")


def _checked_key_file(path: Path) -> Path:
    read_keys(path, min_length=1)
    return path


class NodeSettings(BaseSettings):
    """All settings of the DICOM node, with their units.

    Attributes:
        ae_title: AE title that peers must call.
        host: address to listen on; ``0.0.0.0`` accepts connections from other machines.
        port: TCP port of the Storage SCP.
        peers: comma-separated AE titles that may send, each with ``@ADDRESS`` if only that IP address may use it.
        destination: where structured reports go: ``AE@host:port`` (C-STORE), or ``dicomweb`` (STOW-RS to
            ``REPORT_DICOMWEB_URL``). From that server, if it is set, the node reads earlier images of a study that
            grew.
        report_url: address of the report service.
        report_key_file: file with the API key of the report service.
        dir: private directory of the queue and the spool, created with mode 0700. One node uses it.
        spool: keep received images and unsent drafts in files until they are sent, so that a killed node loses no
            study.
        quiet_s: seconds without a new instance after which a study is drafted.
        keep_s: seconds for which images are kept after sending, for studies that grow.
        commitment: a report counts as sent once the archive has committed to keep it (storage commitment).
        commitment_timeout_s: seconds after which a report without an answer is sent again.
        max_associations: limit on concurrent associations; one address may use half of them.
        max_object_bytes: largest object, in bytes.
        max_held_bytes: limit on all received bytes that are not sent yet.
        max_pdu_bytes: largest PDU.
        network_timeout_s: seconds without data after which an association is aborted.
        transfer_timeout_s: seconds within which one object must arrive.
        retry_max_s: longest pause between two attempts; the first is 1 s, each next is twice as long.
        give_up_s: seconds after which a study that cannot be drafted or sent has failed.
        keep_days: days for which the worklist lists a finished study.
        names: store patient names and accession numbers in the queue, for the worklist.
        status_host: address of ``/health`` and ``/metrics``.
        status_port: its TCP port.
        log_level: lowest level of log lines.
        log_format: ``json`` or ``text``.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, hide_input_in_errors=True)

    ae_title: Annotated[str, Field(pattern=f"^{_TITLE}$")] = "CXRREPORT"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    peers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_checked_peers)]
    destination: Annotated[str, AfterValidator(_checked_destination)]
    report_url: Annotated[str, AfterValidator(_checked_url)] = "http://127.0.0.1:8000"
    report_key_file: Annotated[Path, AfterValidator(_checked_key_file)] | None = None
    dir: Path = Path(".dicom-node")
    spool: bool = False
    quiet_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    keep_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    commitment: bool = False
    commitment_timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    max_associations: Annotated[int, Field(ge=2, le=100)] = 10
    max_object_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 32 * MIB
    max_held_bytes: Annotated[int, Field(ge=MIB, le=1024 * 1024 * MIB)] = 2048 * MIB
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=4 * MIB)] = 256 * 1024
    network_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    transfer_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    retry_max_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    give_up_s: Annotated[float, Field(gt=0, le=31_536_000)] = 604_800.0
    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30
    names: bool = False
    status_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    status_port: Annotated[int, Field(ge=0, le=65535)] = 8011
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "text"

    @model_validator(mode="after")
    def _archive_may_commit(self) -> Self:
        archive = self.archive()
        if self.commitment and (archive is None or archive.title not in {peer.title for peer in self.allowed()}):
            raise ValueError(
                "REPORT_PACS_COMMITMENT=true needs an AE title as REPORT_PACS_DESTINATION, which REPORT_PACS_PEERS "
                "names too: the archive answers on an association with the node"
            )
        return self

    @property
    def queue_file(self) -> Path:
        """The SQLite file of the queue."""
        return self.dir / "queue.sqlite"

    def allowed(self) -> tuple[Peer, ...]:
        """The peers that may send."""
        found = (_PEER.fullmatch(peer) for peer in self.peers)
        return tuple(Peer(match[1], match[4]) for match in found if match)

    def archive(self) -> Archive | None:
        """The Storage SCP of ``destination``; None for STOW-RS."""
        found = _DESTINATION.fullmatch(self.destination)
        return Archive(found[1], found[3].strip("[]"), int(found[4])) if found else None

    def report_key(self) -> str | None:
        """The API key of the report service; None if none is configured."""
        return None if self.report_key_file is None else read_keys(self.report_key_file, min_length=1)[0]


def node_settings_or_exit(**given: Any) -> NodeSettings:
    """Settings of the environment, overridden by ``given``; for entry points.

    Raises:
        SystemExit: a setting is wrong or missing (status 2); standard error names it.
    """
    try:
        return NodeSettings(**given)
    except ValidationError as error:
        print(explain(error, ENV_PREFIX), file=sys.stderr)
        raise SystemExit(EXIT_SETTINGS) from None
