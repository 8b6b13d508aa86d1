"""Hydration: a copy of a bundle whose cases carry their texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.manifest import write_manifest
from retrieval_index.cases import Case, read_cases, write_cases
from retrieval_index.hydrate import HydrateError, default_out, hydrate, main
from retrieval_index.index import ReportIndex
from retrieval_index.openi import ArchiveError
from tests.support.archives import report_xml, write_reports, xml_files
from tests.support.http import http_server, respond_with
from tests.support.index import write_index_bundle

CASES = [
    Case("CXR2_IM-0652", None, {"Lung Opacity": "present"}, "https://x.example/2"),
    Case("CXR1_1_IM-0001", None, {"Edema": None}),
    Case("CXR10_IM-0002-1001", "It had a text."),
]
FILLED = ["Left base opacity. Small fluid level.", "Cardiac silhouette normal. No fluid.", "It had a text."]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_index_bundle(tmp_path / "bundles" / "tiny", CASES)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return write_reports(tmp_path / "archive" / "NLMCXR_reports.tgz")


def test_copy_differs_by_texts_and_manifest_only(bundle: Path, reports: Path, tmp_path: Path) -> None:
    before, out = content(bundle), tmp_path / "out" / "tiny"
    result = hydrate(bundle, reports, out=out)
    assert (result.cases, result.filled, result.kept, result.missing, result.unchanged) == (3, 2, 1, (), False)
    cases = read_cases(out / "index" / "cases.jsonl")
    assert [case.findings for case in cases] == FILLED
    assert [(c.case_id, c.labels, c.source_url) for c in cases] == [(c.case_id, c.labels, c.source_url) for c in CASES]
    after = content(out)
    assert content(bundle) == before
    assert {name for name in before if after[name] != before[name]} == {"MANIFEST.json", "index/cases.jsonl"}
    assert set(after) == set(before)
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_new_manifest_is_correct_and_names_its_source(bundle: Path, reports: Path, tmp_path: Path) -> None:
    out = hydrate(bundle, reports, out=tmp_path / "out").out
    manifest = json.loads((out / "MANIFEST.json").read_text())
    assert manifest["hydrated_from"] == hashlib.sha256((bundle / "MANIFEST.json").read_bytes()).hexdigest()
    assert manifest["schema_version"] == 1
    assert list(manifest["files"]) == sorted(set(content(out)) - {"MANIFEST.json"})
    for name, entry in manifest["files"].items():
        data = (out / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    ReportIndex.load(out / "index", expected_sha256={
        name.removeprefix("index/"): entry["sha256"] for name, entry in manifest["files"].items()
    })  # fmt: skip


def test_missing_cases_are_counted_and_named(tmp_path: Path, reports: Path) -> None:
    cases = [*CASES[:1], Case("CXR11_IM-0067"), Case("CXR77_IM-9999")]  # 11 has no FINDINGS, 77 is not there
    result = hydrate(write_index_bundle(tmp_path / "b", cases), reports, out=tmp_path / "out")
    assert (result.filled, result.missing) == (1, ("CXR11_IM-0067", "CXR77_IM-9999"))
    assert "1 texts filled, 0 present before, 2 missing (CXR11_IM-0067, CXR77_IM-9999)" in result.summary()
    texts = [case.findings for case in read_cases(tmp_path / "out" / "index" / "cases.jsonl")]
    assert texts == [FILLED[0], None, None]


def test_second_run_keeps_an_equal_copy(bundle: Path, reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hydrate(bundle, reports, out=out)
    inode = out.stat().st_ino
    again = hydrate(bundle, reports, out=out)
    assert again.unchanged
    assert "is up to date" in again.summary()
    assert out.stat().st_ino == inode


def test_replaces_damaged_and_older_copies(bundle: Path, reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hydrate(bundle, reports, out=out)
    whole = content(out)
    (out / "model.safetensors").write_bytes(b"damaged")
    (out / "stray").write_text("not of the bundle")
    hydrate(bundle, reports, out=out)
    assert content(out) == whole
    files = xml_files() | {"2.xml": report_xml("CXR2", "A corrected text.", ["CXR2_IM-0652-1001"])}
    assert not hydrate(bundle, write_reports(tmp_path / "new.tgz", files), out=out).unchanged
    assert read_cases(out / "index" / "cases.jsonl")[0].findings == "A corrected text."
    assert {path.name for path in tmp_path.iterdir()} == {"out", "bundles", "archive", "new.tgz"}


def test_refuses_unsafe_targets(bundle: Path, reports: Path, tmp_path: Path) -> None:
    before = content(bundle)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("keep me")
    file = tmp_path / "file"
    file.write_text("keep me")
    plain = write_index_bundle(tmp_path / "plain", CASES)
    link = tmp_path / "link"
    link.symlink_to(other)
    for out in (bundle, bundle / "inside", bundle.parent, other, file, plain, link):
        with pytest.raises(HydrateError, match="--out"):
            hydrate(bundle, reports, out=out)
    assert content(bundle) == before
    assert content(other) == {"letter.txt": b"keep me"}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert hydrate(bundle, reports, out=empty).filled == 2


WRONG_PATH = '{"schema_version": 1, "files": {"%s": {"sha256": "", "size": 0}}}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", "x", r"model\.safetensors is not the file that MANIFEST"),
        ("config.json", None, r"lacks config\.json"),
        ("MANIFEST.json", None, "is not a bundle"),
        ("MANIFEST.json", "{", "is damaged"),
        ("MANIFEST.json", '{"schema_version": 2, "files": {}}', "version 2 is unknown"),
        ("MANIFEST.json", '{"schema_version": 1, "files": {"x": {}}}', "is damaged"),
        ("MANIFEST.json", '{"schema_version": 1, "files": {}}', "has no index/cases"),
        ("MANIFEST.json", WRONG_PATH % "../x", r"outside the bundle: '\.\./x'"),
        ("MANIFEST.json", WRONG_PATH % "/x", "outside the bundle: '/x'"),
    ],
)
def test_rejects_damaged_bundle_and_leaves_no_file(
    bundle: Path, reports: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    (bundle / name).unlink()
    if content is not None:
        (bundle / name).write_text(content)
    with pytest.raises(HydrateError, match=message):
        hydrate(bundle, reports, out=tmp_path / "outs" / "out")
    assert not (tmp_path / "outs").exists() or list((tmp_path / "outs").iterdir()) == []


def test_rejects_malformed_cases_and_cases_of_another_archive(bundle: Path, reports: Path, tmp_path: Path) -> None:
    write_cases(bundle / "index" / "cases.jsonl", [Case("a")])
    write_manifest(bundle)
    with pytest.raises(HydrateError, match="none of the 1 cases without text, such as a, is among the 4 reports"):
        hydrate(bundle, reports, out=tmp_path / "outs" / "out")
    (bundle / "index" / "cases.jsonl").write_text("{}\n")
    write_manifest(bundle)
    with pytest.raises(HydrateError, match="line 1: the case lacks"):
        hydrate(bundle, reports, out=tmp_path / "outs" / "out")
    assert list((tmp_path / "outs").iterdir()) == []


def test_failed_run_keeps_the_earlier_copy(
    bundle: Path, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "outs" / "out"
    hydrate(bundle, reports, out=out)
    (bundle / "config.json").write_text('{"changed": true}')
    write_manifest(bundle)
    before = content(out)

    def rename(source: Path, target: Path) -> None:
        if target == out and source.suffix == ".partial":
            raise OSError("the disk failed")
        source.replace(target)

    monkeypatch.setattr("model.files.os.rename", rename)
    with pytest.raises(OSError, match="the disk failed"):
        hydrate(bundle, reports, out=out)
    assert content(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_default_target_and_command_line(
    bundle: Path, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_out(bundle) == Path(".bundles/tiny-hydrated")
    assert main(["--bundle", "bundles/tiny", "--reports", str(reports.parent)]) == 0
    assert "3 cases, 2 texts filled, 1 present before, 0 missing" in capsys.readouterr().out
    assert (tmp_path / ".bundles" / "tiny-hydrated" / "MANIFEST.json").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["--bundle", "bundles/none", "--reports", str(reports)])
    assert stop.value.code == 1
    assert "is not a bundle" in capsys.readouterr().err


@pytest.fixture
def url(reports: Path) -> Iterator[str]:
    with http_server(respond_with(reports.read_bytes())) as url:
        yield f"{url}/NLMCXR_reports.tgz"


def test_downloads_reports_once(bundle: Path, reports: Path, url: str, tmp_path: Path) -> None:
    out = tmp_path / "outs" / "out"
    assert hydrate(bundle, url, out=out).filled == 2
    assert {path.name for path in out.parent.iterdir()} == {"downloads", "out"}
    reports.unlink()  # a second request would fail
    assert hydrate(bundle, url, out=out).unchanged


def test_rejects_damaged_archive(bundle: Path, reports: Path, tmp_path: Path) -> None:
    reports.write_bytes(reports.read_bytes()[:-20])
    with pytest.raises(ArchiveError, match="damaged"):
        hydrate(bundle, reports, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
