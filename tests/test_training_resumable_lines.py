"""The resumable lines: continued after a kill, started again for a different identity, one writer at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.data.resumable_lines import ResumableLines

COUNT = 5


def filled(path: Path, compute: Callable[[slice], list[Any]], identity: str = "a", *, resume: bool = True) -> list[Any]:
    with ResumableLines(path, identity, resume=resume) as lines:
        return lines.fill(COUNT, lambda rows: f"key {rows.start}", compute, batch=2, description="x", progress=False)


def recording(starts: list[int], stop_at: int | None = None) -> Callable[[slice], list[Any]]:
    """A value for each row; records the slices, and fails at ``stop_at``."""

    def compute(rows: slice) -> list[Any]:
        if rows.start == stop_at:
            raise KeyboardInterrupt
        starts.append(rows.start)
        return [{"row": row, "third": row / 3, "text": "ü\n", "set": {"b", "a"}} for row in range(COUNT)[rows]]

    return compute


EXPECTED = [{"row": row, "third": row / 3, "text": "ü\n", "set": ["a", "b"]} for row in range(COUNT)]


def test_continues_from_the_last_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "new" / "x.jsonl"
    with pytest.raises(KeyboardInterrupt):
        filled(path, recording([], stop_at=4))
    starts: list[int] = []
    with caplog.at_level(logging.INFO):
        assert filled(path, recording(starts)) == EXPECTED
    assert starts == [4]
    assert "x: resumed 4 of 5 studies" in caplog.text
    assert filled(path, recording(starts, stop_at=0)) == EXPECTED  # complete: nothing is computed


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_drops_a_truncated_last_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    filled(path, recording([]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    starts: list[int] = []
    assert filled(path, recording(starts)) == EXPECTED
    assert starts == [4]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b"3\n", b'{"key": "key 0"}\n', b"\xff\n"])
def test_drops_damaged_lines(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.jsonl"
    filled(path, recording([]))
    head, first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([head, first, damage, *rest]))
    starts: list[int] = []
    assert filled(path, recording(starts)) == EXPECTED
    assert starts == [2, 4]


@pytest.mark.parametrize("why", ["identity", "--no-resume", "head", "empty"])
def test_starts_again(tmp_path: Path, why: str) -> None:
    path = tmp_path / "x.jsonl"
    filled(path, recording([]))
    if why in ("head", "empty"):
        path.write_bytes(path.read_bytes()[3:] if why == "head" else b"")
    starts: list[int] = []
    identity, resume = "b" if why == "identity" else "a", why != "--no-resume"
    assert filled(path, recording(starts), identity, resume=resume) == EXPECTED
    assert starts == [0, 2, 4]
    assert len(path.read_bytes().splitlines()) == 1 + len(starts)


def test_refuses_a_second_writer(tmp_path: Path) -> None:
    with ResumableLines(tmp_path / "x.jsonl", "a") as lines:
        lines.get("key", lambda: [1])
        with pytest.raises(OSError, match=r"another command writes .*; wait until it ends, or choose another --work"):
            ResumableLines(tmp_path / "x.jsonl", "b")
    with ResumableLines(tmp_path / "x.jsonl", "a") as lines:
        assert lines.get("key", lambda: [2]) == [1]
        lines.remove()
    assert not list(tmp_path.iterdir())
