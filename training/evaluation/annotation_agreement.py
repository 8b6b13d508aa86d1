"""Compares the reader of annotations with the MeSH headings that people gave the same reports.

    python -m training.evaluation.annotation_agreement --root DIR [--split val] [--markdown]

A heading of the archive names a finding and its context ("Opacity/lung/base/left/mild"). Where both the headings and
the reader name a finding of a study, their sides, regions and degrees are compared: each side, region or degree of
both is a hit, of the reader alone wrong, of the headings alone missed. Headings are of the whole report, so both its
sections are read, and some were given from the images, so that not every difference is an error of the reader. Rules
were written on train; val is for reporting. The output names studies by id and holds no report text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, get_args

from model.command_line import CommandParser
from model.text.annotation_terms import OF_BONE, UNSIDED
from model.text.annotations import Annotation, annotate_report
from retrieval_index.openi import OpeniReport, read_reports
from training.data.tables import builtin_split, read_split
from training.evaluation.labeler_agreement import Part
from training.evaluation.tables import Table, number
from training.scoring.metrics import precision_recall_f1

FIELDS: Final = ("side", "region", "degree")

# heading -> qualifier that it needs (None: any) -> finding or concept of the reader
HEADINGS: Final[Mapping[str, Mapping[str | None, str]]] = {
    "opacity": {None: "Lung Opacity"},
    "airspace disease": {None: "Lung Opacity"},
    "infiltrate": {None: "Lung Opacity"},
    "density": {"lung": "Lung Opacity"},
    "cicatrix": {None: "scar"},
    "pulmonary atelectasis": {None: "Atelectasis"},
    "cardiomegaly": {None: "Cardiomegaly"},
    "cardiac shadow": {"enlarged": "Cardiomegaly"},
    "pleural effusion": {None: "Pleural Effusion"},
    "calcified granuloma": {None: "granuloma"},
    "granuloma": {None: "granuloma"},
    "nodule": {None: "Lung Lesion"},
    "mass": {None: "Lung Lesion"},
    "pneumonia": {None: "Pneumonia"},
    "consolidation": {None: "Consolidation"},
    "pneumothorax": {None: "Pneumothorax"},
    "pulmonary edema": {None: "Edema"},
    "pulmonary congestion": {None: "vascular congestion"},
    "thickening": {"pleura": "Pleural Other"},
    "fractures, bone": {None: "Fracture"},
    "catheters, indwelling": {None: "Support Devices"},
    "implanted medical device": {None: "Support Devices"},
    "medical device": {None: "Support Devices"},
    "tube, inserted": {None: "Support Devices"},
    "scoliosis": {None: "scoliosis"},
    "kyphosis": {None: "kyphosis"},
    "thoracic vertebrae": {"degenerative": "degenerative change"},
    "spine": {"degenerative": "degenerative change"},
    "spondylosis": {None: "degenerative change"},
    "osteophyte": {None: "osteophyte"},
    "diaphragm": {"elevated": "elevated diaphragm", "flattened": "flattened diaphragm"},
    "diaphragmatic eventration": {None: "eventration"},
    "costophrenic angle": {"blunted": "blunted costophrenic angle"},
    "lung": {"hypoinflation": "low lung volumes", "hyperdistention": "hyperinflation"},
    "emphysema": {None: "emphysema"},
    "pulmonary emphysema": {None: "emphysema"},
    "atherosclerosis": {None: "atherosclerosis"},
    "aorta": {"tortuous": "tortuous aorta"},
    "aorta, thoracic": {"tortuous": "tortuous aorta"},
    "hernia, hiatal": {None: "hiatal hernia"},
    "calcinosis": {None: "calcification"},
    "surgical instruments": {None: "surgical clip"},
}
_SIDES: Final = {"left": ("left",), "right": ("right",), "bilateral": ("left", "right"), "lingula": ("left",),
                 "middle lobe": ("right",)}  # fmt: skip
_REGIONS: Final = {
    **{name: name for name in ("base", "apex", "lingula", "hilum", "retrocardiac", "mediastinum", "paratracheal")},
    **{name: name for name in ("upper lobe", "middle lobe", "lower lobe", "costophrenic angle", "clavicle", "humerus")},
    "ribs": "rib", "sternum": "sternum", "shoulder": "shoulder", "thoracic vertebrae": "thoracic spine",
    "lumbar vertebrae": "lumbar spine", "cervical vertebrae": "cervical spine", "spine": "spine",
    "aorta": "aorta", "aorta, thoracic": "aorta",
}  # fmt: skip
_DEGREES: Final = {"mild": "mild", "small": "mild", "moderate": "moderate", "severe": "severe", "large": "severe"}
# the reader's names that headings do not have
_FOLDED: Final = {"upper zone": "upper lobe", "lower zone": "lower lobe", "perihilar": "hilum", "minimal": "mild"}

Context = Mapping[str, frozenset[str]]  # of each of FIELDS


def of_headings(mesh: Iterable[str]) -> dict[str, Context]:
    """Finding -> sides, regions and degrees of a study's headings."""
    found: dict[str, dict[str, set[str]]] = {}
    for heading in mesh:
        head, *qualifiers = (part.strip().lower() for part in heading.split("/"))
        names = HEADINGS.get(head, {})
        for name in {names[key] for key in (None, *qualifiers) if key in names}:
            context = found.setdefault(name, {kind: set() for kind in FIELDS})
            parts = (head, *qualifiers) if head in ("spine", "thoracic vertebrae") else qualifiers
            context["side"].update(side for part in parts for side in _SIDES.get(part, ()))
            context["region"].update(_REGIONS[part] for part in parts if part in _REGIONS)
            context["degree"].update(_DEGREES[part] for part in qualifiers if part in _DEGREES)
    return {name: {kind: frozenset(values) for kind, values in context.items()} for name, context in found.items()}


