"""Deprecated name of ``training.phantoms``; the command ``python -m training.phantom`` still works."""

from __future__ import annotations

import sys

from training.phantoms.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
