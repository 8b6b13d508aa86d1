"""Faults around the service, seen from outside: each ends with a clear message and a defined status."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import WEIGHTS
from model.manifest import write_manifest
from retrieval_index import hydrate
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from service import __main__ as serve
from tests.support.archives import write_reports, xml_files
from tests.support.processes import fork_service
from tests.support.tiny import largest_file, write_tiny_bundle

START_S = 400.0  # a new process imports torch, which takes minutes where all cores are taken


def serve_in_a_process(log: Path, *arguments: str) -> tuple[int | None, str]:
    """Status and log of ``python -m service``, which is expected to end by itself."""
    process = fork_service(arguments, log, REPORT_DEVICE="cpu")
    process.join(START_S)
    process.kill()
    return process.exitcode, log.read_text()


def serve_here(caplog: pytest.LogCaptureFixture, *arguments: str) -> tuple[int, str]:
    """The same in this process, without new imports."""
    status = serve.main([*arguments, "--port", "0"])
    return status, caplog.text


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_rejects_a_flipped_byte_in_the_weights(bundle_copy: Path, tmp_path: Path) -> None:
    flip_a_byte(bundle_copy / WEIGHTS)
    status, log = serve_in_a_process(tmp_path / "log", "--bundle", str(bundle_copy), "--port", "0")
    assert status == serve.EXIT_BUNDLE == 3
    assert f"{WEIGHTS} was altered (SHA-256 differs); restore the bundle from its source" in log
    assert str(bundle_copy) in log
    assert "Traceback" not in log


def test_rejects_a_flipped_byte_in_any_other_file(bundle_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("config.json", "tokenizer.json", "index/reports.faiss", "index/cases.jsonl"):
        flip_a_byte(bundle_copy / name)
        status, log = serve_here(caplog, "--bundle", str(bundle_copy), "--device", "cpu")
        assert (status, f"{name} was altered" in log) == (3, True), name
        flip_a_byte(bundle_copy / name)
        caplog.clear()
    status, log = serve_here(caplog, "--bundle", str(bundle_copy / "nowhere"), "--device", "cpu")
    assert (status, "cannot serve" in log, "nowhere" in log) == (3, True, True)


def test_rejects_the_index_of_another_bundle_by_its_hash(
    bundle_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_tiny_bundle(tmp_path / "other", seed=1, texts=False)
    shutil.copytree(other / "index", bundle_copy / "index", dirs_exist_ok=True)
    status, log = serve_here(caplog, "--bundle", str(bundle_copy), "--device", "cpu")
    assert status == 3
    assert "index/" in log
    assert "restore the bundle from its source" in log


def test_rejects_an_index_of_wrong_width_with_a_rewritten_manifest(
    bundle_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = np.eye(8, 24, dtype=np.float32)  # the model's embeddings have 16
    ReportIndex.build(vectors, [Case(f"CXR{row}", None, {}) for row in range(8)]).save(bundle_copy / "index")
    write_manifest(bundle_copy)
    status, log = serve_here(caplog, "--bundle", str(bundle_copy), "--device", "cpu")
    assert status == 3
    assert "24" in log
    assert "16" in log
    assert "Traceback" not in log


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that must be missing")
def test_reports_a_configured_gpu_that_is_missing(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REPORT_DEVICE", "cuda")
    status, log = serve_here(caplog, "--bundle", str(bundle_copy))
    assert status == 3
    assert "REPORT_DEVICE=cuda, but 0 CUDA devices are usable" in log
    assert "use REPORT_DEVICE=cpu" in log


def test_reports_an_unusable_address_before_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        for host, port, words in (
            ("127.0.0.1", taken, f"cannot listen on 127.0.0.1 port {taken}: Address already in use"),
            ("203.0.113.7", "8123", "cannot listen on 203.0.113.7 port 8123: Cannot assign requested address"),
            ("no host", "8123", "REPORT_HOST='no host' is not an address"),
        ):
            status = serve.main(["--bundle", str(tmp_path / "nowhere"), "--host", host, "--port", port])
            assert status == serve.EXIT_ADDRESS == 4, host
            assert words in capsys.readouterr().err


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_full_disk_during_hydration_leaves_no_partial_copy(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reports = write_reports(tmp_path / "NLMCXR_reports.tgz", xml_files())
    out = tmp_path / "outs" / "tiny-hydrated"
    with largest_file(50_000), pytest.raises(SystemExit) as stop:  # no room for the weights
        hydrate.main(["--bundle", str(bundle_copy), "--reports", str(reports), "--out", str(out)])
    assert stop.value.code == 1
    assert "error: " in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == []
