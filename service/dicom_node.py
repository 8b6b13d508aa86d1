"""``python -m service.dicom_node``: receive studies by DICOM, send drafts of them back (``REPORT_PACS_…``)."""

from __future__ import annotations

import logging
import signal
import sqlite3
import sys
import threading

from model.command_line import CommandParser
from service.pacs.node_settings import node_settings_or_exit
from service.settings import EXIT_SETTINGS, settings_or_exit
from service.web import logging as web_logging
from service.web.problems import format_traceback_locations
from service.web.shutdown import end_process

EXIT_ADDRESS = 4
_STOP_WITHIN_S = 20.0
log = logging.getLogger("service.dicom_node")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or Ctrl-C.

    Returns:
        0 after a stop; 2: a setting is wrong; 4: an address or the directory cannot be used.
    """
    CommandParser(prog="python -m service.dicom_node", description=__doc__).parse_args(arguments)
    settings, dicomweb = node_settings_or_exit(), settings_or_exit()
    web_logging.configure(settings.log_level, settings.log_format)
    threading.excepthook = _log_unhandled
    try:
        from service.pacs.dicomweb import Pacs
        from service.pacs.node import Node  # slow to import
    except ModuleNotFoundError as error:
        print(f"the node lacks {error.name}: pip install '.[pacs]' in the source tree", file=sys.stderr)
        return EXIT_SETTINGS

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        node = Node(settings, Pacs(dicomweb) if dicomweb.dicomweb_url else None)
    except BlockingIOError:
        print(f"REPORT_PACS_DIR={str(settings.dir)!r}: another node uses it. Give each its directory.", file=sys.stderr)
        return EXIT_ADDRESS
    except (OSError, ValueError, sqlite3.Error) as error:
        print(f"the node cannot start: {error}", file=sys.stderr)
        return EXIT_ADDRESS
    log.info(
        "%s listens on %s:%d; status at http://%s:%d/health; received images are kept in %s",
        settings.ae_title, settings.host, node.server.port, settings.status_host, node.status.port,
        "the spool" if settings.spool else "memory",
    )  # fmt: skip
    stop.wait()
    node.stop(_STOP_WITHIN_S)
    return 0


def _log_unhandled(unhandled: threading.ExceptHookArgs) -> None:
    """Log an exception without its message, which might quote what a peer sent."""
    locations = format_traceback_locations(unhandled.exc_value) if unhandled.exc_value else ""
    if unhandled.exc_type.__name__ == "InvalidEventError":  # of pynetdicom: the peer left before the answer
        return log.debug("an association ended before its answer")
    log.error("unhandled %s in a thread\n%s", unhandled.exc_type.__name__, locations)


if __name__ == "__main__":
    end_process(main())
