"""Reader of the official Open-i report archive (Indiana University chest X-ray collection).

The archive holds one XML file a study, `ecgen-radiology/<n>.xml`. Read from it are the study's uid (`CXR<n>`), the
FINDINGS, IMPRESSION and INDICATION sections, the MeSH terms and the ids of its images (`parentImage`, in the file's
order). Source: Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and
retrieval", JAMIA 2016; licence CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import logging
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree as DefusedElementTree
from defusedxml.common import DefusedXmlException

REPORTS_ARCHIVE = "NLMCXR_reports.tgz"
REPORTS_FOLDER = "ecgen-radiology"
MAX_XML_BYTES = 4 << 20  # the longest report of the archive has under 20 kB

logger = logging.getLogger(__name__)


class ArchiveError(ValueError):
    """The report archive is absent, cut short or not a report archive."""


@dataclass(frozen=True)
class OpeniReport:
    """One study of the archive. Texts are one line each (see `fold`), empty where the section is absent."""

    uid: str  # "CXR2384"
    findings: str
    impression: str
    indication: str
    image_ids: tuple[str, ...]  # "CXR2384_IM-0942-1001", in the file's order
    mesh: tuple[str, ...]  # major MeSH headings, such as "Cardiomegaly/mild"; ("normal",) for a normal study

    @property
    def study_id(self) -> str:
        """Id under which R2Gen's annotation lists the study: the first image's id without its last dash part.

        `CXR2384_IM-0942-1001` gives `CXR2384_IM-0942`; a study without images keeps its uid.
        """
        return self.image_ids[0].rpartition("-")[0] if self.image_ids else self.uid


@dataclass(frozen=True)
class ReportArchive:
    """What `read_reports` found: the reports by study number, and the files that could not be read."""

    reports: tuple[OpeniReport, ...]
    broken: tuple[str, ...]  # "ecgen-radiology/17.xml: reason"


def read_reports(path: Path) -> ReportArchive:
    """Read every report of an archive.

    Args:
        path: `NLMCXR_reports.tgz`, its extracted `ecgen-radiology/` folder, or a folder holding either (the
            archive is preferred: an extracted folder may be incomplete).

    Returns:
        The reports, ascending by study number. A broken XML file is logged, named in `broken` and skipped.

    Raises:
        ArchiveError: nothing to read at `path`, a damaged archive, or no readable report in it.
    """
    place = _locate(path)
    members = _archive_members(place) if place.is_file() else _folder_members(place)
    reports: dict[str, OpeniReport] = {}
    broken: list[str] = []
    for name, data in members:
        try:
            report = parse_report(data)
            if report.uid in reports:
                raise ValueError(f"study {report.uid} is there already")
        except ValueError as error:
            broken.append(f"{name}: {error}")
            logger.warning("skipping report %s: %s", name, error)
        else:
            reports[report.uid] = report
    if not reports:
        raise ArchiveError(
            f"{place} holds no readable report ({len(broken)} broken); expected {REPORTS_FOLDER}/<n>.xml"
        )
    return ReportArchive(tuple(sorted(reports.values(), key=lambda r: study_number(r.uid))), tuple(broken))


def parse_report(data: bytes) -> OpeniReport:
    """Read one report.

    Raises:
        ValueError: the XML is malformed, too large, declares entities, or names no study.
    """
    if len(data) > MAX_XML_BYTES:
        raise ValueError(f"{len(data)} bytes, more than the {MAX_XML_BYTES} a report may have")
    try:
        root: Element = DefusedElementTree.fromstring(data)
    except (ParseError, DefusedXmlException, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"not well-formed XML: {error}") from error
    uid = next((node.get("id", "") for node in root.iter("uId")), "")
    if not uid:
        raise ValueError("no <uId id=…> element names the study")
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

    Double blanks within a line stay, because R2Gen's annotation keeps them (study CXR1600) and is to be reproduced.
    """
    return re.sub(r"\s*[\t\r\n]\s*", " ", text).strip()


def page_url(image_id: str) -> str:
    """Open-i's page of a study, by the id of one of its images."""
    return f"https://openi.nlm.nih.gov/detailedresult?img={image_id}&req=4"


def study_number(uid: str) -> tuple[int, str]:
    """Sort key of study ids: `CXR9` before `CXR10`; ids without a number come first, by name."""
    number = re.search(r"\d+", uid)
    return (int(number.group()) if number else -1, uid)


def _locate(path: Path) -> Path:
    """The archive file or the folder of XML files that `path` means."""
    if path.is_file():
        return path
    for place in (path / REPORTS_ARCHIVE, path / REPORTS_FOLDER):
        if place.exists():
            return place
    if path.is_dir() and any(path.glob("*.xml")):
        return path
    problem = "holds no reports" if path.is_dir() else "does not exist"
    raise ArchiveError(f"{path} {problem}; needed is {REPORTS_ARCHIVE} or its extracted folder {REPORTS_FOLDER}/")


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
                pass  # to the end, where gzip compares its checksum
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition(":\n")[0]  # tarfile goes on with a line for each compression it tried
        raise ArchiveError(
            f"{archive} ({archive.stat().st_size} bytes) is damaged or no tar archive: {reason}; download it again"
        ) from error
