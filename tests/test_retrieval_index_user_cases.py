"""The store of added cases: durable, atomic, private, locked."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieval_index.cases import Case
from retrieval_index.user_cases import CASES_FILE, LOCK_FILE, PICTURES, UserCaseStore, UserCaseStoreError
from tests.support.paths import REPOSITORY
from tests.support.tiny import largest_file

CASE = Case(
    "one", "The heart is large.\u2028 Größe.", {"Cardiomegaly": "present", "Edema": None}, "https://x.example/1"
)
PICTURE = b"\xff\xd8 bytes of a picture " * 40


@contextmanager
def opened(folder: Path) -> Iterator[UserCaseStore]:
    store = UserCaseStore(folder)
    try:
        yield store
    finally:
        store.close()


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / PICTURES).iterdir())


def test_cases_and_images_are_kept_when_the_store_is_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "cases"
    with opened(folder) as store:
        kept = store.add(CASE, {"frontal": PICTURE, "lateral": PICTURE[:-1]})
        store.add(Case("two", "Clear."), {})
        assert kept.images == ("frontal", "lateral")
    with opened(folder) as store:
        assert store.cases() == (kept, Case("two", "Clear."))
        assert (len(store), "one" in store, "three" in store) == (2, True, False)
        assert (store.picture("one", "frontal"), store.picture("one", "lateral")) == (PICTURE, PICTURE[:-1])
        assert store.picture("two", "frontal") is store.picture("three", "frontal") is None


def test_files_are_private_and_have_random_names(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    with opened(folder) as store:
        store.add(CASE, {"frontal": PICTURE})
        store.add(Case("two", "Clear."), {})
        store.remove("two")
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert "one" not in path.name
    assert {path.name for path in folder.iterdir()} == {CASES_FILE, LOCK_FILE, PICTURES}


def test_rejects_a_second_case_with_the_same_id(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add(CASE, {})
        with pytest.raises(ValueError, match="exists already"):
            store.add(CASE, {"frontal": PICTURE})
        assert pictures(tmp_path) == []


def test_removed_case_leaves_no_data(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add(CASE, {"frontal": PICTURE})
        store.add(Case("two", "Clear."), {"frontal": PICTURE})
        store.remove("one")
        assert [case.case_id for case in store.cases()] == ["two"]
        assert store.picture("one", "frontal") is None
        assert len(pictures(tmp_path)) == 1
        with pytest.raises(KeyError):
            store.remove("one")
        again = store.add(CASE, {})  # goes to the rewritten file
    assert "heart" in (tmp_path / CASES_FILE).read_text()
    with opened(tmp_path) as store:
        assert [case.case_id for case in store.cases()] == ["two", "one"]
        assert store.cases()[1] == again


def test_drops_an_incomplete_last_case_and_keeps_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as store:
        store.add(Case("two", "Clear."), {})
        size = (tmp_path / CASES_FILE).stat().st_size
        store.add(CASE, {"frontal": PICTURE})
    with (tmp_path / CASES_FILE).open("rb+") as file:  # a power cut
        file.truncate(size + 40)
    (tmp_path / PICTURES / ".x.tmp").write_bytes(b"half")
    (tmp_path / f".{CASES_FILE}.x.tmp").write_bytes(b"half")
    with opened(tmp_path) as store:
        assert [case.case_id for case in store.cases()] == ["two"]
        assert "incomplete last case (40 bytes)" in caplog.text
        assert "removed 3 files of an interrupted change" in caplog.text
        store.add(CASE, {})
    with opened(tmp_path) as store:
        assert [case.case_id for case in store.cases()] == ["two", "one"]
    assert {path.name for path in tmp_path.rglob("*")} == {CASES_FILE, LOCK_FILE, PICTURES}


@pytest.mark.parametrize("room", [10, 700])  # no room for the picture; for it, and for half of the line
def test_full_disk_leaves_no_part_of_a_case(tmp_path: Path, room: int) -> None:
    picture, text = PICTURE[:600], "The lungs are clear. " * 60
    with opened(tmp_path) as store:
        store.add(Case("two", "Clear."), {})
        before = (tmp_path / CASES_FILE).read_bytes()
        with largest_file(room), pytest.raises(OSError, match="File too large"):
            store.add(Case("one", text), {"frontal": picture})
        assert [case.case_id for case in store.cases()] == ["two"]
        assert (tmp_path / CASES_FILE).read_bytes() == before
        assert pictures(tmp_path) == []
        with largest_file(10), pytest.raises(OSError, match="File too large"):
            store.add(Case("three", text), {})
        store.add(Case("one", text), {"frontal": picture})  # once there is room
        with largest_file(10), pytest.raises(OSError, match="File too large"):
            store.remove("two")
        assert len(store) == 2
    with opened(tmp_path) as store:
        assert [case.case_id for case in store.cases()] == ["two", "one"]


def test_adds_nothing_to_a_file_that_another_program_changed(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add(CASE, {})
        (tmp_path / CASES_FILE).write_bytes(b"")
        with pytest.raises(OSError, match="changed by another program"):
            store.add(Case("two", "Clear."), {"frontal": PICTURE})
        assert (tmp_path / CASES_FILE).read_bytes() == b""
        (tmp_path / CASES_FILE).unlink()
        with pytest.raises(FileNotFoundError):
            store.add(Case("two", "Clear."), {"frontal": PICTURE})
        assert pictures(tmp_path) == []


def test_only_one_process_can_open_the_directory(tmp_path: Path) -> None:
    with (
        opened(tmp_path),
        pytest.raises(UserCaseStoreError, match=r"another process uses the added cases in .*stop the other"),
    ):
        UserCaseStore(tmp_path)
    with opened(tmp_path) as store:
        assert len(store) == 0


def test_rejects_unusable_directory_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UserCaseStoreError, match=r"file cannot be used: (File exists|Not a directory)\. Name a directory"
    ):
        UserCaseStore(tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        {"images": {"frontal": "../../etc/passwd"}},
        {"images": ["frontal"]},
        {"images": None},
        {"case_id": ""},
        {"case_id": "two"},
        {"images": {"oblique": f"{'a' * 32}.jpg"}},
        {"case_id": "../../x"},
        {"case_id": "x" * 65},
        {"findings": None},
        {"findings": " "},
        {"findings": "No ef\u200bfusion"},
        {"findings": "\ud800"},
        {"findings": "heart " * 1400},
        {"source_url": "javascript:alert(1)"},
        {"source_url": "https://x.example/" + "x" * 2048},
        {"labels": {"Edema": "perhaps"}},
        {"labels": {"<img src=x onerror=alert(1)>": "present"}},
        {"more": 1},
    ],
)
def test_rejects_malformed_line_without_quoting_it(tmp_path: Path, change: dict[str, object]) -> None:
    with opened(tmp_path) as store:
        store.add(Case("two", "Clear."), {})
        store.add(Case("one", "Secret."), {})
    lines = (tmp_path / CASES_FILE).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (tmp_path / CASES_FILE).write_text("\n".join(lines) + "\n")
    with pytest.raises(UserCaseStoreError, match="line 2 is not a case") as caught:
        UserCaseStore(tmp_path)
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"labels":' * 10_000, b"\0" * 2**20, b"7" * 5_000])
def test_rejects_a_line_that_is_nested_or_too_long(tmp_path: Path, line: bytes) -> None:
    with opened(tmp_path) as store:
        store.add(Case("two", "Clear."), {})
    with (tmp_path / CASES_FILE).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserCaseStoreError, match="line 2 is not a case"):
        UserCaseStore(tmp_path)


@pytest.mark.parametrize("name", [CASES_FILE, LOCK_FILE])
def test_rejects_links_and_devices_in_the_directory(tmp_path: Path, name: str) -> None:
    UserCaseStore(tmp_path).close()
    for target in (tmp_path / "elsewhere", Path("/dev/zero")):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(target)
        (tmp_path / "elsewhere").touch()
        with pytest.raises(UserCaseStoreError, match=r"cannot be used: .*without links"):
            UserCaseStore(tmp_path)
    (tmp_path / CASES_FILE).unlink()
    (tmp_path / LOCK_FILE).unlink(missing_ok=True)
    os.mkfifo(tmp_path / CASES_FILE)
    with pytest.raises(UserCaseStoreError, match="Not a regular file"):
        UserCaseStore(tmp_path)


def test_pictures_are_regular_files_of_limited_size(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"not a picture")
    with opened(tmp_path / "cases") as store:
        store.add(CASE, {"frontal": PICTURE})
        (path,) = pictures(tmp_path / "cases")
        path.unlink()
        path.symlink_to(secret)
        assert store.picture("one", "frontal") is None
        path.unlink()
        os.mkfifo(path)
        assert store.picture("one", "frontal") is None
        path.unlink()
        with path.open("wb") as file:
            file.truncate(2**40)  # sparse
        assert store.picture("one", "frontal") is None


def test_keeps_every_acknowledged_case_after_kill_9(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from retrieval_index.cases import Case\n"
        "from retrieval_index.user_cases import UserCaseStore\n"
        "store = UserCaseStore(Path(sys.argv[1]))\n"
        "for n in range(len(store), 10**6):\n"
        "    store.add(Case(f'c{n}', 'Clear. ' * 800), {'frontal': bytes(50_000)})\n"
        "    if n % 3 == 2: store.remove(f'c{n - 1}'); store.add(Case(f'c{n - 1}', 'Again.'), {})\n"
        "    print(n, flush=True)\n"
    )
    acknowledged = 0
    for added in range(1, 6):
        run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert run.stdout is not None
        for _ in range(7 * added):
            acknowledged = int(run.stdout.readline())
        run.kill()
        run.wait()
        run.stdout.close()
        with opened(tmp_path) as store:
            names = {case.case_id for case in store.cases()}
            assert len({f"c{n}" for n in range(acknowledged + 1)} - names) <= 1  # one may be removed, not yet added
            expected = sum(len(case.images) for case in store.cases())
            assert len(pictures(tmp_path)) == expected
            for n in range(len(names) + 1):
                if f"c{n}" not in names and n <= acknowledged:
                    store.add(Case(f"c{n}", "Again."), {})


def test_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "@eaDir").mkdir(parents=True)
    (tmp_path / "pictures" / "holiday.jpg").write_bytes(b"another file")
    UserCaseStore(tmp_path).close()
    assert (tmp_path / "pictures" / "holiday.jpg").read_bytes() == b"another file"
    assert (tmp_path / "pictures" / "@eaDir").is_dir()


def test_keeps_images_without_a_case_file_and_reports_them(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / f"{'a' * 32}.jpg"
    picture.parent.mkdir()
    picture.write_bytes(b"of a lost case")
    with pytest.raises(UserCaseStoreError, match="restore that file"):
        UserCaseStore(tmp_path)
    assert picture.exists()
