"""``python -m service`` whose device fails once, when the file that ``FAULT`` names appears: ``lost`` or ``hang``.

A thread that never ends is left behind in both cases: the process must end nevertheless.
"""

from __future__ import annotations

import os
import runpy
import threading
import time
from pathlib import Path
from typing import Any

FOREVER_S = 3600.0


def main() -> None:
    """Run the service; imported only here, so that its worker processes do not import the model."""
    import torch

    from model.drafter import Drafter

    fault, draft = Path(os.environ["FAULT"]), Drafter.draft

    def draft_or_fail(self: Drafter, *arguments: Any, **options: Any) -> Any:
        if not fault.exists():
            return draft(self, *arguments, **options)
        kind = fault.read_text()
        fault.unlink()
        threading.Thread(target=time.sleep, args=(FOREVER_S,), daemon=False).start()
        if kind == "hang":
            time.sleep(FOREVER_S)
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    Drafter.draft = draft_or_fail  # type: ignore[method-assign]
    runpy.run_module("service", run_name="__main__")


if __name__ == "__main__":
    main()