def of_annotations(annotations: Iterable[Annotation]) -> dict[str, Context]:
    """Finding -> sides, regions and degrees of the mentions that are not absent; a scar is no other opacity."""
    found: dict[str, dict[str, set[str]]] = {}
    for annotation in annotations:
        if annotation.presence == "absent":
            continue
        names = {annotation.finding, annotation.concept} if annotation.concept != "scar" else {"scar"}
        for name in filter(None, names):
            context = found.setdefault(name, {kind: set() for kind in FIELDS})
            if annotation.side:
                context["side"].update(("left", "right") if annotation.side == "both" else (annotation.side,))
            folded = {_FOLDED.get(region, region) for region in annotation.regions}
            if "middle zone" in folded:  # headings call the left one the lingula
                folded |= {"left": {"lingula"}, "right": {"middle lobe"}}.get(annotation.side or "", set())
            context["region"].update(folded & set(_REGIONS.values()))
            if annotation.degree:
                context["degree"].add(_FOLDED.get(annotation.degree, annotation.degree))
    return {name: {kind: frozenset(values) for kind, values in context.items()} for name, context in found.items()}


def _compared(finding: str) -> Iterator[str]:
    """Fields to compare for a finding: an unpaired organ has no side, a name that contains a place has no region."""
    if finding.lower() not in UNSIDED:
        yield "side"
    if finding.lower() in OF_BONE or finding.lower() not in UNSIDED | {"blunted costophrenic angle"}:
        yield "region"
    yield "degree"


class Difference(NamedTuple):
    """One study, finding and field where the two differ."""

    uid: str
    finding: str
    field: str
    headings: frozenset[str]
    reader: frozenset[str]


@dataclass
class Agreement:
    """Counts of ``compare``: (finding, field) -> hits, wrong, missed; and finding -> studies."""

    studies: int = 0
    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    named: dict[str, Counter[str]] = field(default_factory=dict)  # both, headings, reader
    differences: list[Difference] = field(default_factory=list)


