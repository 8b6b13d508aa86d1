"""Settings of the service: typed, read from the environment (``REPORT_…``), refused at start where wrong."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.keys import Keys, check_key, read_keys

MIB = 1024 * 1024
ENV_PREFIX = "REPORT_"
EXIT_SETTINGS = 2
_SHIPPED = Path("bundles/iu-xray")
_NOT_OURS = {"REPORT_DATA"}  # the test suite's
_RAY = f"{ENV_PREFIX}RAY_"
_NEVER_SHOWN = {"api_key", "api_key_file", "refine_url", "refine_key_file"}  # a secret may stand there by mistake
_HTTP_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def default_bundle() -> Path:
    """The bundle that ships with the project: under the working directory, else beside the source tree."""
    beside_source = Path(__file__).resolve().parent.parent / _SHIPPED
    return beside_source if not _SHIPPED.exists() and beside_source.exists() else _SHIPPED


def _checked_key(key: SecretStr) -> SecretStr:
    check_key(key.get_secret_value())
    return key


def _checked_key_file(path: Path) -> Path:
    read_keys(path)
    return path


def _checked_refine_key_file(path: Path) -> Path:
    read_keys(path, least=1)
    return path


def _checked_url(url: str) -> str:
    try:
        whole = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:  # a port that is none, brackets that do not close
        whole = False
    if not whole or not _HTTP_URL.fullmatch(url):
        raise ValueError(
            "write an address that begins with http:// or https://, without user, query or fragment, such as "
            "http://127.0.0.1:11434/v1; a key goes into REPORT_REFINE_KEY_FILE"
        )
    return url


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _checked_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if "*" in origin:
            raise ValueError(
                f"{origin!r} would let any page that a user of this network opens send requests here. "
                "Name each origin, such as https://pacs.example.org"
            )
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin: write scheme, host and port where it is not the usual one, in lower case, "
                "without a path, such as https://pacs.example.org:8443"
            )
        if origin.endswith(":443" if origin.startswith("https") else ":80"):
            raise ValueError(f"{origin!r} matches no browser, which leaves the usual port out. Leave it out here too")
    return origins


class Settings(BaseSettings):
    """All settings, with the units they count in.

    Attributes:
        bundle: directory that ``training.run`` wrote.
        prefer_hydrated: serve ``.bundles/<name>-hydrated`` instead, where it was made from this very bundle.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` takes the first CUDA device, or the CPU where there is none;
            ``cuda:0,cuda:1`` and ``cuda:all`` serve from several, a worker each.
        precision: ``bf16`` computes convolutions and matrix products in bfloat16: faster, and a word may differ.
        host: address to listen on; ``0.0.0.0`` to be reached from other machines.
        port: TCP port; 0 lets the system choose.
        max_upload_bytes: largest image file, in bytes.
        max_pixels: largest image, width x height.
        upload_timeout_s: seconds a client has to send its request.
        queue_size: requests in the house at once (arriving, waiting, computed); one more is answered 503.
        max_batch_size: studies drafted together at most; 0 for 8 on a GPU and 1 on a CPU, where an answer then repeats
            to the bit whatever else is asked, and memory stays level; 8 there answers more under load.
        max_wait_ms: longest that a study waits for others to join its batch; where none is on the way it does not.
        request_timeout_s: seconds from the arrival of the body within which a request is answered, with 503 at last.
        drain_timeout_s: seconds after SIGTERM within which requests in the house are answered.
        stall_timeout_s: seconds after which a batch that does not end counts as a lost device; 0 for never.
        decode_threads: threads that decode images.
        warm_up: draft on blank images before the service calls itself ready.
        log_level: of the service's own log lines; ``DEBUG`` logs health checks as well.
        log_format: ``json`` writes one JSON object a line, ``text`` lines for people.
        api_key: key that reports, previews, exports and cases then ask for, at least 16 characters; ``openssl rand -hex
            32`` makes one.
        api_key_file: file of such keys instead, one a line, so that keys can be rotated; lines that begin with ``#``
            are skipped. Read at start.
        cases_dir: directory of the reference cases that ``POST /cases`` adds, with their texts and small pictures, kept
            until they are deleted; unset, none can be added.
        cors_origins: origins, separated by commas, whose pages may send to ``/report``, ``/preview``, ``/export`` and
            ``/health``; none may unless named, and ``*`` is refused.
        refine_url: base address of an OpenAI-compatible server whose language model may rewrite drafts, such as
            ``http://127.0.0.1:11434/v1``; it is sent drafts, labels and the texts of reference cases, never an image.
        refine_model: name of that model, as the server knows it.
        refine_key_file: file with the key that the server asks for, on one line. Read at start.
        refine_timeout_s: seconds that a rewriting may take; the draft is answered without it then.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, hide_input_in_errors=True)

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
    max_batch_size: Annotated[int, Field(ge=0, le=256)] = 0
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 5.0
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    drain_timeout_s: Annotated[float, Field(ge=1, le=3600)] = 25.0
    stall_timeout_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2
    warm_up: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "text"
    api_key: Annotated[SecretStr, AfterValidator(_checked_key)] | None = None
    api_key_file: Annotated[Path, AfterValidator(_checked_key_file)] | None = None
    cases_dir: Annotated[Path | None, BeforeValidator(_none_if_empty)] = None
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_checked_origins)] = ()
    refine_url: Annotated[str, AfterValidator(_checked_url)] | None = None
    refine_model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    refine_key_file: Annotated[Path, AfterValidator(_checked_refine_key_file)] | None = None
    refine_timeout_s: Annotated[float, Field(gt=0, le=600)] = 20.0

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("REPORT_API_KEY and REPORT_API_KEY_FILE are both set; unset one of them")
        return self

    @model_validator(mode="after")
    def _whole_refine_hook(self) -> Self:
        if self.refine_url is not None and self.refine_model is None:
            raise ValueError("REPORT_REFINE_URL is set without REPORT_REFINE_MODEL; name the model to ask")
        if self.refine_url is None and (self.refine_model is not None or self.refine_key_file is not None):
            raise ValueError("REPORT_REFINE_MODEL or REPORT_REFINE_KEY_FILE is set without REPORT_REFINE_URL")
        return self

    def refine_key(self) -> str | None:
        """The key for the language model's server; None where none is configured.

        Raises:
            ValueError: its file is no longer what it was when the settings were read.
        """
        return None if self.refine_key_file is None else read_keys(self.refine_key_file, least=1)[0]

    def keys(self) -> Keys:
        """The API keys that the settings name; none where they name none.

        Raises:
            ValueError: the file of keys is no longer what it was when the settings were read.
        """
        if self.api_key_file is not None:
            return Keys(read_keys(self.api_key_file))
        return Keys([self.api_key.get_secret_value()] if self.api_key is not None else [])


def settings_or_exit(**given: Any) -> Settings:
    """The settings of the environment, `given` ones before them; for entry points.

    Raises:
        SystemExit: with status 2, where one is wrong; standard error says which.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        raise SystemExit(EXIT_SETTINGS) from None


def explain(error: ValidationError, prefix: str = ENV_PREFIX) -> str:
    """Wrong settings in words, one line each: the variable, its value unless it is secret, what is allowed."""
    return "\n".join(_explain_one(prefix, item["loc"], item["input"], item["msg"]) for item in error.errors())


def _explain_one(prefix: str, location: tuple[int | str, ...], value: object, message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:  # of several settings together; the message names them
        return message
    name = "_".join(str(part) for part in location)
    if str(location[0]) in _NEVER_SHOWN:
        return f"{prefix}{name.upper()}: {message}"
    if name == "port" and str(value).startswith("tcp://"):
        message += (
            ". Kubernetes sets this variable for a Service named report: name the Service otherwise, or set "
            "enableServiceLinks: false in the pod's specification"
        )
    return f"{prefix}{name.upper()}={value!r}: {message}"


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is none, with the closest setting.

    They are not refused: Kubernetes sets such variables in every pod beside a Service named report.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    sentences = []
    for name in sorted(environment):
        if name.upper().startswith(_RAY):
            continue  # service.ray_app's own
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known | _NOT_OURS:
            close = difflib.get_close_matches(name.upper(), sorted(known), n=1)
            sentences.append(f"{name} is no setting and is ignored" + (f"; is {close[0]} meant?" if close else ""))
    return sentences


if __name__ == "__main__":
    from service.settings_table import main

    sys.exit(main())
