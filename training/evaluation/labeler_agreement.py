"""Compares the finding labeler with a table of labels that another labeler read from the same reports.

    python -m training.evaluation.labeler_agreement --root DIR [--split extra] [--text findings] [--markdown]

The table, by default ``<root>/chexbert_labels.csv``, has one row a study: 1 present, -1 uncertain, 0 neither. It was
read from the IMPRESSION, so that section is compared by default. Micro and macro F1 count the 13 findings without No
Finding. The output names studies by id and holds no report text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from model.command_line import CommandParser
from model.text.labeler import FINDINGS, NO_FINDING, SCORED_FINDINGS, label_report
from model.types import Label
from retrieval_index.openi import read_reports
from training.data.tables import Labels, builtin_split, read_labels, read_split
from training.evaluation.tables import Table, interval, number
from training.scoring.bootstrap import Bootstrap, Resampled
from training.scoring.metrics import precision_recall_f1
from training.scoring.study_statistics import PerStudyStatistics

TABLE = "chexbert_labels.csv"
TEXTS = ("impression", "findings", "both")

Part = Literal["train", "val", "extra"]  # extra: studies outside the R2Gen split


class FindingStudies(NamedTuple):
    """Ids of the studies that have one finding, by the side that names it."""

    both: tuple[str, ...] = ()
    labeler_only: tuple[str, ...] = ()
    table_only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """Result of ``compare``: number of studies, studies by finding, and label F1 with bootstrap draws."""

    studies: int
    findings: Mapping[str, FindingStudies]
    scores: Resampled


def compare(texts: Mapping[str, str], table: Mapping[str, Labels], *, positive: Label = "present") -> Agreement:
    """Label each text and compare with the row of the same study id; studies without a row are left out.

    ``positive`` is the label that is counted.

    Raises:
        ValueError: no study has both a text and a row.
    """
    uids = [uid for uid in texts if uid in table]
    if not uids:
        raise ValueError("no study has both a text and a row in the table; check --table and --split")

    def named(labels: Labels) -> frozenset[str]:
        return frozenset(name for name in FINDINGS if labels[name] == positive)

    truth = [named(table[uid]) for uid in uids]
    guess = [named(label_report(texts[uid])) for uid in uids]
    pairs = list(zip(guess, truth, strict=True))
    sides = ([g & t for g, t in pairs], [g - t for g, t in pairs], [t - g for g, t in pairs])

    def having(name: str, side: Sequence[frozenset[str]]) -> tuple[str, ...]:
        return tuple(uid for uid, found in zip(uids, side, strict=True) if name in found)

    findings = {name: FindingStudies(*(having(name, side) for side in sides)) for name in FINDINGS}
    scores = Bootstrap(len(uids)).of_statistics(PerStudyStatistics.of_findings(truth, guess))
    return Agreement(len(uids), findings, scores)


def read_texts(root: Path, text: str = "impression") -> dict[Part, dict[str, str]]:
    """Part -> study uid -> text, from the report archive under ``root``; ``text`` is one of ``TEXTS``."""
    path = root / "r2gen_split.csv"
    splits = read_split(path) if path.exists() else builtin_split()
    parts: dict[Part, dict[str, str]] = {part: {} for part in get_args(Part)}
    for report in read_reports(root).reports:
        split = splits.get(report.uid)
        if split != "test":
            sections = {"findings": report.findings, "impression": report.impression}
            both = f"{report.findings} . {report.impression}"
            parts[split or "extra"][report.uid] = both if text == "both" else sections[text]
    return parts


def _report(agreement: Agreement, title: str, *, markdown: bool) -> Iterator[str]:
    counts = {name: list(map(len, found)) for name, found in agreement.findings.items()}
    rows = {name: counts[name] for name in SCORED_FINDINGS}
    rows["micro, 13 findings"] = list(map(sum, zip(*rows.values(), strict=True)))
    rows[NO_FINDING] = counts[NO_FINDING]
    head = ["finding", "support", "precision", "recall", "F1"]
    table = Table(head, [_cells(name, *row) for name, row in rows.items()])
    whole, ends = agreement.scores.whole, agreement.scores.intervals()["label_f1_micro"]
    yield f"{'### ' if markdown else ''}{title}: {agreement.studies} studies"
    yield table.markdown() if markdown else table.text()
    micro, macro = number(whole["label_f1_micro"]), number(whole["label_f1_macro"])
    yield f"micro F1 {micro} (95 %: {interval(ends)}), macro F1 {macro}"
    yield "\n".join(
        f"{'- ' if markdown else ''}{name}, {side}: {' '.join(uids)}"
        for name in SCORED_FINDINGS
        for side, uids in zip(("labeler only", "table only"), agreement.findings[name][1:], strict=True)
        if uids
    )


def _cells(name: str, hits: int, wrong: int, missed: int) -> list[str]:
    """One row of the table; a dash for a division by zero."""
    precision, recall, f1 = precision_recall_f1(hits, wrong, missed)
    defined = zip((precision, recall, f1), (hits + wrong, hits + missed, hits + wrong + missed), strict=True)
    return [name, str(hits + missed), *(number(value if count else None) for value, count in defined)]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the finding labeler with a table of labels, class by class, and name the studies that differ."""
    parser = CommandParser(prog="python -m training.evaluation.labeler_agreement", description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the report archive")
    parser.add_argument("--table", type=Path, help=f"the labels; default <root>/{TABLE}")
    parser.add_argument("--split", choices=get_args(Part), help="default: train, then val")
    parser.add_argument("--text", choices=TEXTS, default="impression", help="what the labeler reads")
    parser.add_argument("--positive", choices=("present", "uncertain"), default="present", help="what is counted")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    arguments = parser.parse_args(argv)
    parts: tuple[Part, ...] = (arguments.split,) if arguments.split else ("train", "val")
    try:
        table = read_labels(arguments.table or arguments.root / TABLE)
        texts = read_texts(arguments.root, arguments.text)
        for part in parts:
            agreement = compare(texts[part], table, positive=arguments.positive)
            title = f"{part}, {arguments.text}, {arguments.positive}"
            print(*_report(agreement, title, markdown=arguments.markdown), sep="\n\n", end="\n\n")
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
