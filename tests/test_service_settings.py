"""Settings: read from the environment, typed, rejected at start if invalid."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from service.app import create_app
from service.pacs.node_settings import NodeSettings
from service.settings import (
    DEPRECATED_NAMES,
    MIB,
    Settings,
    default_bundle,
    explain,
    settings_or_exit,
    unknown_variables,
)
from tools import settings_docs


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, *DEPRECATED_NAMES):
        monkeypatch.delenv(f"REPORT_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = Settings()
    assert settings.max_upload_bytes == 32 * MIB
    assert settings.device == "auto"
    assert settings.host == "127.0.0.1"  # other machines cannot connect by default
    assert settings.port == 8000
    assert settings.bundle.parts[-2:] == ("bundles", "iu-xray")


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_BUNDLE", "somewhere/b")
    monkeypatch.setenv("REPORT_MAX_UPLOAD_BYTES", "5000000")
    monkeypatch.setenv("REPORT_DEVICE", "cuda:1")
    monkeypatch.setenv("REPORT_DATA", "ignored")  # a variable of the test suite
    monkeypatch.setenv("REPORT_PORT", "1")
    monkeypatch.setenv("REPORT_USER_CASES_DIR", "")
    settings = Settings(port=2)
    assert (settings.port, settings.user_cases_dir) == (2, None)
    assert (settings.bundle, settings.max_upload_bytes, settings.device) == (Path("somewhere/b"), 5_000_000, "cuda:1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:x"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("MAX_UPLOAD_BYTES", "32MB"),
        ("UPLOAD_TIMEOUT_S", "-1"),
        ("UPLOAD_TIMEOUT_S", "nan"),
        ("WARM_UP", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("HOST", ""),
    ],
)
def test_rejects_invalid_values_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"REPORT_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert explain(caught.value).startswith(f"REPORT_{name}=")


@pytest.mark.parametrize(
    ("old", "new", "value", "parsed"),
    [
        ("queue_size", "max_concurrent_requests", "9", 9),
        ("max_wait_ms", "batch_max_wait_ms", "2.5", 2.5),
        ("cases_dir", "user_cases_dir", "here", Path("here")),
    ],
)
def test_deprecated_variables_are_read_unless_the_current_one_is_set(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, value: str, parsed: object
) -> None:
    for name in (old, new):
        monkeypatch.setenv(name.upper(), "3")  # without the prefix it is not a setting
    assert getattr(Settings(), new) == Settings.model_fields[new].default
    monkeypatch.setenv(f"REPORT_{old.upper()}", value)
    assert getattr(Settings(), new) == parsed
    assert not unknown_variables({f"REPORT_{old.upper()}": value})
    monkeypatch.setenv(f"REPORT_{old.upper()}", "")
    monkeypatch.setenv(f"REPORT_{new.upper()}", value)
    assert getattr(Settings(), new) == parsed


def test_rejects_unknown_settings_and_assignment() -> None:
    with pytest.raises(ValidationError):
        Settings(max_upload=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_shipped_bundle_is_found_from_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bundles" / "iu-xray").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert default_bundle() == Path("bundles/iu-xray")


def test_entry_point_prints_one_line_per_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPORT_QUEUE_SIZE", "many")
    with pytest.raises(SystemExit) as ended:
        settings_or_exit(port="http")
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("REPORT_PORT='http': ")
    assert second.startswith("REPORT_MAX_CONCURRENT_REQUESTS (or REPORT_QUEUE_SIZE)='many': ")


def test_port_variable_of_kubernetes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_PORT", "tcp://10.0.0.7:8000")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "enableServiceLinks: false" in explain(caught.value)


# --- variables that are no settings -----------------------------------------------------------------------------


def test_misspelt_variable_is_named_with_the_closest_setting() -> None:
    environment = {
        "REPORT_MAX_UPLOAD_BYTE": "1",
        "report_api_keys": "x",
        "REPORT_SERVICE_HOST": "10.0.0.7",
        "REPORT_DATA": "the test suite's",
        "REPORT_PORT": "1",
        "report_log_level": "DEBUG",  # read whatever its case
        "REPORTER": "another program",
        "PATH": "/bin",
    }
    upload, service, key = unknown_variables(environment)
    assert upload == "REPORT_MAX_UPLOAD_BYTE is no setting and is ignored; is REPORT_MAX_UPLOAD_BYTES meant?"
    assert service.startswith("REPORT_SERVICE_HOST is no setting and is ignored")
    assert key == "report_api_keys is no setting and is ignored; is REPORT_API_KEY meant?"
    assert unknown_variables({"REPORT_XYZZYXYZZY": "1"}) == ["REPORT_XYZZYXYZZY is no setting and is ignored"]


def test_app_warns_about_unknown_variables_without_the_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REPORT_APIKEY", "a-secret-a-secret")
    create_app(Settings(bundle=Path("none"), device="cpu"))
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == "REPORT_APIKEY is no setting and is ignored; is REPORT_API_KEY meant?"


# --- the table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Settings, NodeSettings])
def test_every_setting_has_a_description(settings: type[BaseSettings]) -> None:
    descriptions = settings_docs.descriptions(settings)
    assert list(descriptions) == list(settings.model_fields)
    assert not [name for name, words in descriptions.items() if len(words) < 10]


def test_table_has_the_allowed_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_docs.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("|`REPORT_")}
    names = [*Settings.model_fields, *(f"pacs_{name}" for name in NodeSettings.model_fields)]
    assert set(rows) == {f"REPORT_{name.upper()}" for name in names}
    assert "|required|" in rows["REPORT_PACS_PEERS"]
    assert rows["REPORT_PORT"].startswith("|`REPORT_PORT`|`8000`|0 to 65535|")
    assert "|`60`|above 0 to 3600|" in rows["REPORT_UPLOAD_TIMEOUT_S"]
    assert "|`text`|`json`, `text`|" in rows["REPORT_LOG_FORMAT"]
    assert "|`true`|`true`, `false`|" in rows["REPORT_WARM_UP"]
    assert "|`bundles/iu-xray`|" in rows["REPORT_BUNDLE"]  # wherever this is run
    assert "|none|" in rows["REPORT_API_KEY"]
