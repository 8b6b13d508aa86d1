"""Settings of the service: typed, read from the environment (``REPORT_…``), checked once at start."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.keys import MIN_KEY_LENGTH, Keys, check_key

MIB = 1024 * 1024
ENV_PREFIX = "REPORT_"
EXIT_SETTINGS = 2
DEPRECATED_NAMES = {  # old name -> name; both are read from the environment
    "queue_size": "max_concurrent_requests",
    "max_wait_ms": "batch_max_wait_ms",
    "cases_dir": "user_cases_dir",
    "decode_threads": "decode_workers",
}
_SHIPPED = Path("bundles/iu-xray")
_IGNORED_VARIABLES = {"REPORT_DATA"}  # of the test suite
_OTHERS = (f"{ENV_PREFIX}RAY_", f"{ENV_PREFIX}PACS_")  # of service.ray_app and service.dicom_node
_SECRETS = {  # values that may be secrets, never printed
    *("api_key", "api_key_file", "refine_url", "refine_key_file", "dicomweb_url", "dicomweb_credentials_file"),
}
_MAX_KEY_FILE_BYTES = 64 * 1024
_HTTP_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def default_bundle() -> Path:
    """The bundle that ships with the project: under the working directory, else next to the source tree."""
    in_source_tree = Path(__file__).resolve().parent.parent / _SHIPPED
    return in_source_tree if not _SHIPPED.exists() and in_source_tree.exists() else _SHIPPED


def read_keys(path: Path, *, min_length: int = MIN_KEY_LENGTH) -> list[str]:
    """Read a file of keys, one per line; blank lines and lines that start with # are skipped.

    Raises:
        ValueError: the file cannot be read, has no key or an invalid one; names the line, never the key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the file it names cannot be read: {error.strerror}") from error
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise ValueError(f"the file it names is larger than {_MAX_KEY_FILE_BYTES:,} bytes; write one key per line")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("the file it names is not UTF-8 text; write one key per line") from None
    keys = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            try:
                check_key(line, min_length=min_length)
            except ValueError as error:
                raise ValueError(f"line {number} of the file it names: {error}") from None
            keys.append(line)
    if not keys:
        raise ValueError("the file it names holds no key; write one key per line")
    return keys


def _env_names(name: str) -> AliasChoices:
    """Environment variables of a renamed setting, the deprecated ones last."""
    old = [before for before, after in DEPRECATED_NAMES.items() if after == name]
    return AliasChoices(*(ENV_PREFIX + each.upper() for each in (name, *old)))


def _checked_key(key: SecretStr) -> SecretStr:
    check_key(key.get_secret_value())
    return key


def _checked_key_file(path: Path) -> Path:
    read_keys(path)
    return path


def _checked_secret_file(path: Path) -> Path:
    read_keys(path, min_length=1)
    return path


def _web_address(example: str, secret: str) -> AfterValidator:
    """Checks an http or https address; ``secret`` is the setting for what the address must not hold."""

    def check(url: str) -> str:
        try:
            valid = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
        except ValueError:  # the port is not a number, or a bracket is not closed
            valid = False
        if not valid or not _HTTP_URL.fullmatch(url):
            raise ValueError(
                "write an address that begins with http:// or https://, without user, query or fragment, such as "
                f"{example}; a key goes into {secret}"
            )
        return url

    return AfterValidator(check)


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _checked_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if "*" in origin:
            raise ValueError(
                f"{origin!r} would allow any web page that a user of this network opens to send requests here. "
                "Name each origin, such as https://pacs.example.org"
            )
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is not an origin: write scheme, host and any non-default port in lower case, without a "
                "path, such as https://pacs.example.org:8443"
            )
        if origin.endswith(":443" if origin.startswith("https") else ":80"):
            raise ValueError(f"{origin!r} never matches: browsers leave out the default port. Leave it out here too")
    return origins