def compare(reports: Iterable[OpeniReport]) -> Agreement:
    """Annotate both sections of each report and compare with its headings."""
    result = Agreement()
    known = {name for names in HEADINGS.values() for name in names.values()}
    for report in reports:
        result.studies += 1
        truth = of_headings(report.mesh)
        guess = of_annotations(annotate_report(f"{report.findings} . {report.impression}"))
        for name in known & (truth.keys() | guess.keys()):
            both = name in truth and name in guess
            side = "both" if both else "headings" if name in truth else "reader"
            result.named.setdefault(name, Counter())[side] += 1
            for kind in _compared(name) if both else ():
                given, found = truth[name][kind], guess[name][kind]
                counts = result.counts.setdefault((name, kind), Counter())
                counts.update(hits=len(given & found), wrong=len(found - given), missed=len(given - found))
                if given != found:
                    result.differences.append(Difference(report.uid, name, kind, given, found))
    return result


def read_parts(root: Path) -> dict[Part, list[OpeniReport]]:
    """Part -> reports with headings, from the report archive under ``root``, without test studies."""
    path = root / "r2gen_split.csv"
    splits = read_split(path) if path.exists() else builtin_split()
    parts: dict[Part, list[OpeniReport]] = {part: [] for part in get_args(Part)}
    for report in read_reports(root).reports:
        split = splits.get(report.uid)
        if split != "test" and report.mesh:
            parts[split or "extra"].append(report)
    return parts


def _tables(agreement: Agreement, title: str, *, markdown: bool) -> Iterator[str]:
    yield f"{'### ' if markdown else ''}{title}: {agreement.studies} studies"
    head = ["field", "in both", "reader only", "headings only", "precision", "recall", "F1"]
    totals = {kind: Counter[str]() for kind in FIELDS}
    for (_, kind), counts in agreement.counts.items():
        totals[kind].update(counts)
    tables = [Table(head, [_cells([kind], counts) for kind, counts in totals.items()])]
    order = sorted(agreement.named, key=lambda name: (-agreement.named[name]["both"], name))
    tables.append(
        Table(
            ["finding", *head],
            [
                _cells([name, kind], agreement.counts[name, kind])
                for name in order
                for kind in FIELDS
                if sum(agreement.counts.get((name, kind), Counter()).values())
            ],
            left=2,
        )
    )
    tables.append(
        Table(
            ["finding named by", "both", "reader only", "headings only"],
            [[name, *(str(agreement.named[name][side]) for side in ("both", "reader", "headings"))] for name in order],
        )
    )
    for table in tables:
        yield table.markdown() if markdown else table.text()


def _cells(names: Sequence[str], counts: Counter[str]) -> list[str]:
    hits, wrong, missed = (counts[key] for key in ("hits", "wrong", "missed"))
    precision, recall, f1 = precision_recall_f1(hits, wrong, missed)
    defined = zip((precision, recall, f1), (hits + wrong, hits + missed, hits + wrong + missed), strict=True)
    shown = (number(value if count else None) for value, count in defined)
    return [*names, str(hits), str(wrong), str(missed), *shown]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare sides, regions and degrees of the reader of annotations with the MeSH headings of the archive."""
    parser = CommandParser(prog="python -m training.evaluation.annotation_agreement", description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the report archive")
    parser.add_argument("--split", choices=get_args(Part), default="train", help="default: train")
    parser.add_argument("--differences", action="store_true", help="list the studies that differ, by id")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    arguments = parser.parse_args(argv)
    try:
        reports = read_parts(arguments.root)[arguments.split]
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    agreement = compare(reports)
    print(*_tables(agreement, f"{arguments.split}", markdown=arguments.markdown), sep="\n\n")
    for one in agreement.differences if arguments.differences else ():
        print(
            one.uid,
            one.finding,
            one.field,
            *(",".join(sorted(side)) or "-" for side in (one.headings, one.reader)),
            sep="\t",
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
