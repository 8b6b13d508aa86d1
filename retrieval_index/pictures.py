"""Small pictures of reference cases: one archive in the index of a hydrated bundle, `index/pictures.zip`.

An entry is `<case id>/<view>.jpg`, not compressed again. Radiographs are not redistributed with the
project: `hydrate --images` makes the archive from those of the operator.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from model.images import EXTENSIONS, ImageError, thumbnail
from model.processors import usable_processors
from model.types import View
from retrieval_index.download import Progress

PICTURES_FILE = "pictures.zip"
SIDE = 256  # pixels, longer side
MAX_IMAGE_BYTES = 64 << 20
_MAX_PICTURE_BYTES = 1 << 20
_AT_ONCE = 32  # images in memory
_NEVER = (1980, 1, 1, 0, 0, 0)  # equal pictures give equal bytes
_VIEWS = tuple(view.value for view in View)  # frontal first
Key = tuple[str, str]  # case id, view


class CasePictures:
    """The archive of a bundle, open for reading. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read the table of contents.

        Raises:
            ValueError: the file is no such archive.
        """
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a zip archive: {error}") from error
        self._names: dict[Key, zipfile.ZipInfo] = {}
        for entry in self._archive.infolist():
            case_id, _, file = entry.filename.partition("/")
            view = file.removesuffix(".jpg")
            if view not in _VIEWS or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{path}: {entry.filename[:80]!r} is not <case id>/<view>.jpg, stored uncompressed")
            self._names[case_id, view] = entry

    def views(self, case_id: str) -> tuple[str, ...]:
        """The views of a case that have a picture, frontal first."""
        return tuple(view for view in _VIEWS if (case_id, view) in self._names)

    def picture(self, case_id: str, view: str) -> bytes | None:
        """A JPEG file; None if there is none, or if the archive has become unreadable."""
        entry = self._names.get((case_id, view))
        if entry is None or entry.file_size > _MAX_PICTURE_BYTES:
            return None
        try:
            return self._archive.read(entry)
        except (OSError, zipfile.BadZipFile):
            return None


def make_pictures(
    images: Path, wanted: Mapping[str, Key], out: Path, progress: Progress | None = None
) -> tuple[int, tuple[str, ...]]:
    """Write the archive.

    Args:
        images: a folder of images by id, or a tar archive of it, such as `NLMCXR_png.tgz`.
        wanted: image id -> case and view.
        out: the file to write.
        progress: receives the number of read images, and of wanted ones.

    Returns:
        The number of pictures, and the files that could not be read, with the reason.

    Raises:
        OSError: a folder or file cannot be read or written.
        ValueError: the tar archive is damaged.
    """
    made: dict[Key, bytes] = {}
    broken = []
    with ThreadPoolExecutor(usable_processors()) as threads:  # decoding releases the interpreter lock
        files = _files(images, wanted.keys())
        while batch := list(islice(files, _AT_ONCE)):
            for (image_id, _), picture in zip(batch, threads.map(_thumbnail, batch), strict=True):
                if isinstance(picture, bytes):
                    made[wanted[image_id]] = picture
                else:
                    broken.append(f"{image_id}: {picture.code}")
            if progress is not None:
                progress(len(made) + len(broken), len(wanted))
    with zipfile.ZipFile(out, "w") as archive:
        for (case_id, view), picture in sorted(made.items()):
            archive.writestr(zipfile.ZipInfo(f"{case_id}/{view}.jpg", _NEVER), picture)
    return len(made), tuple(broken)


def _thumbnail(image: tuple[str, bytes]) -> bytes | ImageError:
    try:
        return thumbnail(image[1], SIDE)
    except ImageError as error:
        return error


def _files(images: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Image id and content of the wanted files."""
    if images.is_dir():
        for path in sorted(images.iterdir()):
            if path.stem in wanted and path.suffix.lower() in EXTENSIONS and path.stat().st_size <= MAX_IMAGE_BYTES:
                yield path.stem, path.read_bytes()
        return
    try:
        with tarfile.open(images) as tar:
            for member in tar:
                path = Path(member.name)
                is_wanted = path.stem in wanted and path.suffix.lower() in EXTENSIONS
                if is_wanted and member.isfile() and member.size <= MAX_IMAGE_BYTES:
                    file = tar.extractfile(member)
                    assert file is not None  # a regular file has content
                    yield path.stem, file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).partition(":\n")[0]  # tarfile appends a line per compression method
        raise ValueError(f"{images} is damaged or not a tar archive: {reason}; download it again") from error
