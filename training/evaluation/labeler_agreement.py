"""Measures the finding labeler against a table of labels read from the same reports by a trained labeler.

    python -m training.label_yardstick --root DIR [--split train|val|extra] [--text impression] [--markdown]

The table, `<root>/chexbert_labels.csv` unless told otherwise, has a row a study: 1 present, -1 uncertain, 0
neither. It was read from the IMPRESSION (it has a row exactly for the studies with one), so that is the text
compared; `--text` shows what the other section gives. Counted are the 13 findings without No Finding, which is a
row of its own. Studies are named by id only: no report text leaves this command.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from model.text.labeler import FINDINGS, label_report
from model.types import Label
from retrieval_index.openi import OpeniReport, read_reports
from training.data.label_table import Labels, read_labels
from training.data.tables import builtin_split, read_split
from training.evaluation.tables import Table, number

TABLE = "chexbert_labels.csv"
TEXTS = ("impression", "findings", "both")
COUNTED = tuple(name for name in FINDINGS if name != "No Finding")
_DRAWS = 1000

Part = Literal["train", "val", "extra"]  # extra: outside the field's set


@dataclass(frozen=True)
class Tally:
    """Agreement on one finding, or summed over several."""

    both: int  # the labeler and the table say it
    extra: int  # the labeler alone
    missed: int  # the table alone

    @property
    def support(self) -> int:
        return self.both + self.missed

    @property
    def precision(self) -> float:
        return _ratio(self.both, self.both + self.extra)

    @property
    def recall(self) -> float:
        return _ratio(self.both, self.both + self.missed)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.both, 2 * self.both + self.extra + self.missed)


@dataclass(frozen=True)
class Agreement:
    """What `compare` found: per finding the tally, and the studies on which the two disagree."""

    studies: int
    tallies: Mapping[str, Tally]  # all 14
    extra: Mapping[str, tuple[str, ...]]  # finding -> study uids that the labeler alone calls it
    missed: Mapping[str, tuple[str, ...]]
    interval: tuple[float, float]  # 95 % of 1,000 bootstrap draws of studies, for micro.f1

    @property
    def micro(self) -> Tally:
        """The 13 findings without No Finding, summed."""
        return Tally(
            *(sum(getattr(self.tallies[name], part) for name in COUNTED) for part in ("both", "extra", "missed"))
        )

    @property
    def macro_f1(self) -> float:
        """Mean F1 of those of the 13 findings that the table has at least once; NaN where it has none."""
        scores = [self.tallies[name].f1 for name in COUNTED if self.tallies[name].support]
        return float(np.mean(scores)) if scores else float("nan")


def compare(texts: Mapping[str, str], table: Mapping[str, Labels], *, positive: Label = "present") -> Agreement:
    """Label each text and compare with the table's row of the same study; studies without a row are left out.

    Args:
        texts: study uid -> report text.
        table: study uid -> label by finding, as `read_labels` returns it.
        positive: the label that is counted, "present" or "uncertain".
    """
    uids = [uid for uid in texts if uid in table]
    ours = [label_report(texts[uid]) for uid in uids]
    said = np.array([[labels[name] == positive for name in FINDINGS] for labels in ours], bool)  # (N, 14)
    told = np.array([[table[uid][name] == positive for name in FINDINGS] for uid in uids], bool)
    said, told = said.reshape(-1, len(FINDINGS)), told.reshape(-1, len(FINDINGS))

    def named(cells: np.ndarray) -> dict[str, tuple[str, ...]]:
        return {name: tuple(uids[i] for i in np.flatnonzero(cells[:, k])) for k, name in enumerate(FINDINGS)}

    extra, missed = named(said & ~told), named(told & ~said)
    both = (said & told).sum(0)
    tallies = {name: Tally(int(both[k]), len(extra[name]), len(missed[name])) for k, name in enumerate(FINDINGS)}
    return Agreement(len(uids), tallies, extra, missed, _interval(said, told))


def read_texts(root: Path, text: str = "impression") -> dict[Part, dict[str, str]]:
    """Part -> study uid -> text, from the report archive under `root`; `text` is one of `TEXTS`."""
    path = root / "r2gen_split.csv"
    splits = read_split(path) if path.exists() else builtin_split()
    parts: dict[Part, dict[str, str]] = {part: {} for part in get_args(Part)}
    for report in read_reports(root).reports:
        split = splits.get(report.uid)
        if split != "test":
            parts[split or "extra"][report.uid] = _text(report, text)
    return parts


def _text(report: OpeniReport, text: str) -> str:
    if text == "both":
        return f"{report.findings} . {report.impression}"
    return report.findings if text == "findings" else report.impression


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _interval(said: np.ndarray, told: np.ndarray) -> tuple[float, float]:
    counted = [FINDINGS.index(name) for name in COUNTED]
    both = (said & told)[:, counted].sum(1)  # (N,)
    either = said[:, counted].sum(1) + told[:, counted].sum(1)
    if not either.sum():
        return float("nan"), float("nan")
    draws = np.random.default_rng(0).integers(0, len(both), (_DRAWS, len(both)))  # (draws, N)
    scores = 2 * both[draws].sum(1) / np.maximum(either[draws].sum(1), 1)
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _report(agreement: Agreement, title: str, *, markdown: bool) -> Iterator[str]:
    """The table and the list of disagreements, as paragraphs."""
    rows = [(name, agreement.tallies[name]) for name in COUNTED]
    rows += [("micro, 13 findings", agreement.micro), ("No Finding", agreement.tallies["No Finding"])]
    cells = [[name, str(one.support), *map(number, (one.precision, one.recall, one.f1))] for name, one in rows]
    table = Table(["finding", "support", "precision", "recall", "F1"], cells)
    low, high = agreement.interval
    yield f"{'### ' if markdown else ''}{title}: {agreement.studies} studies"
    yield table.markdown() if markdown else table.text()
    micro, macro = number(agreement.micro.f1), number(agreement.macro_f1)
    yield f"micro F1 {micro} ({number(low)}–{number(high)}), macro F1 {macro}"
    yield "\n".join(
        f"{'- ' if markdown else ''}{name}, {side}: {' '.join(uids)}"
        for name in FINDINGS[:-1]
        for side, uids in (("labeler only", agreement.extra[name]), ("table only", agreement.missed[name]))
        if uids
    )


@dataclass(frozen=True)
class _Arguments:
    root: Path
    table: Path | None
    split: Part | None
    text: str
    positive: Label
    markdown: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the finding labeler with a table of labels, class by class, and name the studies that differ."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluation.labeler_agreement", description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the report archive")
    parser.add_argument("--table", type=Path, help=f"the labels; default <root>/{TABLE}")
    parser.add_argument("--split", choices=get_args(Part), help="default: train, then val")
    parser.add_argument("--text", choices=TEXTS, default="impression", help="what the labeler reads")
    parser.add_argument("--positive", choices=("present", "uncertain"), default="present", help="what is counted")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    arguments = _Arguments(**vars(parser.parse_args(argv)))
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
