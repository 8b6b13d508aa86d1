"""The simplest peer of the service: a FastAPI handler around the same bundle, with a lock.

python -m benchmarks.naive_server BUNDLE DEVICE PORT
"""

from __future__ import annotations

import dataclasses
import io
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File
from PIL import Image

from model.bundle import INDEX_DIR, load_bundle
from model.drafter import Drafter
from model.types import StudyView, View
from retrieval_index.index import ReportIndex


def load_drafter(bundle_dir: Path, device: str) -> Drafter:
    """The drafter of a bundle, with the inference tables that the service precomputes as well."""
    bundle = load_bundle(bundle_dir, device=device)
    with torch.inference_mode():
        bundle.model.precompute_inference_tables()
    index = ReportIndex.load(bundle_dir / INDEX_DIR) if bundle.config.retrieval else None
    return Drafter(bundle, index, device=device)


def make_app(bundle_dir: Path, device: str) -> FastAPI:
    """Files in, a dict out; no checks, no limits, a lock around the model."""
    drafter, lock, app = load_drafter(bundle_dir, device), threading.Lock(), FastAPI()

    def pixels(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((drafter.image_size,) * 2))

    @app.post("/report")
    def report(frontal: Annotated[bytes, File()], lateral: Annotated[bytes, File()]) -> dict[str, Any]:
        with lock:
            views = [StudyView(pixels(data), view) for data, view in zip((frontal, lateral), View, strict=True)]
            return dataclasses.asdict(drafter.draft([views])[0])

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(Path(sys.argv[1]), sys.argv[2]), port=int(sys.argv[3]), log_level="error")
