"""Settings of the service: typed, read from the environment (``REPORT_…``), refused at start where wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
ENV_PREFIX = "REPORT_"
_SHIPPED = Path("bundles/iu-xray")


def default_bundle() -> Path:
    """The bundle that ships with the project: under the working directory, else beside the source tree."""
    beside_source = Path(__file__).resolve().parent.parent / _SHIPPED
    return beside_source if not _SHIPPED.exists() and beside_source.exists() else _SHIPPED


class Settings(BaseSettings):
    """All settings, with the units they count in.

    Attributes:
        bundle: directory that ``training.run`` wrote.
        prefer_hydrated: serve ``.bundles/<name>-hydrated`` instead, where it was made from this very bundle.
        device: ``auto`` takes the first CUDA device, or the CPU where there is none; ``cuda:0,cuda:1`` and
            ``cuda:all`` serve from several, a worker each.
        precision: ``bf16`` computes convolutions and matrix products in bfloat16: faster, and a word may differ.
        host: address to listen on. The default keeps the service on this machine.
        port: TCP port; 0 lets the system choose.
        max_upload_bytes: largest image file, in bytes.
        max_pixels: largest image, width x height.
        upload_timeout_s: seconds a client has to send its request.
        queue_size: requests in the house at once (arriving, waiting, computed); one more is answered 503.
        max_batch_size: studies drafted together at most.
        max_wait_ms: longest that a study waits for others to join its batch; where none is on the way it does not.
        request_timeout_s: seconds from the arrival of the body within which a request is answered, with 503 at last.
        drain_timeout_s: seconds after SIGTERM within which requests in the house are answered.
        stall_timeout_s: seconds after which a batch that does not end counts as a lost device; 0 for never.
        decode_threads: threads that decode images.
        warm_up: draft on blank images before the service calls itself ready.
        log_level: of the service's own log lines.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True)

    bundle: Path = Field(default_factory=default_bundle)
    prefer_hydrated: bool = True
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:all|cuda(:\d+)?(,cuda:\d+)*)$")] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_upload_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 32 * MIB
    max_pixels: Annotated[int, Field(ge=32 * 32, le=1_000_000_000)] = 64_000_000
    upload_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 16
    max_batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 5.0
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    drain_timeout_s: Annotated[float, Field(ge=1, le=3600)] = 25.0
    stall_timeout_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2
    warm_up: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def explain(error: ValidationError, prefix: str = ENV_PREFIX) -> str:
    """Wrong settings in words, one line each: the variable, its value, what is allowed."""
    return "\n".join(
        f"{prefix}{'_'.join(str(part) for part in item['loc']).upper()}={item['input']!r}: {item['msg']}"
        for item in error.errors()
    )
