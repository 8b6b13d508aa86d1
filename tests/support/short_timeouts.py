"""``python -m service`` that waits for slow clients a quarter of the time."""

from __future__ import annotations

import runpy

from service.web import protocol, request_body

if __name__ == "__main__":
    protocol.HEADER_TIMEOUT_S /= 4
    request_body.GRACE_S /= 4
    request_body.MAX_PAUSE_S /= 4
    runpy.run_module("service", run_name="__main__")
