"""A peer of the service: LitServe around the same bundle, with LitServe's batching.

python -m benchmarks.litserve_server BUNDLE DEVICE PORT
"""

# Annotations stay objects here (no `from __future__ import annotations`): LitServe reads those of `decode_request`.
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from benchmarks.naive_server import load_drafter
from model.images import load_pixels
from model.types import Draft, StudyView, View

MAX_BATCH, BATCH_TIMEOUT_S = 8, 0.01
Study = list[StudyView]


class Reports(litserve.LitAPI):  # type: ignore[misc]  # no types are shipped
    """Files in, a dict out: what a user of LitServe would write around the same drafter."""

    def __init__(self, bundle_dir: Path, **options: Any) -> None:
        super().__init__(**options)
        self._bundle_dir = bundle_dir

    def setup(self, device: str) -> None:
        self._drafter = load_drafter(self._bundle_dir, device)

    def decode_request(self, request: Request) -> Study:
        """The two views of the uploaded form, which LitServe passes as ``request``."""
        form: Any = request
        size = self._drafter.image_size
        return [StudyView(load_pixels(form[view.value].file.read(), size), view) for view in View]

    def batch(self, inputs: Sequence[Study]) -> list[Study]:
        """A list; the drafter stacks the studies."""
        return list(inputs)

    def predict(self, x: list[Study]) -> list[Draft]:
        return self._drafter.draft(x)

    def unbatch(self, output: list[Draft]) -> list[Draft]:
        return output

    def encode_response(self, output: Draft) -> dict[str, Any]:
        return dataclasses.asdict(output)


if __name__ == "__main__":
    api = Reports(Path(sys.argv[1]), max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/report")
    accelerator = "cuda" if sys.argv[2].startswith("cuda") else "cpu"
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, timeout=300)
    server.run(host="127.0.0.1", port=int(sys.argv[3]), log_level="error", generate_client_file=False)
