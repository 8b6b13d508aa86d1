"""``python -m service.ray_app``: the service over several replicas of the model, on Ray Serve (extra ``[ray]``).

Ray's commands use the factory ``service.ray_app:build`` instead: ``serve run service.ray_app:build replicas=2``,
or ``serve deploy`` with a configuration file. ``python -m service`` serves in one process and needs no Ray.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

from model.command_line import CommandParser
from model.manifest import BundleError, read_manifest
from service.ray_app.cluster import RAY_PREFIX, RaySettings, cluster, import_ray, read_settings
from service.ray_app.deployment import start, stop
from service.settings import Settings

EXIT_SETTINGS, EXIT_BUNDLE, EXIT_ADDRESS = 2, 3, 4


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain in-flight requests and stop the replicas.

    Returns:
        0 after a stop; 2: a setting is wrong or Ray is missing; 3: no replica could load the bundle; 4: the port is
        taken.
    """
    parser = CommandParser(prog="python -m service.ray_app", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="directory that training.run wrote (REPORT_BUNDLE)")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for all (REPORT_HOST, 127.0.0.1)")
    parser.add_argument("--port", help="TCP port (REPORT_PORT, 8000)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (REPORT_DEVICE, auto)")
    parser.add_argument("--replicas", help=f"processes that hold the model ({RAY_PREFIX}REPLICAS, 2)")
    parser.add_argument("--cpus-per-replica", help=f"CPU cores of each replica ({RAY_PREFIX}CPUS_PER_REPLICA, 1)")
    parser.add_argument("--gpus-per-replica", help=f"GPUs of each replica ({RAY_PREFIX}GPUS_PER_REPLICA, 0)")
    parser.add_argument("--address", help=f"address of a running Ray cluster ({RAY_PREFIX}ADDRESS)")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        import_ray()
        settings, scale = read_settings(given)
        if not _is_free(settings):
            print(f"{settings.host}:{settings.port} is not available; choose another --port", file=sys.stderr)
            return EXIT_ADDRESS
        if scale.address is None:
            read_manifest(settings.bundle)  # report a missing bundle before a cluster starts
        with cluster(settings, scale):
            return _serve_until_signal(settings, scale)
    except BundleError as error:
        print(error, file=sys.stderr)
        return EXIT_BUNDLE
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS


def _serve_until_signal(settings: Settings, scale: RaySettings) -> int:
    try:
        start(settings, scale)
    except RuntimeError as error:
        print(f"the replicas cannot be started: {error}", file=sys.stderr)
        return EXIT_BUNDLE
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    print(f"{scale.replicas} replicas of {settings.bundle} at http://{settings.host}:{settings.port}", file=sys.stderr)
    while not stopped.wait(1.0):  # a wait without timeout would block the signal handler
        pass
    stop(settings)
    return 0


def _is_free(settings: Settings) -> bool:
    """Whether the port can be listened on; Ray Serve's proxy restarts again and again if it cannot."""
    try:
        with socket.create_server((settings.host, settings.port)):
            return settings.port != 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
