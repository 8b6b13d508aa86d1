"""``python -m training.annotation_yardstick`` runs ``training.evaluation.annotation_agreement``."""

from __future__ import annotations

import sys

from training.evaluation.annotation_agreement import main

if __name__ == "__main__":
    sys.exit(main())
