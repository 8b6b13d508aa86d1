"""Restore the case texts of a bundle from the official report archive, and small pictures from the image archive.

Report texts and radiographs are not redistributed with the project: the cases of a shipped bundle
have neither. This command writes a copy of the bundle with them and a new manifest. The copy is
written next to the target and then renamed; the source is not changed.

    python -m retrieval_index.hydrate --bundle bundles/iu-xray [--reports NLMCXR_reports.tgz|DIR|URL]
        [--images NLMCXR_png|NLMCXR_png.tgz] [--out DIR]
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from model.command_line import CommandParser
from model.files import file_sha256, replace_folder
from model.manifest import MANIFEST, BundleError, FileEntry, Manifest, read_manifest, write_manifest
from model.types import View
from retrieval_index.cases import Case, CaseFormatError, read_cases, write_cases
from retrieval_index.download import REPORTS_URL, DownloadError, Progress, download, text_progress
from retrieval_index.openi import ArchiveError, ReportArchive, image_views, read_reports
from retrieval_index.pictures import PICTURES_FILE, make_pictures

CASES, PICTURES = "index/cases.jsonl", f"index/{PICTURES_FILE}"
HYDRATED_BUNDLES = Path(".bundles")  # default parent of hydrated copies, relative to the working directory


class HydrateError(RuntimeError):
    """The bundle cannot be hydrated, or the target cannot be replaced; the message gives the remedy."""


@dataclass(frozen=True)
class Hydration:
    """The result of `hydrate`."""

    out: Path
    cases: int
    filled: int
    kept: int  # already had a text
    missing: tuple[str, ...]  # case ids without FINDINGS in the archive
    broken: tuple[str, ...]  # report and image files that could not be read
    unchanged: bool  # the target already had the same content
    pictures: int

    def summary(self) -> str:
        """One line with the counts and the missing cases."""
        state = "is up to date" if self.unchanged else "written"
        listed = ", ".join(self.missing[:10]) + (", …" if len(self.missing) > 10 else "")
        named = f" ({listed})" if self.missing else ""
        broken = f"; {len(self.broken)} broken files skipped" if self.broken else ""
        return (
            f"{self.out} {state}: {self.cases} cases, {self.filled} texts filled, {self.kept} present before, "
            f"{len(self.missing)} missing{named}, {self.pictures} pictures{broken}"
        )


def default_out(bundle: Path) -> Path:
    """`.bundles/<name>-hydrated`, where the service looks for the hydrated copy of a bundle."""
    return HYDRATED_BUNDLES / f"{bundle.resolve().name}-hydrated"


def hydrate(
    bundle: Path,
    reports: str | Path,
    *,
    images: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    picture_progress: Progress | None = None,
) -> Hydration:
    """Write a copy of `bundle` whose cases have their findings, and with `images` their small pictures.

    Args:
        bundle: a bundle with an index; each file is checked against its manifest.
        reports: the archive `NLMCXR_reports.tgz`, its extracted folder, or an http(s) URL of it. A
            download is kept in `downloads/` next to `out` for later runs.
        images: a folder with the radiographs of Open-i by id, or the archive `NLMCXR_png.tgz`.
        out: the folder to create; default `default_out(bundle)`. Only a hydrated bundle is
            replaced, and only once the new one is complete.
        progress: of the download.
        picture_progress: of the pictures, in images.

    Raises:
        HydrateError: the bundle is damaged or has no index, an archive has none of its cases, or
            `out` is occupied.
        ArchiveError: the reports cannot be read.
        DownloadError: the URL cannot be downloaded.
    """
    out = default_out(bundle) if out is None else out
    manifest = _read_manifest(bundle)
    if CASES not in manifest.files:
        raise HydrateError(f"{bundle} has no {CASES}: a bundle without retrieval has no case texts to fill")
    _refuse_unsafe_target(bundle, out)
    archive = read_reports(_fetch(reports, out.parent / "downloads", progress))
    findings = {report.study_id: report.findings for report in archive.reports if report.findings}
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        work.chmod(0o755)  # mkdtemp makes it private, but the service may run as another user
        _copy_verified(bundle, work, manifest)
        cases, filled, missing = _fill(read_cases(work / CASES), findings)
        if missing and not filled:
            raise HydrateError(
                f"none of the {len(missing)} cases without text, such as {missing[0]}, is among the {len(findings)} "
                f"reports of {reports}; is it the archive that the bundle was trained on?"
            )
        write_cases(work / CASES, cases)
        pictures, unreadable = 0, tuple[str, ...]()
        if images is not None:
            pictures, unreadable = _add_pictures(images, cases, archive, work, picture_progress)
        write_manifest(work, hydrated_from=file_sha256(bundle / MANIFEST))
        unchanged = _same(work, out)
        if not unchanged:
            replace_folder(work, out)
    except CaseFormatError as error:
        raise HydrateError(f"{bundle}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    kept = len(cases) - filled - len(missing)
    return Hydration(out, len(cases), filled, kept, missing, archive.broken + unreadable, unchanged, pictures)


def _fill(cases: Sequence[Case], findings: Mapping[str, str]) -> tuple[list[Case], int, tuple[str, ...]]:
    """Add findings to cases without text: (cases, number filled, ids that were not found)."""
    done = [
        case.with_findings(findings[case.case_id]) if case.findings is None and case.case_id in findings else case
        for case in cases
    ]
    filled = sum(new is not old for new, old in zip(done, cases, strict=True))
    return done, filled, tuple(case.case_id for case in done if case.findings is None)


def _add_pictures(
    images: Path, cases: Sequence[Case], archive: ReportArchive, work: Path, progress: Progress | None
) -> tuple[int, tuple[str, ...]]:
    """Write the small pictures of the first frontal and the first lateral image of each case, as of `make_pictures`."""
    views, wanted = image_views(), dict[str, tuple[str, str]]()
    ids = {report.study_id: report.image_ids for report in archive.reports}
    for case in cases:
        for view in View:
            image = next((each for each in ids.get(case.case_id, ()) if views.get(each) is view), None)
            if image is not None:
                wanted[image] = (case.case_id, view.value)
    try:
        made, broken = make_pictures(images, wanted, work / PICTURES, progress)
    except (OSError, ValueError) as error:
        raise HydrateError(f"--images {images}: {error}") from error
    if not made:
        raise HydrateError(
            f"--images {images} has none of the {len(wanted)} radiographs of the cases, as <image id>.png"
        )
    return made, broken


def _fetch(reports: str | Path, folder: Path, progress: Progress | None) -> Path:
    """The reports as a local path; a URL is downloaded into `folder` under a name derived from it."""
    if not str(reports).startswith(("http://", "https://")):
        return Path(reports)
    url = str(reports)
    name = PurePosixPath(urlsplit(url).path).name or "reports.tgz"
    return download(url, folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}", progress=progress)


def _read_manifest(bundle: Path) -> Manifest:
    try:
        return read_manifest(bundle)
    except BundleError as error:
        raise HydrateError(str(error)) from error


def _copy_verified(bundle: Path, work: Path, manifest: Manifest) -> None:
    """Copy the files that the manifest lists and check the copies against it."""
    for name, entry in manifest.files.items():
        copy = work / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(bundle / name, copy)
        except FileNotFoundError:
            raise HydrateError(f"{bundle} lacks {name}, which its {MANIFEST} lists; restore the bundle") from None
        if FileEntry.of(copy) != entry:
            raise HydrateError(f"{bundle / name} is not the file that {MANIFEST} lists; restore the bundle")


def _refuse_unsafe_target(bundle: Path, out: Path) -> None:
    """Allow only an absent, empty or hydrated target that is neither the source nor a folder around or inside it."""
    source, target = bundle.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise HydrateError(
            f"--out {out} is the bundle {bundle}, contains it or is inside it; choose a folder next to it"
        )
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise HydrateError(f"--out {out} is a file or a link; remove it or choose another folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            hydrated = "hydrated_from" in json.loads((out / MANIFEST).read_bytes())
        except (OSError, ValueError, RecursionError):
            hydrated = False
        if not hydrated:
            raise HydrateError(f"--out {out} is not a hydrated bundle; remove it or choose another")


def _same(work: Path, out: Path) -> bool:
    """Whether the files of `out` equal those of `work`."""
    names = [*_read_manifest(work).files, MANIFEST]
    return all((out / name).is_file() and FileEntry.of(out / name) == FileEntry.of(work / name) for name in names)


def _show_pictures(done: int, total: int | None) -> None:
    print(f"\rpictures: {done} of {total} ", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Arguments:
    bundle: Path
    reports: str
    images: Path | None
    out: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Write a copy of a bundle whose reference cases have their findings and small pictures, and print the counts."""
    parser = CommandParser(prog="python -m retrieval_index.hydrate", description=main.__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to copy")
    parser.add_argument("--reports", default=REPORTS_URL, help="archive, folder or URL (default: %(default)s)")
    parser.add_argument(
        "--images", type=Path, help="folder or archive of the radiographs, for small pictures of the cases"
    )
    parser.add_argument("--out", type=Path, help="the folder to create (default: .bundles/<name>-hydrated)")
    arguments = _Arguments(**vars(parser.parse_args(argv)))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        result = hydrate(
            arguments.bundle, arguments.reports, images=arguments.images, out=arguments.out,
            progress=text_progress("case texts"), picture_progress=_show_pictures,
        )  # fmt: skip
    except (HydrateError, ArchiveError, DownloadError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    if arguments.images is not None:
        print(file=sys.stderr)  # ends the line of the progress
    print(result.summary())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
