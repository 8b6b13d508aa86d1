"""Reader of the official Open-i report archive (Indiana University chest X-ray collection).

The archive has one XML file per study, `ecgen-radiology/<n>.xml`, with the study's uid (`CXR<n>`),
the FINDINGS, IMPRESSION and INDICATION sections, the MeSH terms and the image ids (`parentImage`,
in the file's order). Source: Demner-Fushman et al., "Preparing a collection of radiology
examinations for distribution and retrieval", JAMIA 2016; licence CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import logging
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree as DefusedElementTree
from defusedxml.common import DefusedXmlException

from model.types import View

REPORTS_ARCHIVE = "NLMCXR_reports.tgz"
REPORTS_FOLDER = "ecgen-radiology"
MAX_XML_BYTES = 4 << 20  # the largest report of the archive has under 20 kB

logger = logging.getLogger(__name__)


class ArchiveError(ValueError):
    """The report archive is missing, truncated or not a report archive."""


@dataclass(frozen=True)
class OpeniReport:
    """One study of the archive. Each text is one line (see `fold`), empty if the section is missing."""

    uid: str  # "CXR2384"
    findings: str
    impression: str
    indication: str
    image_ids: tuple[str, ...]  # "CXR2384_IM-0942-1001", in the file's order
    mesh: tuple[str, ...]  # major MeSH headings, such as "Cardiomegaly/mild"; ("normal",) for a normal study

    @property
    def study_id(self) -> str:
        """Id in R2Gen's annotation: the first image's id without its last part, or the uid without images.

        `CXR2384_IM-0942-1001` gives `CXR2384_IM-0942`.
        """
        return self.image_ids[0].rpartition("-")[0] if self.image_ids else self.uid


@dataclass(frozen=True)
class ReportArchive:
    """The reports by study number, and the files that could not be read."""

    reports: tuple[OpeniReport, ...]
    broken: tuple[str, ...]  # "ecgen-radiology/17.xml: reason"


def read_reports(path: Path) -> ReportArchive:
    """Read every report of an archive.

    Args:
        path: `NLMCXR_reports.tgz`, its extracted `ecgen-radiology/` folder, or a folder with either
            (the archive is preferred: an extracted folder may be incomplete).

    Returns:
        The reports in order of study number. A broken XML file is logged, listed in `broken` and
        skipped.

    Raises:
        ArchiveError: there is no archive, it is damaged, or it has no readable report.
    """
    source = _locate(path)
    members = _archive_members(source) if source.is_file() else _folder_members(source)
    reports: dict[str, OpeniReport] = {}
    broken: list[str] = []
    for name, data in members:
        try:
            report = parse_report(data)
            if report.uid in reports:
                raise ValueError(f"study {report.uid} occurs twice")
        except ValueError as error:
            broken.append(f"{name}: {error}")
            logger.warning("skipping report %s: %s", name, error)
        else:
            reports[report.uid] = report
    if not reports:
        raise ArchiveError(f"{source} has no readable report ({len(broken)} broken); expected {REPORTS_FOLDER}/<n>.xml")
    return ReportArchive(tuple(sorted(reports.values(), key=lambda r: study_number(r.uid))), tuple(broken))


def parse_report(data: bytes) -> OpeniReport:
    """Read one report.

    Raises:
        ValueError: the XML is malformed, too large, declares entities or has no study id.
    """
    if len(data) > MAX_XML_BYTES:
        raise ValueError(f"{len(data)} bytes, more than the limit of {MAX_XML_BYTES}")
    try:
        root: Element = DefusedElementTree.fromstring(data)
    except (ParseError, DefusedXmlException, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"not well-formed XML: {error}") from error
    uid = next((node.get("id", "") for node in root.iter("uId")), "")
    if not uid:
        raise ValueError("there is no <uId id=…> element")
    sections: dict[str, str] = {}
    for node in root.iter("AbstractText"):
        label = node.get("Label", "").upper()
        sections[label] = fold(" ".join((sections.get(label, ""), "".join(node.itertext()))))
    return OpeniReport(
        uid=uid,
        findings=sections.get("FINDINGS", ""),
        impression=sections.get("IMPRESSION", ""),
        indication=sections.get("INDICATION", ""),
        image_ids=tuple(image for node in root.iter("parentImage") if (image := node.get("id"))),
        mesh=tuple(term for node in root.iter("major") if (term := fold(node.text or ""))),
    )


def fold(text: str) -> str:
    """Join lines: a line break or tab, with the white space around it, becomes one space; ends are stripped.

    Double blanks within a line are kept, as in R2Gen's annotation (study CXR1600).
    """
    return re.sub(r"\s*[\t\r\n]\s*", " ", text).strip()


@cache
def image_views() -> dict[str, View | None]:
    """Image id -> view, None where undetermined; images of a study in the order of its XML file. No test study."""
    letters = {"F": View.FRONTAL, "L": View.LATERAL, "?": None}
    table: dict[str, View | None] = {}
    for line in files("retrieval_index").joinpath("views.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            number, *images = line.split()
            for image in images:
                name, _, letter = image.rpartition("=")
                table[f"CXR{number}_{name}"] = letters[letter]
    return table


def page_url(image_id: str) -> str:
    """Open-i's page of a study, by the id of one of its images."""
    return f"https://openi.nlm.nih.gov/detailedresult?img={image_id}&req=4"


def study_number(uid: str) -> tuple[int, str]:
    """Sort key of study ids: `CXR9` before `CXR10`; ids without a number come first, by name."""
    number = re.search(r"\d+", uid)
    return (int(number.group()) if number else -1, uid)


def _locate(path: Path) -> Path:
    """The archive file or the folder of XML files at `path`."""
    if path.is_file():
        return path
    for candidate in (path / REPORTS_ARCHIVE, path / REPORTS_FOLDER):
        if candidate.exists():
            return candidate
    if path.is_dir() and any(path.glob("*.xml")):
        return path
    problem = "has no reports" if path.is_dir() else "does not exist"
    raise ArchiveError(f"{path} {problem}; expected {REPORTS_ARCHIVE} or its extracted folder {REPORTS_FOLDER}/")


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.glob("*.xml")):
        if not file.name.startswith("."):
            yield f"{folder.name}/{file.name}", file.read_bytes()


def _archive_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or not name.endswith(".xml") or name.startswith("."):
                    continue
                file = tar.extractfile(member)
                assert file is not None  # a regular file has content
                yield member.name, file.read(MAX_XML_BYTES + 1)
            while tar.fileobj.read(1 << 20):
                pass  # read to the end, where gzip verifies its checksum
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition(":\n")[0]  # tarfile appends a line per compression method
        raise ArchiveError(
            f"{archive} ({archive.stat().st_size} bytes) is damaged or not a tar archive: {reason}; download it again"
        ) from error
