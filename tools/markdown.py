"""Generated tables in Markdown documents, between ``<!-- generated: NAME -->`` and ``<!-- end of generated -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.command_line import CommandParser
from model.files import write_atomic

END = "<!-- end of generated -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table without blanks around cells, so that word counts count words; ``|`` in cells is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(cell.replace("|", "\\|") for cell in line) + "|" for line in lines)


def replace_tables(document: str, tables: Mapping[str, str]) -> str:
    """The document with each table between its markers.

    Raises:
        ValueError: a table's markers do not occur exactly once.
    """
    for name, text in tables.items():
        begin = f"<!-- generated: {name} -->"
        pattern = re.compile(rf"{re.escape(begin)}\n.*?{END}", re.DOTALL)
        block = f"{begin}\n{text}\n{END}"
        document, count = pattern.subn(block.replace("\\", r"\\"), document)
        if count != 1:
            raise ValueError(f"{begin} with {END} occurs {count} times in the document; it must occur once")
    return document


def run(module: str, description: str | None, tables: Mapping[str, str], arguments: Sequence[str] | None) -> int:
    """A command that prints tables or writes them into a document. Exit status 1: the document lacks a marker."""
    parser = CommandParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--into", type=Path, help="replace the generated tables in this Markdown file")
    into: Path | None = parser.parse_args(arguments).into
    if into is None:
        print("\n\n".join(tables.values()))
        return 0
    try:
        write_atomic(into, replace_tables(into.read_text(encoding="utf-8"), tables).encode())
    except (OSError, ValueError) as error:
        parser.exit(1, f"{into}: {error}\n")
    return 0
