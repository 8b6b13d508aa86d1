"""Reads files of texts by study: JSON lines, a JSON list or mapping, CSV, and annotations in the R2Gen layout."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.r2gen import read_annotation, study_of
from training.data.studies import SPLITS, Study, named

log = logging.getLogger("training")

ID_COLUMNS = ("id", "study_id", "image_id", "case_id", "uid")
PREDICTION_COLUMNS = ("text", "findings", "prediction", "hypothesis", "generated", "report")
REFERENCE_COLUMNS = ("text", "report", "reference_full", "reference", "ground_truth", "findings")
RETRIEVED = "retrieved"  # optional: ids of training reports, nearest first, as training.evaluate writes them


@dataclass(frozen=True)
class TextFile:
    """Texts by study id, in the order of the file; ``retrieved`` has the ids of reference cases, where given."""

    path: Path
    texts: Mapping[str, str]
    retrieved: Mapping[str, Sequence[str]]


def read_texts(path: Path, columns: Sequence[str]) -> TextFile:
    """Read one text a study; the id is the first of ``ID_COLUMNS`` in the file, the text the first of ``columns``.

    Raises:
        ValueError: no such file, a missing or wrong column, no text, or an id that occurs twice.
    """
    texts: dict[str, str] = {}
    retrieved: dict[str, Sequence[str]] = {}
    twice: dict[str, None] = {}
    keys: tuple[str, str] | None = None
    for where, row in _rows(path, _content(path)):
        if keys is None:
            keys = _column(where, row, ID_COLUMNS, "id"), _column(where, row, columns, "text")
            if others := [name for name in columns if name in row and name != keys[1]]:
                log.info("%s: the column %s is the text (not %s)", path, keys[1], ", ".join(others))
        study, text = row.get(keys[0]), row.get(keys[1])
        if isinstance(study, bool) or not isinstance(study, str | int) or not str(study).strip():
            raise ValueError(f"{where}: {keys[0]} is {study!r}; give each row the id of its study")
        if not isinstance(text, str):
            raise ValueError(f'{where}: {keys[1]} of study {study} is no text; write "" for a study without text')
        study = str(study).strip()
        if study in texts:
            twice[study] = None
        texts[study] = text
        if isinstance(row.get(RETRIEVED), list):
            retrieved[study] = [str(case) for case in row[RETRIEVED]]
    if twice:
        raise ValueError(f"{path}: {named(list(twice), 'ids occur more than once', 5)}; keep one row for each study")
    if not texts:
        raise ValueError(f"{path} holds no text; it needs a row for each study, with the columns id and text")
    return TextFile(path, texts, retrieved)


def is_annotation(path: Path) -> bool:
    """Whether a file is an annotation in the R2Gen layout: an object with lists by split."""
    try:
        content = json.loads(_content(path))
    except ValueError:
        return False
    return isinstance(content, dict) and bool(content) and set(content) <= set(SPLITS)


def read_split_studies(path: Path) -> dict[str, list[Study]]:
    """Studies of an annotation by split, without images; a split without studies is left out."""
    found: dict[str, list[Study]] = {}
    for split, entry in read_annotation(path):
        found.setdefault(split, []).append(study_of(entry, split, ()))
    return found


def aligned(
    predictions: TextFile, wanted: Sequence[str], skipped: Collection[str], references: Path, *, common: bool
) -> set[str]:
    """The ids to score: those of ``wanted``, the references; texts for ``skipped`` ones are not read.

    Raises:
        ValueError: the ids of both differ and ``common`` is not set, or no id is in both.
    """
    missing = [study for study in wanted if study not in predictions.texts]
    extra = sorted(predictions.texts.keys() - set(wanted) - set(skipped))
    if len(missing) == len(wanted):
        raise ValueError(
            f"no id of {predictions.path} is in {references}: ids such as {next(iter(predictions.texts))!r} there, "
            f"{missing[0]!r} here; write the ids of the references"
        )
    if (missing or extra) and not common:
        parts = [named(missing, f"studies of {references} have no text in it", 5)] * bool(missing)
        parts += [named(extra, f"of its ids are not in {references}", 5)] * bool(extra)
        raise ValueError(
            f'{predictions.path}: {"; ".join(parts)}. Add the missing studies (with the text "" where the system '
            "wrote none) and remove the others, or score the studies that all files have with --common"
        )
    return set(wanted) - set(missing)


def _content(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _rows(path: Path, content: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its position for messages."""
    start = content.lstrip()[:1]
    if path.suffix.lower() == ".csv" or start not in ("[", "{"):
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        try:
            yield from _csv_rows(path, reader)
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}; quote the texts, or write JSON lines") from error
        return
    whole: Any = None
    try:
        whole = json.loads(content)
    except ValueError as error:
        if start == "[":
            raise ValueError(f"{path} is not valid JSON: {error}") from error
    if isinstance(whole, dict) and not any(name in whole for name in ID_COLUMNS):
        rows: Sequence[Any] = [{"id": study, "text": text} for study, text in whole.items()]
    elif isinstance(whole, dict | list):
        rows = whole if isinstance(whole, list) else [whole]
    else:
        yield from _json_lines(path, content)
        return
    for number, row in enumerate(rows, 1):
        yield f"{path}, entry {number}", _checked(row, f"{path}, entry {number}")


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows by column; in one column without a header, as R2Gen writes res.csv and gts.csv, row numbers are ids."""
    head = [name.strip() for name in next(reader, [])]
    if len(head) == 1 and set(re.split(r"[;\t]", head[0])[:-1]) & set(ID_COLUMNS):
        raise ValueError(f"{path}:1: the header {head[0]!r} is one column; separate columns by commas")
    if len(head) == 1 and head[0] not in (*ID_COLUMNS, *PREDICTION_COLUMNS, *REFERENCE_COLUMNS):
        log.info("%s has one column and no header: the ids are the numbers of its rows", path)
        texts = [head[0]]
        for row in reader:
            _check_width(path, reader, row, head)
            texts.append(row[0] if row else "")
        yield from ((f"{path}, row {row}", {"id": f"row {row}", "text": text}) for row, text in enumerate(texts, 1))
        return
    for row in reader:
        if row:
            _check_width(path, reader, row, head)
            yield f"{path}:{reader.line_num}", dict(zip(head, row, strict=False))


def _check_width(path: Path, reader: Any, row: Sequence[str], head: Sequence[str]) -> None:
    """Raise ValueError for a row with more cells than columns: a text with commas that is not quoted would be cut."""
    if len(row) > len(head):
        raise ValueError(f"{path}:{reader.line_num} has {len(row)} cells for {len(head)} columns; put texts with "
                         "commas in double quotes")  # fmt: skip


def _json_lines(path: Path, content: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not valid JSON: {error}") from error
            yield f"{path}:{number}", _checked(row, f"{path}:{number}")


def _checked(row: object, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no JSON object; write one object a study, with id and text")
    return row


def _column(where: str, row: Mapping[str, Any], accepted: Sequence[str], what: str) -> str:
    for name in accepted:
        if name in row:
            return name
    found = ", ".join(name[:20] for name in row) or "nothing"  # a file without a header may begin with a report
    raise ValueError(f"{where}: no column for the {what}; name it {' or '.join(accepted)} (found: {found})")
