"""The table of all settings, made from ``Settings``: ``python -m service.settings [--into docs/api.md]``."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from model.files import write_atomic
from service.settings import ENV_PREFIX, Settings

BEGIN, END = "<!-- settings: python -m service.settings --into docs/api.md -->", "<!-- end of settings -->"
_BETWEEN = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)
_SHOWN_DEFAULT = {"bundle": "bundles/iu-xray"}  # its default is looked for where the service is started


def descriptions() -> dict[str, str]:
    """Setting -> its sentence: the field's own description, else its entry under Attributes in the docstring."""
    documented = inspect.getdoc(Settings) or ""
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", documented.partition("Attributes:\n")[2], re.MULTILINE)
    told = {name: " ".join(text.replace("``", "`").split()) for name, text in entries}
    return {name: field.description or told.get(name, "") for name, field in Settings.model_fields.items()}


def table() -> str:
    """Markdown: variable, default, allowed values, meaning; one row a setting, in the order of ``Settings``."""
    schemas = Settings.model_json_schema(by_alias=False)["properties"]
    rows = ["| variable | default | allowed | |", "|---|---|---|---|"]
    for name, meaning in descriptions().items():
        allowed = _allowed(schemas[name]).replace("|", "\\|")
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {_default(name)} | {allowed} | {meaning} |")
    return "\n".join(rows)


def put_into(document: str) -> str:
    """A document with the table of today between its markers.

    Raises:
        ValueError: it does not have the markers, once.
    """
    replaced, count = _BETWEEN.subn(lambda _: f"{BEGIN}\n{table()}\n{END}", document)
    if count != 1:
        raise ValueError(f"the document should hold {BEGIN!r} and {END!r} once; it does {count} times")
    return replaced


def _default(name: str) -> str:
    value = _SHOWN_DEFAULT.get(name, Settings.model_fields[name].default)
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
    """Print the table, or put it into a document. Returns 0; 1: the document cannot hold it."""
    parser = argparse.ArgumentParser(prog="python -m service.settings", description=__doc__)
    parser.add_argument("--into", type=Path, help="rewrite the table between the markers of this Markdown file")
    into: Path | None = parser.parse_args(arguments).into
    if into is None:
        print(table())
        return 0
    try:
        write_atomic(into, put_into(into.read_text(encoding="utf-8")).encode())
    except (OSError, ValueError) as error:
        parser.exit(1, f"{into}: {error}\n")
    return 0
