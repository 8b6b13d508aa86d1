"""Logging of the benchmark commands: own lines with the time, libraries only where they fail."""

from __future__ import annotations

import logging
import sys


def configure_logging() -> None:
    """Set logging up for a process that runs a benchmark command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("httpx", "PIL", "pydicom", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