class Settings(BaseSettings):
    """All settings, with their units.

    Attributes:
        bundle: directory that ``training.run`` wrote.
        prefer_hydrated: serve the copy with report texts, ``.bundles/<name>-hydrated``, if it is of this bundle.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` takes the first CUDA device, else the CPU;
            ``cuda:0,cuda:1`` and ``cuda:all`` run one worker per device.
        precision: ``bf16`` computes convolutions and matrix products in bfloat16: faster, but a word may differ.
        host: address to listen on; ``0.0.0.0`` accepts connections from other machines.
        port: TCP port; 0 lets the system choose.
        max_upload_bytes: largest image file, in bytes.
        max_pixels: largest image, width x height.
        upload_timeout_s: seconds to send a request.
        max_concurrent_requests: limit on concurrent requests (uploading, queued or running); others get 503. Deprecated
            name: ``REPORT_QUEUE_SIZE``.
        max_batch_size: studies in a batch; 0 means 8 on a GPU and 1 on a CPU. With 1 a response is bit-identical under
            any load and memory stays constant; 8 on a CPU has a higher throughput.
        batch_max_wait_ms: longest time that a study waits for others that are uploading. Deprecated name:
            ``REPORT_MAX_WAIT_MS``.
        request_timeout_s: seconds from the end of the upload to the response, then 503. 0 means 30, and more on a slow
            machine: three times the measured time of the requests in flight, at most 150.
        drain_timeout_s: seconds after SIGTERM for the responses to all requests in flight.
        stall_timeout_s: seconds after which a running batch counts as a lost device; 0 disables this check.
        decode_workers: processes that decode images. Deprecated name: ``REPORT_DECODE_THREADS``.
        decode_memory_bytes: memory of one such process; an image that needs more is refused.
        decode_cpu_s: seconds of processor time for one image; an image that needs more is refused.
        warm_up: draft blank images before the service reports ready.
        log_level: lowest level of log lines; ``DEBUG`` also logs health checks.
        log_format: ``json`` writes one JSON object per line, ``text`` readable lines.
        api_key: key that reports, previews, exports and cases require, at least 16 characters.
        api_key_file: file of such keys, one per line, read at start; lines that start with ``#`` are skipped.
        user_cases_dir: directory of the cases that ``POST /cases`` adds, with texts and small pictures. If unset, no
            case can be added. Deprecated name: ``REPORT_CASES_DIR``.
        cors_origins: comma-separated origins whose pages may call ``/report``, ``/preview``, ``/export``, ``/health``
            and, with an API key, ``/studies``; ``*`` is refused.
        worklist: the file ``queue.sqlite`` of ``python -m service.dicom_node``, which ``GET /worklist`` shows.
        examples_dir: folder of ``python -m retrieval_index.examples``, whose studies the page offers without a key.
        refine_url: base address of an OpenAI-compatible server whose language model may rewrite drafts, such as
            ``http://127.0.0.1:11434/v1``.
        refine_model: name of that model on the server.
        refine_key_file: file with the key of that server, on one line. Read at start.
        refine_timeout_s: seconds that a rewrite may take.
        dicomweb_url: base address of the PACS's DICOMweb service, such as ``http://127.0.0.1:8042/dicom-web``; if
            unset, ``POST /studies/UID/report`` is 404.
        dicomweb_credentials_file: file with ``user:password`` or a bearer token for that service, on one line. Read at
            start.
        dicomweb_timeout_s: seconds to read the images of a study, or to store a report.
        dicomweb_prior: the page shows the newest earlier chest study of the patient (``GET /studies/UID/prior``).
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    bundle: Path = Field(default_factory=default_bundle)
    prefer_hydrated: bool = True
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:all|cuda(:\d+)?(,cuda:\d+)*)$")] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_upload_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 32 * MIB
    max_pixels: Annotated[int, Field(ge=32 * 32, le=1_000_000_000)] = 64_000_000
    upload_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    max_concurrent_requests: Annotated[
        int, Field(ge=1, le=10_000, validation_alias=_env_names("max_concurrent_requests"))
    ] = 16
    max_batch_size: Annotated[int, Field(ge=0, le=256)] = 0
    batch_max_wait_ms: Annotated[float, Field(ge=0, le=10_000, validation_alias=_env_names("batch_max_wait_ms"))] = 5.0
    request_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    drain_timeout_s: Annotated[float, Field(ge=1, le=3600)] = 25.0
    stall_timeout_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    decode_workers: Annotated[int, Field(ge=1, le=64, validation_alias=_env_names("decode_workers"))] = 2
    decode_memory_bytes: Annotated[int, Field(ge=64 * MIB, le=64 * 1024 * MIB)] = 2048 * MIB
    decode_cpu_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    warm_up: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "text"
    api_key: Annotated[SecretStr, AfterValidator(_checked_key)] | None = None
    api_key_file: Annotated[Path, AfterValidator(_checked_key_file)] | None = None
    user_cases_dir: Annotated[
        Path | None, BeforeValidator(_none_if_empty), Field(validation_alias=_env_names("user_cases_dir"))
    ] = None
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_checked_origins)] = ()
    worklist: Annotated[Path | None, BeforeValidator(_none_if_empty)] = None
    examples_dir: Annotated[Path | None, BeforeValidator(_none_if_empty)] = None
    refine_url: Annotated[str, _web_address("http://127.0.0.1:11434/v1", "REPORT_REFINE_KEY_FILE")] | None = None
    refine_model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    refine_key_file: Annotated[Path, AfterValidator(_checked_secret_file)] | None = None
    refine_timeout_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    dicomweb_url: (
        Annotated[str, _web_address("http://127.0.0.1:8042/dicom-web", "REPORT_DICOMWEB_CREDENTIALS_FILE")] | None
    ) = None
    dicomweb_credentials_file: Annotated[Path, AfterValidator(_checked_secret_file)] | None = None
    dicomweb_timeout_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    dicomweb_prior: bool = True

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("REPORT_API_KEY and REPORT_API_KEY_FILE are both set; unset one of them")
        return self

    @model_validator(mode="after")
    def _no_setting_without_its_url(self) -> Self:
        if self.refine_url is not None and self.refine_model is None:
            raise ValueError("REPORT_REFINE_URL is set without REPORT_REFINE_MODEL; set its name")
        if self.refine_url is None and (self.refine_model is not None or self.refine_key_file is not None):
            raise ValueError("REPORT_REFINE_MODEL or REPORT_REFINE_KEY_FILE is set without REPORT_REFINE_URL")
        if self.dicomweb_url is None and self.dicomweb_credentials_file is not None:
            raise ValueError("REPORT_DICOMWEB_CREDENTIALS_FILE is set without REPORT_DICOMWEB_URL; set both or neither")
        return self

    def dicomweb_credentials(self) -> str | None:
        """``user:password`` or a bearer token of the PACS; None if none is configured.

        Raises:
            ValueError: the file has become invalid since the settings were read.
        """
        path = self.dicomweb_credentials_file
        return None if path is None else read_keys(path, min_length=1)[0]

    def refine_key(self) -> str | None:
        """The key of the language model's server; None if none is configured.

        Raises:
            ValueError: the key file has become invalid since the settings were read.
        """
        return None if self.refine_key_file is None else read_keys(self.refine_key_file, min_length=1)[0]

    def keys(self) -> Keys:
        """The configured API keys; falsy if there are none.

        Raises:
            ValueError: the key file has become invalid since the settings were read.
        """
        if self.api_key_file is not None:
            return Keys(read_keys(self.api_key_file))
        return Keys([self.api_key.get_secret_value()] if self.api_key is not None else [])


def settings_or_exit(**given: Any) -> Settings:
    """Settings of the environment, overridden by ``given``; for entry points.

    Raises:
        SystemExit: a setting is wrong (status 2); standard error names it.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        raise SystemExit(EXIT_SETTINGS) from None


