"""A small report archive in the official layout, with invented texts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FINDINGS = {
    "CXR1": "Cardiac silhouette normal. No fluid.",
    "CXR2": "Left base opacity.\n      Small fluid level.",
    "CXR10": "Two  blanks are kept.",
    "CXR11": "",
    "CXR12": "Only one picture here.",
}
IMAGES = {
    "CXR1": ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"),
    "CXR2": ("CXR2_IM-0652-1001", "CXR2_IM-0652-2001", "CXR2_IM-0652-3001"),
    "CXR10": ("CXR10_IM-0002-1001-0001", "CXR10_IM-0002-1001-0002"),
    "CXR11": ("CXR11_IM-0067-1001", "CXR11_IM-0067-2001"),
    "CXR12": ("CXR12_IM-0133-1001",),
}


def report_xml(uid: str, findings: str, images: Sequence[str], *, mesh: Sequence[str] = ("normal",)) -> bytes:
    """One report, with the elements of the official files that are read."""
    parents = "".join(f'<parentImage id="{image}"><figureId>F1</figureId></parentImage>' for image in images)
    majors = "".join(f"<major>{escape(term)}</major>" for term in mesh)
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="{uid}"/><MedlineCitation><Article><Abstract>
  <AbstractText Label="COMPARISON">None.</AbstractText>
  <AbstractText Label="INDICATION"> Invented
     indication </AbstractText>
  <AbstractText Label="FINDINGS">{escape(findings)}</AbstractText>
  <AbstractText Label="IMPRESSION">An invented impression.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH>{majors}<automatic>not read</automatic></MeSH>{parents}</eCitation>""".encode()


def xml_files() -> dict[str, bytes]:
    """The archive's files: name -> content, one study a file."""
    return {f"{uid[3:]}.xml": report_xml(uid, FINDINGS[uid], IMAGES[uid]) for uid in FINDINGS}


def write_tgz(path: Path, members: Mapping[str, bytes]) -> Path:
    """A .tgz with `members`, name -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_reports(path: Path, files: Mapping[str, bytes] | None = None) -> Path:
    """`NLMCXR_reports.tgz` with `files` (default: `xml_files()`)."""
    return write_tgz(
        path, {f"ecgen-radiology/{name}": data for name, data in (xml_files() if files is None else files).items()}
    )
