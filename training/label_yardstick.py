"""Deprecated alias: ``python -m training.label_yardstick`` runs ``training.evaluation.labeler_agreement``."""

from __future__ import annotations

import sys

from training.evaluation.labeler_agreement import main

if __name__ == "__main__":
    sys.exit(main())
