"""The resumable array: continues where it was killed, starts again for a different identity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from training.data.resumable_array import ResumableArray

COUNT, BATCH = 11, 2


def opened(path: Path, identity: str = "a") -> ResumableArray:
    return ResumableArray(path / "x.npy", identity, np.float32, (COUNT, 3))


def recording(starts: list[int], stop_at: int | None = None) -> Callable[[slice], npt.NDArray[np.float32]]:
    """Rows of their numbers; records the slices, and fails at ``stop_at``."""

    def compute(rows: slice) -> npt.NDArray[np.float32]:
        if rows.start == stop_at:
            raise KeyboardInterrupt
        starts.append(rows.start)
        return np.repeat(np.arange(rows.start, rows.stop, dtype=np.float32)[:, None], 3, axis=1)

    return compute


def fill(array: ResumableArray, compute: Callable[[slice], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return array.fill(compute, batch=BATCH, save_every=2, description="x")


def test_continues_from_the_last_save(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(opened(tmp_path), recording([], stop_at=6))
    starts: list[int] = []
    values = fill(opened(tmp_path), recording(starts))
    assert starts == [4, 6, 8, 10]  # rows 4 and 5 were computed, but not saved
    assert np.array_equal(values[:, 0], np.arange(COUNT))
    fill(opened(tmp_path), recording(starts, stop_at=0))  # complete: nothing is computed


@pytest.mark.parametrize("damage", ["identity", "state", "list", "array"])
def test_starts_again_where_the_files_do_not_match(tmp_path: Path, damage: str) -> None:
    fill(opened(tmp_path), recording([]))
    if damage == "state":
        (tmp_path / "x.json").write_text("{")
    elif damage == "list":
        (tmp_path / "x.json").write_text("[]")
    elif damage == "array":
        (tmp_path / "x.npy").unlink()
    array = opened(tmp_path, "b" if damage == "identity" else "a")
    assert array.progress == {}
    assert not array.read().any()


def test_refuses_to_fill_or_replace_what_another_command_fills(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)

    def compute(rows: slice) -> npt.NDArray[np.float32]:
        for other in (lambda: fill(second, recording([])), lambda: opened(tmp_path, "b")):
            with pytest.raises(OSError, match=r"another command fills .*x\.npy; wait until it ends, or choose another"):
                other()
        return recording([])(rows)

    expected = np.arange(COUNT)
    assert np.array_equal(fill(first, compute)[:, 0], expected)
    starts: list[int] = []
    assert np.array_equal(fill(second, recording(starts))[:, 0], expected)
    assert starts == []  # it was opened before the first was filled


def test_array_that_was_replaced_meanwhile_is_filled_again(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fill(first, recording([], stop_at=6))
    fill(opened(tmp_path, "b"), lambda rows: np.full((rows.stop - rows.start, 3), 9, np.float32))
    assert np.array_equal(fill(first, recording([]))[:, 0], np.arange(COUNT))
