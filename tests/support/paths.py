"""Paths of the repository."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = REPOSITORY / "bundles" / "iu-xray"
DRAWN = REPOSITORY / "docs" / "images"  # phantoms; no image of a patient
