"""Settings: from the environment, typed, refused at start where wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import MIB, Settings, default_bundle, explain


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"REPORT_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = Settings()
    assert settings.max_upload_bytes == 32 * MIB
    assert settings.device == "auto"
    assert settings.host == "127.0.0.1"  # nobody else's images without being asked
    assert settings.port == 8000
    assert settings.bundle.parts[-2:] == ("bundles", "iu-xray")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_BUNDLE", "somewhere/b")
    monkeypatch.setenv("REPORT_MAX_UPLOAD_BYTES", "5000000")
    monkeypatch.setenv("REPORT_DEVICE", "cuda:1")
    monkeypatch.setenv("REPORT_DATA", "not-ours")  # the test suite's own variable
    settings = Settings()
    assert (settings.bundle, settings.max_upload_bytes, settings.device) == (Path("somewhere/b"), 5_000_000, "cuda:1")


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_PORT", "1")
    assert Settings(port=2).port == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:x"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("MAX_UPLOAD_BYTES", "32MB"),
        ("QUEUE_SIZE", "0"),
        ("UPLOAD_TIMEOUT_S", "-1"),
        ("UPLOAD_TIMEOUT_S", "nan"),
        ("WARM_UP", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("HOST", ""),
    ],
)
def test_wrong_values_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"REPORT_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert explain(caught.value).startswith(f"REPORT_{name}=")


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(max_upload=1)  # type: ignore[call-arg]


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_the_shipped_bundle_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bundles" / "iu-xray").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert default_bundle() == Path("bundles/iu-xray")