def explain(error: ValidationError, prefix: str = ENV_PREFIX) -> str:
    """One line per wrong setting: the variable, its value unless it is secret, what is allowed."""
    return "\n".join(_explain_one(prefix, item["loc"], item["input"], item["msg"]) for item in error.errors())


def _explain_one(prefix: str, location: tuple[int | str, ...], value: object, message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:  # the error concerns several settings; the message names them
        return message
    name = "_".join(str(part) for part in location).removeprefix(prefix).lower()
    variable = f"{prefix}{name.upper()}"
    if str(location[0]) in _SECRETS or message == "Field required":  # its value is that of all settings
        return f"{variable}: {message}"
    if name == "port" and str(value).startswith("tcp://"):
        message += (
            ". Kubernetes sets this variable for a Service named report: rename the Service, or set "
            "enableServiceLinks: false in the pod's specification"
        )
    for old, new in DEPRECATED_NAMES.items():
        if new == name:
            variable += f" (or {ENV_PREFIX}{old.upper()})"
    return f"{variable}={value!r}: {message}"


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """One sentence for each variable that looks like a setting but is none, with the closest setting.

    Such variables are not refused: Kubernetes sets some in every pod if a Service is named report.
    """
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, *DEPRECATED_NAMES)}
    sentences = []
    for name in sorted(environment):
        variable = name.upper()
        ignored = variable.startswith(_OTHERS) or variable in known | _IGNORED_VARIABLES
        if not variable.startswith(ENV_PREFIX) or ignored:
            continue
        close = difflib.get_close_matches(variable, sorted(known), n=1)
        sentences.append(f"{name} is no setting and is ignored" + (f"; is {close[0]} meant?" if close else ""))
    return sentences
