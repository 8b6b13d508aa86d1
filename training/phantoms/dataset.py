"""Writes phantom studies in the layout of the Open-i collection."""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from training.phantoms.study import MESH, PHANTOM_FINDINGS, PhantomStudy, make_phantom

FIRST_STUDY = 900_001  # the collection's own numbers end at 3999
LATERAL_FIRST = 0.1  # the share of studies that list the lateral first, as in the collection


def write_phantom_root(root: Path, *, train: int, val: int, test: int = 0, seed: int = 0, size: int = 256) -> Path:
    """Write phantom studies as ``NLMCXR_reports.tgz`` (``ecgen-radiology/<n>.xml``), ``images/<image id>.png``,
    ``r2gen_split.csv`` and ``views.csv``. The same arguments give the same bytes.

    ``root`` is a new or empty folder, which appears complete or not at all; ``train``, ``val`` and ``test`` are
    numbers of studies; ``size`` is the side of the images in pixels.

    Raises:
        ValueError: ``root`` holds files already.
    """
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; phantoms are written to a new folder only")
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    rng = np.random.default_rng([seed, 201])
    split_rows, view_rows, reports = [], [], {}
    for number, split in enumerate(splits, start=FIRST_STUDY):
        study = make_phantom(int(rng.integers(2**31)), sample_findings(rng), size=size)
        images = image_ids(number)
        for view, pixels in (("frontal", study.frontal), ("lateral", study.lateral)):
            Image.fromarray(pixels).save(partial / "images" / f"{images[view]}.png", "PNG", compress_level=6)
            view_rows.append((images[view], view))
        order = ("lateral", "frontal") if rng.random() < LATERAL_FIRST else ("frontal", "lateral")
        reports[f"ecgen-radiology/{number}.xml"] = study_xml(number, study, [images[view] for view in order])
        split_rows.append((f"CXR{number}", split))
    _save_csv(partial / "r2gen_split.csv", ("study_id", "split"), split_rows)
    _save_csv(partial / "views.csv", ("image_id", "view"), view_rows)
    _save_tgz(partial / "NLMCXR_reports.tgz", reports)
    if root.exists():
        root.rmdir()
    os.replace(partial, root)
    return root


def sample_findings(rng: np.random.Generator) -> frozenset[str]:
    """A third normal; of the others two thirds with one finding, the rest with two or three."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.34, 0.42, 0.16, 0.08]))
    return frozenset(str(name) for name in rng.choice(PHANTOM_FINDINGS, size=count, replace=False))


def image_ids(number: int) -> dict[str, str]:
    """Image id by view, formed like those of the collection."""
    stem = f"CXR{number}_IM-{number % 10_000:04d}"
    return {"frontal": f"{stem}-1001", "lateral": f"{stem}-2001"}


def study_xml(number: int, study: PhantomStudy, images: list[str]) -> bytes:
    """The report in the elements of the official XML."""
    terms = [MESH[name] for name in MESH if name in study.findings] or ["normal"]
    sections = {
        "COMPARISON": "None, phantoms are drawn once.",
        "INDICATION": "Drawn for a test of the report pipeline.",
        "FINDINGS": study.report,
        "IMPRESSION": "Phantom chest: " + (", ".join(sorted(study.findings)) or "normal") + ".",
    }
    texts = "\n".join(f"        <AbstractText Label={quoteattr(label)}>{escape(text)}</AbstractText>"
                      for label, text in sections.items())  # fmt: skip
    parents = "\n".join(f"  <parentImage id={quoteattr(image)}>\n    <figureId>F{position}</figureId>\n"
                        f"    <caption>Drawn chest phantom</caption>\n  </parentImage>"
                        for position, image in enumerate(images, start=1))  # fmt: skip
    majors = "\n".join(f"    <major>{escape(term)}</major>" for term in terms)
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <meta type="rr"/>
  <uId id="CXR{number}"/>
  <docSource>CXR</docSource>
  <IUXRId id="{number}"/>
  <title>Drawn chest phantom</title>
  <note>No patient: drawn by training.phantom.</note>
  <MedlineCitation>
    <Article>
      <Abstract>
{texts}
      </Abstract>
    </Article>
  </MedlineCitation>
  <MeSH>
{majors}
  </MeSH>
{parents}
</eCitation>
""".encode()


def _save_csv(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _save_tgz(path: Path, files: dict[str, bytes]) -> None:
    """A .tgz without times or owners, so that equal content makes equal bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
