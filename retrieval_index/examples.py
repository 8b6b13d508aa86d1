"""Example studies for the page: four validation studies of Open-i, and drawings.

Radiographs are not redistributed with the project. This command fetches them, unaltered, and writes
`examples.json` with their sources and licence. Files that are present are not fetched again.

    python -m retrieval_index.examples [--images URL|DIR] [--drawings DIR] [--out .bundles/examples]
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from model.command_line import CommandParser
from model.files import write_atomic
from retrieval_index.cases import check_case_id, is_web_address
from retrieval_index.download import DownloadError, download, text_progress
from retrieval_index.openi import page_url

OPEN_I = "https://openi.nlm.nih.gov"
LIST = "examples.json"
DEFAULT_OUT = Path(".bundles/examples")
DRAWN = Path(__file__).resolve().parent.parent / "docs" / "images"  # phantoms of the source tree
MAX_BYTES = 4 << 20  # of an image; those of Open-i have about 200 kB
MAX_LIST_BYTES = 64 << 10
SIDES = (64, 4096)  # pixels, least and most
REACH_S = 5.0  # seconds within which the server must respond
FETCH_S = 30.0  # seconds after which no further image is begun
VIEWS = ("frontal", "lateral")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.png")


class ExamplesError(ValueError):
    """The list of examples cannot be read; the message gives the remedy."""


@dataclass(frozen=True)
class Example:
    """One study to try the page with."""

    id: str  # "CXR24", "drawing-normal"
    kind: str  # "study" or "drawing"
    label: str  # in plain words
    files: dict[str, str]  # view -> PNG file in the folder
    attribution: str
    licence: str
    licence_url: str
    source_url: str | None = None  # the page that publishes the study

    def __post_init__(self) -> None:
        """Raise ValueError for a value that the service must not send, such as a path instead of a file name."""
        values: dict[str, Any] = asdict(self)
        check_case_id(self.id)
        if self.kind not in ("study", "drawing"):
            raise ValueError(f"kind of {self.id} is {self.kind!r}; use study or drawing")
        for name in ("label", "attribution", "licence"):
            if not isinstance(values[name], str) or not 0 < len(values[name]) <= 200:
                raise ValueError(f"{name} of {self.id}: give 1 to 200 characters")
        for address in filter(None, (self.licence_url, self.source_url)):
            if not is_web_address(address):
                raise ValueError(f"{address!r} of {self.id} is no http or https address")
        if not self.files or not set(self.files) <= set(VIEWS):
            raise ValueError(f"files of {self.id}: name one for frontal, lateral or both")
        for file in self.files.values():
            if not _FILE.fullmatch(file):
                raise ValueError(f"{file!r} of {self.id} is no file name of a PNG in the folder")


def _study(label: str, *images: str) -> Example:
    files = dict(zip(VIEWS, (f"{image}.png" for image in images), strict=True))
    licence = ("CC BY-NC-ND 4.0", "https://creativecommons.org/licenses/by-nc-nd/4.0/")
    source = page_url(images[0])
    return Example(images[0].partition("_")[0], "study", label, files, "Indiana University, Open-i", *licence, source)


def _drawing(name: str, label: str) -> Example:
    files = {view: f"{name}-{view}.png" for view in VIEWS}
    licence = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
    return Example(f"drawing-{name}", "drawing", label, files, "cxr-report", *licence)


# The validation study with the lowest number that has one frontal, one lateral and, by CheXbert, this label only.
STUDIES = (
    _study("normal", "CXR24_IM-0949-1001", "CXR24_IM-0949-2001"),
    _study("cardiomegaly", "CXR619_IM-2202-1002", "CXR619_IM-2202-1003"),
    _study("pleural effusion", "CXR3090_IM-1445-1001", "CXR3090_IM-1445-2001"),
    _study("lung opacity", "CXR1171_IM-0116-1001", "CXR1171_IM-0116-1002"),
)
DRAWINGS = (
    _drawing("normal", "normal"),
    _drawing("effusion", "pleural effusion"),
    _drawing("consolidation", "consolidation"),
)


def read_examples(folder: Path) -> tuple[Example, ...]:
    """The examples that `folder` lists and has; none if it has no list.

    Raises:
        ExamplesError: the list cannot be read or is not valid.
    """
    try:
        with (folder / LIST).open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise ValueError(f"more than {MAX_LIST_BYTES:,} bytes")
        listed = tuple(Example(**record) for record in json.loads(data)["examples"])
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ExamplesError(
            f"{folder / LIST} is not valid ({error}); remove it and run python -m retrieval_index.examples"
        ) from error
    return tuple(example for example in listed if _present(example, folder))


def _present(example: Example, folder: Path) -> bool:
    return all((folder / file).is_file() for file in example.files.values())


def fetch_examples(images: str, out: Path = DEFAULT_OUT, *, drawings: Path = DRAWN) -> tuple[int, list[str]]:
    """Fetch what `out` lacks of the studies, copy the drawings, and write the list of those that are complete.

    Args:
        images: address of Open-i or of a copy with the same paths, or a folder with the PNG files.
        out: the folder to fill. An interrupted download is resumed by the next call.
        drawings: folder of the drawn studies.

    Returns:
        The number of studies that `out` now has, and why other examples are missing.

    Raises:
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    missing = [study for study in STUDIES if not _present(study, out)]
    if missing and _is_web(images) and (reason := _unreachable(image_url(images, missing[0].files["frontal"]))):
        notes.append(f"{images} cannot be reached ({reason}); check the network, or give a folder of the images")
        missing = []
    end = time.monotonic() + FETCH_S
    for example in (*DRAWINGS, *missing):
        source = images if example.kind == "study" else str(drawings)
        try:
            for file in example.files.values():
                if time.monotonic() > end:
                    raise DownloadError(f"{source} is slow; the next run resumes")
                _take(source, file, out)
        except (DownloadError, ValueError, OSError) as error:
            notes.append(f"{example.id}: {error}")
    complete = [example for example in (*STUDIES, *DRAWINGS) if _present(example, out)]
    write_atomic(out / LIST, json.dumps({"examples": [asdict(example) for example in complete]}, indent=1).encode())
    return sum(example.kind == "study" for example in complete), notes


