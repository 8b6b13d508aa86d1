"""The Ray Serve application: one ingress with the HTTP app, and replicas that hold the model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.ray_app.cluster import RaySettings, import_ray, read_settings, set_up
from service.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

APP_NAME = "report"
INGRESS_MAX_ONGOING = 10_000  # far above the admission limit, so that the app itself refuses with 503 "busy"
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 30.0
QUIET = {"enable_access_log": False, "log_level": "ERROR"}  # Ray Serve's log lines repeat a client's X-Request-ID


def build(arguments: Mapping[str, Any]) -> Application:
    """Build the application for ``serve run service.ray_app:build`` and ``serve deploy``.

    Args:
        arguments: names of ``Settings`` and ``RaySettings`` with values that override the environment.

    Raises:
        ValueError: a name is unknown, or a value is wrong.
        ModuleNotFoundError: Ray is not installed.
    """
    if not import_ray().is_initialized():  # serve run builds before it connects; serve deploy builds in the cluster
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
        max_ongoing_requests=settings.max_concurrent_requests,
        ray_actor_options={"num_cpus": scale.cpus_per_replica, "num_gpus": scale.gpus_per_replica},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        max_constructor_retry_count=2,
        logging_config=QUIET,
    )
    ingress: Any = serve.deployment(  # typed as a decorator, but with a class it returns a deployment
        serve.ingress()(Ingress),
        max_ongoing_requests=INGRESS_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        logging_config=QUIET,
    )
    bound: Application = ingress.bind(
        replicas.bind(settings, max(1, int(scale.cpus_per_replica))),
        settings,
        settings.max_concurrent_requests * scale.replicas,
    )
    return bound


def start(settings: Settings, scale: RaySettings) -> None:
    """Start Ray Serve on the connected cluster and wait until all replicas are ready.

    Raises:
        RuntimeError: the replicas cannot be started.
    """
    import_ray()
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=QUIET,
    )
    serve.run(application(settings, scale), name=APP_NAME, route_prefix="/")


def stop(settings: Settings) -> None:
    """Drain in-flight requests within ``drain_timeout_s``, then stop the replicas."""
    import_ray()
    from ray import serve

    with contextlib.suppress(Exception):  # a dead ingress has nothing to drain
        serve.get_app_handle(APP_NAME).finish.remote().result(timeout_s=settings.drain_timeout_s + 5)
    serve.shutdown()  # type: ignore[no-untyped-call]
