"""Writes the Markdown table of all settings: ``python -m tools.settings_docs [--into docs/api.md]``."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from model.files import write_atomic
from service.settings import ENV_PREFIX, Settings

BEGIN, END = "<!-- settings", "<!-- end of settings -->"
_BETWEEN = re.compile(rf"({BEGIN}[^\n]*-->\n).*?(\n{END})", re.DOTALL)
_DEFAULTS = {"bundle": "bundles/iu-xray"}  # the real default is an absolute path of this machine


def descriptions() -> dict[str, str]:
    """Setting -> its description: that of the field, or else its entry under Attributes in the docstring."""
    documented = inspect.getdoc(Settings) or ""
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", documented.partition("Attributes:\n")[2], re.MULTILINE)
    described = {name: " ".join(text.replace("``", "`").split()) for name, text in entries}
    return {name: field.description or described.get(name, "") for name, field in Settings.model_fields.items()}


def table() -> str:
    """A Markdown table (variable, default, allowed values, meaning) with one row per setting."""
    schemas = Settings.model_json_schema(by_alias=False)["properties"]
    rows = ["| variable | default | allowed | |", "|---|---|---|---|"]
    for name, meaning in descriptions().items():
        allowed = _allowed(schemas[name]).replace("|", "\\|")
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {_default(name)} | {allowed} | {meaning} |")
    return "\n".join(rows)


def put_into(document: str) -> str:
    """The document with the current table between its markers.

    Raises:
        ValueError: the pair of markers does not occur exactly once.
    """
    replaced, count = _BETWEEN.subn(lambda found: f"{found[1]}{table()}{found[2]}", document)
    if count != 1:
        raise ValueError(f"{BEGIN} … --> and {END} occur {count} times in the document; they must occur once")
    return replaced


def _default(name: str) -> str:
    value = _DEFAULTS.get(name, Settings.model_fields[name].default)
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "boolean":
        return "`true`, `false`"
    least, above, most = (schema.get(bound) for bound in ("minimum", "exclusiveMinimum", "maximum"))
    bounds = [f"above {above:.12g}" if above is not None else "" if least is None else f"{least:.12g}"]
    bounds.append("" if most is None else f"to {most:.12g}")
    return " ".join(filter(None, bounds))


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or write it into a document. Exit status 1: the document has no markers."""
    parser = argparse.ArgumentParser(prog="python -m tools.settings_docs", description=__doc__)
    parser.add_argument("--into", type=Path, help="replace the table between the markers of this Markdown file")
    into: Path | None = parser.parse_args(arguments).into
    if into is None:
        print(table())
        return 0
    try:
        write_atomic(into, put_into(into.read_text(encoding="utf-8")).encode())
    except (OSError, ValueError) as error:
        parser.exit(1, f"{into}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