def image_url(base: str, file: str) -> str:
    """The address of an image of Open-i, whose folders are the study's number modulo 401 and the number."""
    number = int(file.partition("_")[0].removeprefix("CXR"))
    return f"{base.rstrip('/')}/imgs/512/{number % 401}/{number}/{file}"


def _is_web(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _unreachable(address: str) -> str | None:
    """Why the server sends no response in time; a thread asks, because name resolution has no timeout."""
    reasons: list[str | None] = [f"no response within {REACH_S:.0f} s"]

    def ask() -> None:
        try:
            httpx.head(address, timeout=REACH_S)
            reasons.append(None)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reasons.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_S)
    return reasons[-1]


def _take(source: str, file: str, out: Path) -> None:
    """Fetch or copy a file that `out` lacks."""
    if _is_web(source):
        download(
            image_url(source, file), out / file, progress=text_progress(file), timeout=10.0, attempts=1,
            max_bytes=MAX_BYTES, check=check_png,
        )  # fmt: skip
    elif not (out / file).exists():
        path = Path(source) / file
        check_png(path)
        write_atomic(out / file, path.read_bytes())


def check_png(path: Path) -> None:
    """Raise ValueError unless the file is a whole PNG of bounded size."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"a file of more than {MAX_BYTES:,} bytes")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            sides = image.size
            image.verify()  # the checksums of all parts, without decoding
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("not a PNG image, or a damaged one") from error
    if min(sides) < SIDES[0] or max(sides) > SIDES[1]:
        raise ValueError(f"an image of {sides[0]} x {sides[1]} pixels; {SIDES[0]} to {SIDES[1]} are allowed")


@dataclass(frozen=True)
class _Arguments:
    images: str
    drawings: Path
    out: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the example studies of the page; status 1 if one is missing."""
    parser = CommandParser(prog="python -m retrieval_index.examples", description=main.__doc__)
    parser.add_argument("--images", default=OPEN_I, help="address or folder of the images (default: %(default)s)")
    parser.add_argument("--drawings", type=Path, default=DRAWN, help="folder of drawn studies (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the folder to fill (default: %(default)s)")
    arguments = _Arguments(**vars(parser.parse_args(argv)))
    try:
        studies, notes = fetch_examples(arguments.images, arguments.out, drawings=arguments.drawings)
    except OSError as error:
        parser.exit(1, f"error: {error}\n")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{arguments.out}: {studies} of {len(STUDIES)} example studies")
    return 0 if studies == len(STUDIES) else 1


if __name__ == "__main__":
    raise SystemExit(main())
