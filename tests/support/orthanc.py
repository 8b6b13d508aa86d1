"""An Orthanc of this machine, started on loopback with its storage in a temporary folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.service import WAIT_S, free_port

_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/lib/x86_64-linux-gnu/orthanc", "/usr/local/lib")
CREDENTIALS = ("pull", "secret")
_NAMES = ("libOrthancDicomWeb.so*", "OrthancDicomWeb.so*")


def find_orthanc() -> tuple[str, Path]:
    """The program and its DICOMweb plugin; skips the test where they are not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugin = next((path for folder in _PLUGINS for name in _NAMES for path in sorted(Path(folder).glob(name))), None)
    if program is None or plugin is None:
        pytest.skip("needs Orthanc with DICOMweb: apt install orthanc orthanc-dicomweb")
    return program, plugin


@dataclass
class Orthanc:
    """A running server. AE title ``ORTHANC``; any peer may store, find and echo."""

    folder: Path
    http_port: int
    dicom_port: int
    config: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its REST API."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        """Its DICOMweb service."""
        return f"{self.url}/dicom-web"

    def start(self) -> None:
        """Start the process and wait until it answers; its storage is kept between starts."""
        program, _ = find_orthanc()
        file = self.folder / "orthanc.json"
        file.write_text(json.dumps(self.config))
        with (self.folder / "orthanc.log").open("ab") as output:
            self.process = subprocess.Popen([program, str(file)], stdout=output, stderr=output)
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if httpx.get(f"{self.url}/system", auth=CREDENTIALS, verify=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()
            assert time.monotonic() < deadline, "Orthanc did not start"
            time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """End the process; `kill`, which is faster, may lose what it stored last."""
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(WAIT_S)
            self.process = None

    def clear(self) -> None:
        """Delete all studies."""
        with self.client() as client:
            for key in client.get("/patients").json():
                client.delete(f"/patients/{key}").raise_for_status()

    def client(self) -> httpx.Client:
        """A client of its REST API."""
        return httpx.Client(base_url=self.url, auth=CREDENTIALS, timeout=WAIT_S, verify=False)

    def upload(self, *files: bytes) -> None:
        """Store these DICOM files."""
        with self.client() as client:
            for data in files:
                client.post("/instances", content=data).raise_for_status()

    def files(self, modality: str | None = None) -> list[bytes]:
        """All stored files, or those of a modality."""
        query = {"Level": "Instance", "Query": {"Modality": modality} if modality else {}}
        with self.client() as client:
            return [
                client.get(f"/instances/{key}/file").content for key in client.post("/tools/find", json=query).json()
            ]


@contextmanager
def running_orthanc(folder: Path, *, modalities: Mapping[str, tuple[str, int]] | None = None) -> Iterator[Orthanc]:
    """A running Orthanc with the user ``pull`` and the password ``secret``.

    Args:
        folder: of its configuration and storage.
        modalities: AE titles that it may send to, with host and port.
    """
    _, plugin = find_orthanc()
    http_port, dicom_port = free_port(), free_port()
    peers = {name: {"AET": name, "Host": host, "Port": port} for name, (host, port) in (modalities or {}).items()}
    config = {
        "Name": "tests", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "TemporaryDirectory": str(folder), "HttpPort": http_port, "DicomPort": dicom_port, "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False, "AuthenticationEnabled": True, "RegisteredUsers": dict([CREDENTIALS]),
        "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True, "DicomCheckCalledAet": False,
        "DicomModalities": peers, "StableAge": 1, "HttpThreadsCount": 4, "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    orthanc = Orthanc(folder, http_port, dicom_port, config)
    try:
        orthanc.start()
        yield orthanc
    finally:
        orthanc.stop(kill=True)
