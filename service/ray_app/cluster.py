"""Ray itself: settings of the replicas, and a cluster on this machine that keeps what it is given to itself.

Images that travel between processes lie in shared memory. Ray would move them to the disk where that is full; here it
may not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings import MIB, Settings, explain

RAY_PREFIX = "REPORT_RAY_"
SHARED_MEMORY = Path("/dev/shm")
SMALLEST_STORE = 128 * MIB
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
    if settings.cases_dir is not None:
        raise ValueError(
            "REPORT_CASES_DIR is set, but replicas cannot share added cases. Unset it, or serve with python -m service."
        )
    if settings.device.startswith("cuda") and not scale.gpus_per_replica:
        raise ValueError(
            f"REPORT_DEVICE={settings.device}, but Ray hides all GPUs from a replica that it gives none. "
            f"Set {RAY_PREFIX}GPUS_PER_REPLICA."
        )
    return settings.model_copy(update={"bundle": settings.bundle.resolve()}), scale


def import_ray() -> Any:
    """Ray, with Ray Serve.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    try:
        import ray
        import ray.serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    return ray


def set_up(environment: MutableMapping[str, str]) -> None:
    """Set what a cluster that is about to start reads.

    Nothing is reported to Ray's makers, images stay in memory, and a proxy that is slow to start, all cores being
    taken, is waited for: Ray would kill it after five seconds, and the start would fail.

    Args:
        environment: ``os.environ``. The directory for what does not fit into Ray's object store is only set where
            none is.
    """
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    environment.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    if SHARED_MEMORY.is_dir():
        _overflow().mkdir(mode=0o700, exist_ok=True)
        environment.setdefault("RAY_object_spilling_directory", str(_overflow()))


@contextlib.contextmanager
def cluster(settings: Settings, scale: RaySettings) -> Iterator[None]:
    """A Ray cluster on this machine for as long as the block runs, or a connection to the one that is named.

    Raises:
        ValueError: there is no shared memory, or too little of it; or too few cores or GPUs for the replicas.
    """
    ray = import_ray()
    if scale.address is not None:
        ray.init(address=scale.address, namespace="serve")
    else:
        set_up(os.environ)
        ray.init(
            namespace="serve",
            include_dashboard=False,
            object_store_memory=_store_bytes(settings, scale),
            object_spilling_directory=str(_overflow()),
            _plasma_directory=str(SHARED_MEMORY),
            _system_config={"automatic_object_spilling_enabled": False},
        )
    try:
        _check_resources(ray.cluster_resources(), scale)
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
