"""Which bundle is served: its hydrated copy if that is complete and current, else the plain bundle."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.bundle import WEIGHTS
from model.manifest import write_manifest
from retrieval_index.hydrate import hydrate
from service.inference.loader import LoadError, find_hydrated, load
from tests.support.archives import report_xml, write_reports
from tests.support.service import png, ready_client, settings_for
from tests.support.tiny import REPORTS, write_tiny_bundle

TEXT = "XXXX-sided fluid, told to Dr. xxxx  XXXX by telephone. Heart of ordinary width."


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle without texts at bundles/tiny, in a new working directory."""
    monkeypatch.chdir(tmp_path)
    return write_tiny_bundle(Path("bundles") / "tiny", texts=False)


def hydrated(plain: Path, out: Path | None = None) -> Path:
    studies = {
        f"{row}.xml": report_xml(f"CXR9{row:03d}", TEXT, (f"CXR9{row:03d}_IM-0001-1001", f"CXR9{row:03d}_IM-0001-2001"))
        for row in range(len(REPORTS))
    }
    result = hydrate(plain, write_reports(Path("NLMCXR_reports.tgz"), studies), out=out)
    assert result.filled == len(REPORTS)
    return result.out


def test_serves_the_plain_bundle_without_a_hydrated_copy(plain: Path) -> None:
    loaded = load(settings_for(plain))
    assert loaded.bundle.path == plain
    assert loaded.cases == len(REPORTS)
    assert not loaded.texts


def test_prefers_the_hydrated_copy(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = hydrated(plain)
    with caplog.at_level(logging.INFO, "service"):
        loaded = load(settings_for(plain))
    assert loaded.bundle.path == copy == Path(".bundles/tiny-hydrated")
    assert loaded.texts
    assert "serving the hydrated bundle" in caplog.text


@pytest.mark.parametrize("path", [".bundles/tiny-hydrated", "bundles/tiny-hydrated"])
def test_finds_a_copy_next_to_the_bundle_from_another_directory(
    plain: Path, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = hydrated(plain, Path(path)).resolve()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert find_hydrated(tmp_path / "bundles" / "tiny") == copy


def test_hydrated_copy_can_be_disabled_or_configured_directly(plain: Path) -> None:
    copy = hydrated(plain)
    assert not load(settings_for(plain, prefer_hydrated=False)).texts
    assert find_hydrated(copy) is None
    assert load(settings_for(copy)).texts


def test_stale_copy_is_ignored_and_logged(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    hydrated(plain)
    other = write_tiny_bundle(Path("other") / "tiny", texts=False, seed=1)
    assert find_hydrated(other) is None
    assert "stale and ignored" in caplog.text
    assert "retrieval_index.hydrate" in caplog.text


def test_damaged_copy_is_ignored_and_logged(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = hydrated(plain)
    cases = copy / "index" / "cases.jsonl"
    cases.write_bytes(cases.read_bytes().replace(b"ordinary", b"extraord"))
    assert not load(settings_for(plain)).texts
    assert "cases.jsonl was altered" in caplog.text
    (copy / "MANIFEST.json").write_text("{")
    assert not load(settings_for(plain)).texts
    assert "MANIFEST.json is damaged" in caplog.text


def test_redaction_marks_are_replaced(plain: Path) -> None:
    hydrated(plain)
    with ready_client(plain, warm_up=False) as client:
        answer = client.post("/report", files={"frontal": ("f", png())}, data={"top_k": "2"})
    assert "xxxx" not in answer.text.lower()
    expected = "[redacted]-sided fluid, told to Dr. [redacted] by telephone. Heart of ordinary width."
    assert [case["findings"] for case in answer.json()["reference_cases"]] == [expected, expected]
    assert [warning["code"] for warning in answer.json()["warnings"]] == ["missing_view"]


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e30])
def test_weights_with_which_no_draft_is_finite_are_refused(bundle_copy: Path, scale: float) -> None:
    state = load_file(bundle_copy / WEIGHTS)
    wrong = {name: tensor * scale if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(wrong, bundle_copy / WEIGHTS)
    write_manifest(bundle_copy)
    with pytest.raises(LoadError, match=r"cannot draft a blank image: .*; restore the bundle"):
        load(settings_for(bundle_copy)).warm_up()
