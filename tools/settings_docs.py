"""Writes the Markdown table of all settings: ``python -m tools.settings_docs [--into docs/api.md]``."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from service.settings import ENV_PREFIX, Settings
from tools import markdown

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
    rows = [
        (f"`{ENV_PREFIX}{name.upper()}`", _default(name), _allowed(schemas[name]), meaning)
        for name, meaning in descriptions().items()
    ]
    return markdown.table(("variable", "default", "allowed", "meaning"), rows)


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
    """Print the table, or write it into a document."""
    return markdown.run("tools.settings_docs", __doc__, {"settings": table()}, arguments)


if __name__ == "__main__":
    sys.exit(main())
