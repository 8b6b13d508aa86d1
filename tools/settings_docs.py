"""Writes the Markdown tables of settings and image limits: ``python -m tools.settings_docs [--into docs/api.md]``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any

from model.images import DEFAULT_LIMITS, ImageLimits
from service.settings import ENV_PREFIX, Settings
from tools import markdown

_DEFAULTS = {"bundle": "bundles/iu-xray"}  # the real default is an absolute path of this machine


def attributes(documented: type) -> dict[str, str]:
    """Attribute -> its entry under Attributes in the docstring of a class."""
    text = (inspect.getdoc(documented) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(entry.replace("``", "`").split()) for name, entry in entries}


def descriptions() -> dict[str, str]:
    """Setting -> its description: that of the field, or else that of the docstring."""
    described = attributes(Settings)
    return {name: field.description or described.get(name, "") for name, field in Settings.model_fields.items()}


def image_limits() -> str:
    """A Markdown table (limit, value, meaning) of ``ImageLimits``."""
    values = dataclasses.asdict(DEFAULT_LIMITS)
    rows = [(f"`{name}`", f"{values[name]:,}", meaning) for name, meaning in attributes(ImageLimits).items()]
    return markdown.table(("limit", "value", "meaning"), rows)


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
    """Print the tables, or write them into a document."""
    tables = {"settings": table(), "image-limits": image_limits()}
    return markdown.run("tools.settings_docs", __doc__, tables, arguments)


if __name__ == "__main__":
    sys.exit(main())
