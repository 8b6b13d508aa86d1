"""``python -m service.ray_app``: the same service over several replicas of the model, by Ray Serve (extra ``[ray]``).

The factory ``service.ray_app:build`` is for Ray's own commands: ``serve run service.ray_app:build replicas=2``, and
``serve deploy`` with a configuration file. The service in one process, ``python -m service``, needs none of this.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.bundle import BundleError, read_manifest
from service.ray_app.cluster import RAY_PREFIX, RaySettings, cluster, import_ray, read_settings, set_up
from service.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

APP = "report"
EXIT_SETTINGS, EXIT_BUNDLE, EXIT_ADDRESS = 2, 3, 4
INGRESS_AT_ONCE = 10_000  # far above the places, so that it is the app that answers "busy", at once
HEALTH_EVERY_S, HEALTH_FOR_S = 2.0, 30.0
QUIET = {"enable_access_log": False, "log_level": "ERROR"}  # Ray Serve's lines repeat a client's X-Request-ID


def build(arguments: Mapping[str, Any]) -> Application:
    """Make the Ray Serve application.

    Args:
        arguments: names of ``Settings`` and ``RaySettings`` with their values, which go before the environment.

    Raises:
        ValueError: a name is unknown, or a value is wrong.
        ModuleNotFoundError: Ray is not installed.
    """
    if not import_ray().is_initialized():  # serve run calls this first, serve deploy in a cluster that is there
        set_up(os.environ)
    return application(*read_settings(arguments))


def application(settings: Settings, scale: RaySettings) -> Application:
    """One ingress with the app, and the replicas behind it."""
    import_ray()
    from ray import serve

    from service.ray_app.ingress import Ingress
    from service.ray_app.replica import ModelReplica

    replicas: Any = serve.deployment(
        ModelReplica,
        num_replicas=scale.replicas,
        max_ongoing_requests=settings.queue_size,
        ray_actor_options={"num_cpus": scale.cpus_per_replica, "num_gpus": scale.gpus_per_replica},
        health_check_period_s=HEALTH_EVERY_S,
        health_check_timeout_s=HEALTH_FOR_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        max_constructor_retry_count=2,
        logging_config=QUIET,
    )
    ingress: Any = serve.deployment(  # its types say that this makes a decorator; it makes a deployment
        serve.ingress()(Ingress),
        max_ongoing_requests=INGRESS_AT_ONCE,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        logging_config=QUIET,
    )
    bound: Application = ingress.bind(replicas.bind(settings), settings, settings.queue_size * scale.replicas)
    return bound


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, then answer what is in the house and stop the replicas.

    Returns:
        0 after a stop; 2: a setting is wrong or Ray is missing; 3: no replica could load the bundle; 4: the port is
        taken.
    """
    parser = argparse.ArgumentParser(prog="python -m service.ray_app", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="directory that training.run wrote (REPORT_BUNDLE)")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for all (REPORT_HOST, 127.0.0.1)")
    parser.add_argument("--port", help="TCP port (REPORT_PORT, 8000)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (REPORT_DEVICE, auto)")
    parser.add_argument("--replicas", help=f"processes that hold the model ({RAY_PREFIX}REPLICAS, 2)")
    parser.add_argument("--cpus-per-replica", help=f"cores of each ({RAY_PREFIX}CPUS_PER_REPLICA, 1)")
    parser.add_argument("--gpus-per-replica", help=f"GPUs of each ({RAY_PREFIX}GPUS_PER_REPLICA, 0)")
    parser.add_argument("--address", help=f"of a Ray cluster that runs already ({RAY_PREFIX}ADDRESS)")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        import_ray()
        settings, scale = read_settings(given)
        if not _free(settings):
            print(f"{settings.host}:{settings.port} cannot be listened on; choose another --port", file=sys.stderr)
            return EXIT_ADDRESS
        if scale.address is None:
            read_manifest(settings.bundle)  # what all replicas would find missing is told before a cluster starts
        with cluster(settings, scale):
            return _serve_until_told(settings, scale)
    except BundleError as error:
        print(error, file=sys.stderr)
        return EXIT_BUNDLE
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS


def start(settings: Settings, scale: RaySettings) -> None:
    """Start Ray Serve on the cluster and wait until all replicas are up.

    Raises:
        RuntimeError: they cannot be started.
    """
    import_ray()
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=QUIET,
    )
    serve.run(application(settings, scale), name=APP, route_prefix="/")


def stop(settings: Settings) -> None:
    """Answer what is in the house within ``drain_timeout_s``, then stop the replicas."""
    import_ray()
    from ray import serve

    with contextlib.suppress(Exception):  # it cannot be asked where it died; there is nothing to drain then
        serve.get_app_handle(APP).finish.remote().result(timeout_s=settings.drain_timeout_s + 5)
    serve.shutdown()  # type: ignore[no-untyped-call]


def _serve_until_told(settings: Settings, scale: RaySettings) -> int:
    try:
        start(settings, scale)
    except RuntimeError as error:
        print(f"the replicas cannot be started: {error}", file=sys.stderr)
        return EXIT_BUNDLE
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    print(f"{scale.replicas} replicas of {settings.bundle} at http://{settings.host}:{settings.port}", file=sys.stderr)
    while not told.wait(1.0):  # a wait without end would not let the handler run
        pass
    stop(settings)
    return 0


def _free(settings: Settings) -> bool:
    """Whether the port can be listened on; Ray Serve's proxy, where it cannot, starts again and again."""
    try:
        with socket.create_server((settings.host, settings.port)):
            return settings.port != 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
