"""Settings of the replicas, and a local Ray cluster that keeps images in memory.

Images travel between processes in shared memory. By default Ray spills it to disk when it is full; here spilling is
disabled.
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

from service.settings import DEPRECATED_NAMES, MIB, Settings, explain

RAY_PREFIX = "REPORT_RAY_"
SHARED_MEMORY = Path("/dev/shm")
SMALLEST_STORE = 128 * MIB
MISSING = (
    "Ray is not installed here. Install it with: pip install '.[ray]' in the source tree (or: pip install 'ray[serve]')"
)


class RaySettings(BaseSettings):
    """Settings of the replicas.

    Attributes:
        replicas: processes that hold the model.
        cpus_per_replica: CPU cores that Ray reserves for each replica; also its number of OpenMP threads.
        gpus_per_replica: GPUs of each replica; with a fraction several replicas share one GPU.
        object_store_bytes: shared memory for in-flight requests; by default two copies of the largest uploads of all
            slots, at most half of the free shared memory.
        address: address of a running Ray cluster, ``auto`` for the one of this machine; by default one is started.
    """

    model_config = SettingsConfigDict(env_prefix=RAY_PREFIX, frozen=True)

    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    cpus_per_replica: Annotated[float, Field(gt=0, le=1024)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] = 0.0
    object_store_bytes: Annotated[int, Field(ge=SMALLEST_STORE)] | None = None
    address: str | None = None


def read_settings(arguments: Mapping[str, Any]) -> tuple[Settings, RaySettings]:
    """Split arguments into the two kinds of settings; the environment supplies the others.

    Raises:
        ValueError: a name is unknown, or a value is wrong.
    """
    arguments = {DEPRECATED_NAMES.get(name, name): value for name, value in arguments.items()}
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
    if settings.user_cases_dir is not None:
        raise ValueError(
            "REPORT_USER_CASES_DIR is set, but replicas cannot share added cases. "
            "Unset it, or serve with python -m service."
        )
    if settings.device.startswith("cuda") and not scale.gpus_per_replica:
        raise ValueError(
            f"REPORT_DEVICE={settings.device}, but Ray hides the GPUs from a replica that reserves none. "
            f"Set {RAY_PREFIX}GPUS_PER_REPLICA."
        )
    return settings.model_copy(update={"bundle": settings.bundle.resolve()}), scale


def import_ray() -> Any:
    """Import Ray with Ray Serve.

    Raises:
        ModuleNotFoundError: Ray is not installed; the message contains the command that installs it.
    """
    try:
        import ray
        import ray.serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    return ray


def set_up(environment: MutableMapping[str, str]) -> None:
    """Set the environment variables that a starting cluster reads.

    They disable usage statistics and keep spilled objects in shared memory. On a machine whose cores are all busy, the
    replicas get their share, which Ray's niceness of 15 denies them, and the proxy gets 60 s to start instead of 5.

    Args:
        environment: ``os.environ``; existing values win, except for the usage statistics.
    """
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    environment.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    environment.setdefault("RAY_worker_niceness", "0")
    if SHARED_MEMORY.is_dir():
        _spill_dir().mkdir(mode=0o700, exist_ok=True)
        environment.setdefault("RAY_object_spilling_directory", str(_spill_dir()))


@contextlib.contextmanager
def cluster(settings: Settings, scale: RaySettings) -> Iterator[None]:
    """Start a Ray cluster on this machine, or connect to the configured one, until the block ends.

    Raises:
        ValueError: too little or no shared memory, or too few cores or GPUs for the replicas.
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
            object_spilling_directory=str(_spill_dir()),
            _plasma_directory=str(SHARED_MEMORY),
            _system_config={"automatic_object_spilling_enabled": False},
        )
    try:
        _check_resources(ray.cluster_resources(), scale)
        yield
    finally:
        ray.shutdown()
        if scale.address is None:
            shutil.rmtree(_spill_dir(), ignore_errors=True)


def _store_bytes(settings: Settings, scale: RaySettings) -> int:
    if not SHARED_MEMORY.is_dir():
        raise ValueError(f"there is no {SHARED_MEMORY} here; without it Ray would keep images in files on the disk")
    free = shutil.disk_usage(SHARED_MEMORY).free
    images = settings.max_concurrent_requests * scale.replicas * 2 * settings.max_upload_bytes
    size = scale.object_store_bytes or max(min(2 * images, free // 2), SMALLEST_STORE)
    if size > free:
        raise ValueError(
            f"{size:,} bytes of shared memory are needed, but {free:,} are free in {SHARED_MEMORY}. Enlarge it (docker "
            f"run --shm-size), or set {RAY_PREFIX}OBJECT_STORE_BYTES or REPORT_MAX_UPLOAD_BYTES lower."
        )
    return size


def _spill_dir() -> Path:
    return SHARED_MEMORY / f"cxr-report-{os.getpid()}"


def _check_resources(available: Mapping[str, float], scale: RaySettings) -> None:
    for name, each in (("CPU", scale.cpus_per_replica), ("GPU", scale.gpus_per_replica)):
        needed, found = each * scale.replicas, available.get(name, 0.0)
        if needed > found:
            raise ValueError(
                f"{scale.replicas} replicas with {each:g} {name}s each need {needed:g}, but the cluster has {found:g}. "
                f"Set {RAY_PREFIX}REPLICAS or {RAY_PREFIX}{name}S_PER_REPLICA lower, or add a machine."
            )
