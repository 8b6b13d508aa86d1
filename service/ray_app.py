"""``python -m service.ray_app``: the same service over several replicas of the model, by Ray Serve (extra ``[ray]``).

The factory ``service.ray_app:build`` is for Ray's own commands: ``serve run service.ray_app:build replicas=2``, and
``serve deploy`` with a configuration file. The service in one process, ``python -m service``, needs none of this.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings import MIB, Settings, explain

if TYPE_CHECKING:
    from ray.serve import Application

APP = "report"
RAY_PREFIX = "REPORT_RAY_"
EXIT_SETTINGS, EXIT_BUNDLE, EXIT_ADDRESS = 2, 3, 4
SHARED_MEMORY = Path("/dev/shm")
SMALLEST_STORE = 128 * MIB
INGRESS_AT_ONCE = 10_000  # far above the places, so that it is the app that answers "busy", at once
HEALTH_EVERY_S, HEALTH_FOR_S = 2.0, 30.0
QUIET = {"enable_access_log": False, "log_level": "ERROR"}  # Ray Serve's lines repeat a client's X-Request-ID
MISSING = "Ray is not installed here. Install it with: pip install 'cxr-report[ray]' (or: pip install 'ray[serve]')"


class RaySettings(BaseSettings):
    """Settings of the replicas.

    Attributes:
        replicas: processes that hold the model.
        cpus_per_replica: CPU cores that Ray reserves for each; also its number of OpenMP threads.
        gpus_per_replica: GPUs that Ray gives to each; several replicas share one where it is a fraction.
        object_store_bytes: shared memory for requests under way, by default two copies of all that the places can
            hold, and half of what is free there at most.
        address: of a Ray cluster that runs already, ``auto`` for the one of this machine; by default one is started.
    """

    model_config = SettingsConfigDict(env_prefix=RAY_PREFIX, frozen=True)

    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    cpus_per_replica: Annotated[float, Field(gt=0, le=1024)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] = 0.0
    object_store_bytes: Annotated[int, Field(ge=SMALLEST_STORE)] | None = None
    address: str | None = None


def build(arguments: Mapping[str, Any]) -> Application:
    """Make the Ray Serve application.

    Args:
        arguments: names of ``Settings`` and ``RaySettings`` with their values, which go before the environment.

    Raises:
        ValueError: a name is unknown, or a value is wrong.
        ModuleNotFoundError: Ray is not installed.
    """
    keep_private(os.environ)
    return application(*read_settings(arguments))


def read_settings(arguments: Mapping[str, Any]) -> tuple[Settings, RaySettings]:
    """Sort arguments into the two kinds of settings; the rest is the environment's.

    Raises:
        ValueError: a name is unknown, or a value is wrong.
    """
    unknown = set(arguments) - set(Settings.model_fields) - set(RaySettings.model_fields)
    if unknown:
        known = ", ".join([*RaySettings.model_fields, *Settings.model_fields])
        raise ValueError(f"unknown argument {', '.join(sorted(unknown))}; known are {known}")
    try:
        settings = Settings(**{name: arguments[name] for name in Settings.model_fields if name in arguments})
    except ValidationError as error:
        raise ValueError(explain(error)) from error
    try:
        scale = RaySettings(**{name: arguments[name] for name in RaySettings.model_fields if name in arguments})
    except ValidationError as error:
        raise ValueError(explain(error, RAY_PREFIX)) from error
    if settings.device.startswith("cuda") and not scale.gpus_per_replica:
        raise ValueError(
            f"REPORT_DEVICE={settings.device}, but Ray hides all GPUs from a replica that it gives none. "
            f"Set {RAY_PREFIX}GPUS_PER_REPLICA."
        )
    return settings.model_copy(update={"bundle": settings.bundle.resolve()}), scale


def application(settings: Settings, scale: RaySettings) -> Application:
    """One ingress with the app, and the replicas behind it."""
    serve = _serve()
    from service.ray_app_ingress import Ingress
    from service.ray_app_replica import ModelReplica

    replicas = serve.deployment(
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
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        max_ongoing_requests=INGRESS_AT_ONCE,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        logging_config=QUIET,
    )
    bound: Application = ingress.bind(replicas.bind(settings), settings, settings.queue_size * scale.replicas)
    return bound


def keep_private(environment: Any) -> None:
    """Set what a cluster that is about to start reads: nothing is reported to Ray's makers, images stay in memory.

    Args:
        environment: ``os.environ``. The directory for what does not fit into Ray's object store is only set where
            none is.
    """
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    if SHARED_MEMORY.is_dir():
        _overflow().mkdir(mode=0o700, exist_ok=True)
        environment.setdefault("RAY_object_spilling_directory", str(_overflow()))


@contextlib.contextmanager
def cluster(settings: Settings, scale: RaySettings) -> Iterator[None]:
    """A Ray cluster on this machine for as long as the block runs, or a connection to the one that is named.

    Raises:
        ValueError: there is no shared memory, or too little of it; or too few cores or GPUs for the replicas.
    """
    _serve()
    import ray

    keep_private(os.environ)
    if scale.address is not None:
        ray.init(address=scale.address, namespace="serve")
    else:
        ray.init(
            namespace="serve",
            include_dashboard=False,
            object_store_memory=_store_bytes(settings, scale),
            object_spilling_directory=str(_overflow()),
            _plasma_directory=str(SHARED_MEMORY),
            _system_config={"automatic_object_spilling_enabled": False},
        )
    try:
        _check_resources(ray.cluster_resources(), scale)  # type: ignore[no-untyped-call]
        yield
    finally:
        ray.shutdown()
        if scale.address is None:
            shutil.rmtree(_overflow(), ignore_errors=True)


def _store_bytes(settings: Settings, scale: RaySettings) -> int:
    if not SHARED_MEMORY.is_dir():
        raise ValueError(f"there is no {SHARED_MEMORY} here, and elsewhere Ray would keep images in files on the disk")
    free = shutil.disk_usage(SHARED_MEMORY).free
    images = settings.queue_size * scale.replicas * 2 * settings.max_upload_bytes
    size = scale.object_store_bytes or max(min(2 * images, free // 2), SMALLEST_STORE)
    if size > free:
        raise ValueError(
            f"{size:,} bytes of shared memory are wanted, but {free:,} are free in {SHARED_MEMORY}. Enlarge it (docker "
            f"run --shm-size), or set {RAY_PREFIX}OBJECT_STORE_BYTES or REPORT_MAX_UPLOAD_BYTES lower."
        )
    return size


def _overflow() -> Path:
    return SHARED_MEMORY / f"cxr-report-{os.getpid()}"


def _check_resources(there: Mapping[str, float], scale: RaySettings) -> None:
    for name, each in (("CPU", scale.cpus_per_replica), ("GPU", scale.gpus_per_replica)):
        wanted, found = each * scale.replicas, there.get(name, 0.0)
        if wanted > found:
            raise ValueError(
                f"{scale.replicas} replicas with {each:g} {name}s each want {wanted:g}, but the cluster has {found:g}. "
                f"Set {RAY_PREFIX}REPLICAS or {RAY_PREFIX}{name}S_PER_REPLICA lower, or add a machine."
            )


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
        settings, scale = read_settings(given)
        if not _free(settings):
            print(f"{settings.host}:{settings.port} cannot be listened on; choose another --port", file=sys.stderr)
            return EXIT_ADDRESS
        with cluster(settings, scale):
            return _serve_until_told(settings, scale)
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS


def start(settings: Settings, scale: RaySettings) -> None:
    """Start Ray Serve on the cluster and wait until all replicas are up.

    Raises:
        RuntimeError: they cannot be started.
    """
    serve = _serve()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=QUIET,
    )
    serve.run(application(settings, scale), name=APP, route_prefix="/")


def stop(settings: Settings) -> None:
    """Answer what is in the house within ``drain_timeout_s``, then stop the replicas."""
    serve = _serve()
    with contextlib.suppress(Exception):  # it cannot be asked where it died; there is nothing to drain then
        serve.get_app_handle(APP).finish.remote().result(timeout_s=settings.drain_timeout_s + 5)
    serve.shutdown()


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


def _serve() -> Any:
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    return serve


if __name__ == "__main__":
    sys.exit(main())
