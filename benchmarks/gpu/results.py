"""What is measured so far: ``gpu.json``, rewritten after each part, and ``gpu.html`` made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.page import page
from benchmarks.gpu.part import Part
from model.files import write_atomic


class Results:
    """The records of the parts in a folder, by name."""

    def __init__(self, out: Path, run: Mapping[str, Any]) -> None:
        """Continue the results in ``out``, or begin them; ``run`` is what all of them have in common.

        Raises:
            ValueError: the results there cannot be read, or are of another device or version of PyTorch.
        """
        self.json, self.page = out / "gpu.json", out / "gpu.html"
        self._content: dict[str, Any] = {"schema_version": 1, "run": dict(run), "parts": {}}
        if not self.json.exists():
            return
        try:
            before = json.loads(self.json.read_text(encoding="utf-8"))
            same = before["run"] == self._content["run"] and before["schema_version"] == 1
            self._content["parts"] = dict(before["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.json} cannot be read ({error}); choose another --out") from error
        if not same:
            raise ValueError(f"{self.json} is of another run ({before['run']}, not {dict(run)}); choose another --out")

    def is_done(self, name: str) -> bool:
        return bool(self._content["parts"].get(name, {}).get("state") == "done")

    def keep(self, part: Part, record: Mapping[str, Any]) -> None:
        """Add the record of a part, and write both files."""
        self._content["parts"][part.name] = {"title": part.title, **record}
        write_atomic(self.json, (json.dumps(self._content, indent=1) + "\n").encode())
        write_atomic(self.page, page(self._content).encode())
