"""Score the texts of any system against reports, without a bundle, images or a GPU. Protocol: docs/evaluation.md.

    python -m training.score --predictions theirs.csv --references annotation.json --split test --out scores/theirs
    python -m training.score --predictions a.jsonl --references reports.csv --training-reports train.csv \\
        --against b.jsonl --out scores/a-b

A file of texts is JSON lines, a JSON list or CSV with the columns id and text, a JSON object of texts by id, or an
annotation in the R2Gen layout. The metrics are those of ``training.evaluate``, by the same code. ``--out`` gets
``metrics.json``, which holds no text, and the page ``report.html``, which does.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.command_line import CommandParser
from model.files import write_atomic
from model.types import Draft, ReferenceCase
from training.cli import not_negative, run_command, write_json
from training.data.letters import check_letters
from training.data.r2gen import study_uid
from training.data.selection import HALVES, Half, half_of
from training.data.studies import Study
from training.data.tables import read_present
from training.evaluation.against import add_system
from training.evaluation.page import EvaluatedSplit, write_page
from training.evaluation.plan import ScoringPlan
from training.evaluation.privacy import GITIGNORE, check_page_folder
from training.evaluation.score_drafts import score_drafts
from training.evaluation.scoring import KnownTexts, ReferenceSet, texts_of
from training.evaluation.terminal import format_table
from training.evaluation.text_files import (
    PREDICTION_COLUMNS,
    REFERENCE_COLUMNS,
    RETRIEVED,
    TextFile,
    aligned,
    is_annotation,
    read_split_studies,
    read_texts,
)
from training.protocols import IU_XRAY, PROTOCOLS, Protocol
from training.scoring.bootstrap import DRAWS
from training.scoring.forte import read_forte_keywords
from training.scoring.metrics import meteor_available
from training.scoring.protocol import full_reference

log = logging.getLogger("training")


@dataclass(frozen=True)
class Reports:
    """The studies with their reports, and the split and half of val that they are; None for a file without splits."""

    path: Path
    studies: Sequence[Study]
    split: str | None = None
    half: Half | None = None


def score(
    predictions: TextFile, reports: Reports, train: Path | None, plan: ScoringPlan, out: Path | None = None, *,
    against: Sequence[TextFile] = (), common: bool = False, notes: Sequence[str] = (), protocol: Protocol = IU_XRAY,
) -> dict[str, Any]:  # fmt: skip
    """Score a file of texts, compare it with others, and write ``metrics.json`` and the page into ``out``.

    Returns:
        The content of ``metrics.json``: as that of ``training.evaluate``, ``bundle`` and ``decoding`` are None.

    Raises:
        ValueError: the ids of two files differ, a file is malformed, or ``out`` is refused.
    """
    if out is not None:
        check_page_folder(out, option="--out")
    labels = read_present(plan.reference_labels) if plan.reference_labels else {}
    check_letters((study.report for study in reports.studies), f"the references {reports.path}")
    for file in (predictions, *against):
        check_letters(file.texts.values(), f"{file.path}")
    skipped = {s.study_id: "its report has no words" for s in reports.studies if not full_reference(s.report)}
    wanted = [study for study in reports.studies if study.study_id not in skipped]
    if not wanted:
        raise ValueError(f"no study is left to score: no report of {reports.path} has words")
    ids = {study.study_id for study in wanted}
    for file in (predictions, *against):
        ids &= aligned(file, [study.study_id for study in wanted], skipped, reports.path, common=common)
    studies = [study for study in wanted if study.study_id in ids]
    if not studies:
        raise ValueError("no study is left to score: no id is in all files; give files of the same studies")
    left_out = len(wanted) - len(studies)
    texts = _known_texts(train, [study.report for study in studies], reports.half, protocol)
    references = ReferenceSet([study.report for study in studies], texts.vocabulary, plan.meteor, protocol)
    drafts = _drafts(predictions, studies)
    scored = score_drafts(studies, drafts, references, texts, plan, labels)
    if not predictions.retrieved and scored.entries["baseline_reasons"].get("nearest"):
        scored.entries["baseline_reasons"]["nearest"] = (
            f"{predictions.path.name} has no lists of case ids ({RETRIEVED})"
        )
    names = _names([predictions, *against])
    result = {
        **scored.entries,
        "system_name": names[0],
        "row_names": {"system": names[0]},
        "predictions": predictions.path.name,
        "dataset": reports.path.name,
        "split": reports.split,
        "bundle": None,
        "decoding": None,
        "limit": None,
        "selection": {"half": reports.half},
        "counts": {"in_split": len(reports.studies), "scored": len(studies), "skipped": len(skipped)},
        "skipped_studies": skipped,
        "not_run": scored.not_run,
        "notes": [*notes, *[f"--common: {left_out} studies that some file lacks are not scored"] * bool(left_out)],
        "n_beside": {},
        "against": {},
    }
    for name, other in zip(names[1:], against, strict=True):
        findings = [draft.findings for draft in _drafts(other, studies)]
        add_system(result, name, findings, [draft.findings for draft in drafts], references, texts, plan)
    if out is not None:
        write_atomic(out / ".gitignore", GITIGNORE.encode())
        write_json(out / "metrics.json", result)
        write_page(out, result, EvaluatedSplit(studies, drafts, None, references, texts.cases))
    return result


def read_reports(path: Path, split: str | None, half: Half | None = None) -> Reports:
    """Reports of a file of texts, or of one split of an annotation, or of a half of its val split.

    Raises:
        ValueError: ``split`` is missing, or given for a file without splits; ``half`` is given for another split.
    """
    if not is_annotation(path):
        if split is not None or half is not None:
            raise ValueError(f"{path} is no R2Gen annotation and has no splits; leave --split and --split-val out")
        texts = read_texts(path, REFERENCE_COLUMNS).texts
        return Reports(path, [Study(study, study_uid(study), None, text, ()) for study, text in texts.items()])
    splits = read_split_studies(path)
    scored = [name for name in splits if name != "train"]
    chosen = split or (scored[0] if len(scored) == 1 else None)
    if chosen not in splits:
        raise ValueError(f"{path} holds {', '.join(splits) or 'no study'}; name one: --split val or --split test")
    if half is not None and chosen != "val":
        raise ValueError(f"--split-val {half} is a half of val, and the split is {chosen}; leave one of them out")
    return Reports(path, half_of(splits[chosen], half), chosen, half)


def _known_texts(path: Path | None, references: Sequence[str], half: Half | None, protocol: Protocol) -> KnownTexts:
    """What the vocabulary, the trivial rows and the language rows come from; without it every word is kept."""
    if path is None:
        words = frozenset(word for report in references for word in protocol.clean(report).split())
        nothing = texts_of({}, [], origin="every word of the references; no --training-reports", chosen_on="",
                           protocol=protocol)  # fmt: skip
        return replace(nothing, vocabulary=words)
    train: Mapping[str, str]
    cases: Mapping[str, str] | None = None
    choose: list[str] = []
    if is_annotation(path):
        splits = read_split_studies(path)
        reports = [study for study in splits.get("train", ()) if study.report]
        train = {study.study_id: study.report for study in reports}
        cases = {study.case_id: study.report for study in reports}
        chooses = half_of(splits.get("val", ()), "choose" if half else None)
        choose = [study.report for study in chooses if study.report]
    else:
        train = read_texts(path, REFERENCE_COLUMNS).texts
    if not train:
        raise ValueError(f"{path} has no training report; give a file with some, or leave --training-reports out")
    check_letters(train.values(), f"the training reports {path}")
    part = "half that chooses of the val split" if half else "val split"
    return texts_of(train, choose, origin=f"{path.name}, {len(train)} training reports",
                    chosen_on=f"{part} of {path.name}, {len(choose)} reports", protocol=protocol,
                    cases=cases)  # fmt: skip


def _drafts(file: TextFile, studies: Sequence[Study]) -> list[Draft]:
    """The texts as drafts, with their reference cases by id."""
    return [
        Draft(
            file.texts[study.study_id], (), {},
            tuple(ReferenceCase(rank, case, float("nan"), None, {}, None)
                  for rank, case in enumerate(file.retrieved.get(study.study_id, ()), 1)),
            (), {},
        )
        for study in studies
    ]  # fmt: skip


def _names(files: Sequence[TextFile]) -> list[str]:
    """A name for each system: of its file, with the folder where two files have one name."""
    names = [file.path.stem.removesuffix(".predictions") for file in files]
    if len(set(names)) < len(names):
        names = [f"{file.path.resolve().parent.name}/{name}" for file, name in zip(files, names, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"two systems would both be called {names[0]}; rename a file")
    return names


# --- command line -----------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    meteor = arguments.meteor and meteor_available()
    reason = "no Java runtime (java) was found" if arguments.meteor else "--no-meteor"
    plan = ScoringPlan(meteor=meteor, external_scorers=True, reference_labels=arguments.reference_labels,
                       forte_keywords=arguments.forte_keywords and read_forte_keywords(arguments.forte_keywords),
                       draws=arguments.draws, seed=arguments.seed)  # fmt: skip
    result = score(
        read_texts(arguments.predictions, PREDICTION_COLUMNS),
        read_reports(arguments.references, arguments.split, arguments.split_val),
        arguments.training_reports, plan, arguments.out,
        against=[read_texts(path, PREDICTION_COLUMNS) for path in arguments.against], common=arguments.common,
        notes=() if meteor else (f"METEOR is left out: {reason}",), protocol=PROTOCOLS[arguments.protocol],
    )  # fmt: skip
    for note in result["notes"]:
        log.warning("%s", note)
    if arguments.out is not None:
        log.info("wrote %s and report.html (it holds report texts: do not share it)", arguments.out / "metrics.json")
    print(format_table(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.score``; returns the exit code."""
    parser = CommandParser(prog="python -m training.score", description="Score the texts of any system.")
    parser.add_argument("--predictions", type=Path, required=True,
                        help=f"JSON lines, JSON or CSV: id and one of {', '.join(PREDICTION_COLUMNS)}")  # fmt: skip
    parser.add_argument("--references", type=Path, required=True,
                        help=f"the same, one of {', '.join(REFERENCE_COLUMNS)}; or an R2Gen annotation")  # fmt: skip
    parser.add_argument("--split", choices=("val", "test"), help="of an annotation; needed where it has both")
    parser.add_argument("--split-val", choices=HALVES, help="of an annotation: only the half that chooses, or reports")
    parser.add_argument("--training-reports", type=Path,
                        help="reports or an annotation: vocabulary, trivial rows and language rows")  # fmt: skip
    parser.add_argument("--against", type=Path, action="append", default=[], metavar="OTHER",
                        help="texts of another system, for paired differences; repeatable")  # fmt: skip
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default=IU_XRAY.name,
                        help="cleaning, words and length of the comparable row (default %(default)s)")  # fmt: skip
    parser.add_argument("--common", action="store_true", help="score only the studies that all files have")
    parser.add_argument("--out", type=Path, help="folder for metrics.json, report.html and report.md")
    parser.add_argument("--reference-labels", type=Path, help="CSV study_id,finding,… : a second label F1")
    parser.add_argument("--forte-keywords", type=Path, metavar="FORTE_CXR.json", help="adds FORTE as published")
    parser.add_argument("--no-meteor", dest="meteor", action="store_false", help="leave METEOR out; it needs Java")
    parser.add_argument("--draws", type=not_negative, default=DRAWS, help="of bootstrap and permutations; 0: none")
    parser.add_argument("--seed", type=int, default=1, help="of the draws")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), interrupted="interrupted")


if __name__ == "__main__":
    raise SystemExit(main())
