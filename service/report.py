"""``python -m service.report frontal.png [lateral.png]``: draft a study on the command line, without HTTP."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.command_line import CommandParser
from model.images import ImageError, ImageLimits, read_image
from model.types import DraftOptions, View
from service.formats.dicom_source import ExportContext
from service.formats.fhir import diagnostic_report
from service.formats.text import plain_text
from service.inference.loader import LoadError, load
from service.routes.responses import to_response
from service.schemas.models import ReportResponse
from service.settings import Settings, explain

EXIT_IMAGE, EXIT_USAGE, EXIT_BUNDLE = 1, 2, 3
ABSENT = "-"


class _InputError(Exception):
    pass


def main(arguments: list[str] | None = None) -> int:
    """Draft one study and print it.

    Returns:
        0; 1: an image cannot be read; 2: wrong arguments or settings; 3: no bundle could be loaded.
    """
    parser = CommandParser(prog="python -m service.report", description=__doc__)
    parser.add_argument("frontal", help="frontal radiograph, PNG, JPEG or DICOM; - if there is only a lateral one")
    parser.add_argument("lateral", nargs="?", default=ABSENT, help="lateral radiograph")
    parser.add_argument("--bundle", type=Path, help="directory that training.run wrote (REPORT_BUNDLE)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (REPORT_DEVICE, auto)")
    parser.add_argument("--top-k", type=int, help="reference cases to show, 1 to 50 (default: the bundle's)")
    parser.add_argument("--beam-size", type=int, help="hypotheses kept, 1 to 8 (default: the bundle's)")
    parser.add_argument(
        "--format", choices=("text", "json", "fhir"), default="text", help="format of the report (default: text)"
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="short for --format json")
    options = parser.parse_args(arguments)
    given: dict[str, Any] = {k: getattr(options, k) for k in ("bundle", "device") if getattr(options, k) is not None}
    try:
        draft_options = DraftOptions(options.top_k, options.beam_size)
        settings = Settings(**given)
    except ValidationError as error:
        parser.error(explain(error))
    except ValueError as error:
        parser.error(str(error))
    files = {view: name for view in View if (name := getattr(options, view.value)) != ABSENT}
    if not files:
        parser.error("neither a frontal nor a lateral radiograph was given")
    started = time.perf_counter()
    try:
        images = {view: _read(Path(name), settings.max_upload_bytes) for view, name in files.items()}
        loaded = load(settings)
        loaded_at = time.perf_counter()
        limits, drafter = ImageLimits(max_pixels=settings.max_pixels), loaded.drafter
        study = []
        for view, data in images.items():
            try:
                image = read_image(data, drafter.image_size, limits=limits, resample=drafter.resample)
            except ImageError as error:
                raise _InputError(f"{files[view]}: {error}") from error
            study.append(image.as_view(view))
    except _InputError as error:
        print(error, file=sys.stderr)
        return EXIT_IMAGE
    except LoadError as error:
        print(error, file=sys.stderr)
        return EXIT_BUNDLE
    decoded_at = time.perf_counter()
    (draft,) = loaded.drafter.draft([study], draft_options)
    ended_at = time.perf_counter()
    seconds = {"load": loaded_at - started, "images": decoded_at - loaded_at, "total": ended_at - started}
    timings = {stage: 1000 * taken for stage, taken in seconds.items()}
    result = to_response(draft, loaded.model_info(), timings)
    _print(_format(result, ExportContext(tuple(files)), options.format))
    return 0


def _print(text: str) -> None:
    """Print; a reader that closed the pipe, such as ``head``, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its end


def _format(result: ReportResponse, context: ExportContext, name: str) -> str:
    if name == "json":
        return result.model_dump_json(indent=2)
    return json.dumps(diagnostic_report(result, context), indent=2) if name == "fhir" else plain_text(result)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise _InputError(f"{path}: {size:,} bytes; the limit is {max_bytes:,} bytes (REPORT_MAX_UPLOAD_BYTES)")
        return path.read_bytes()
    except OSError as error:
        raise _InputError(f"{path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
