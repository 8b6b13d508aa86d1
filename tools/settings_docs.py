"""Writes the Markdown tables of settings and image limits: ``python -m tools.settings_docs [--into docs/api.md]``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any

from pydantic_settings import BaseSettings

from model.images import DEFAULT_LIMITS, ImageLimits
from service.pacs import node_settings
from service.settings import ENV_PREFIX, Settings
from tools import markdown

_DEFAULTS = {"bundle": "bundles/iu-xray"}  # the real default is an absolute path of this machine


def attributes(documented: type) -> dict[str, str]:
    """Attribute -> its entry under Attributes in the docstring of a class."""
    text = (inspect.getdoc(documented) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(entry.replace("``", "`").split()) for name, entry in entries}


def descriptions(settings: type[BaseSettings] = Settings) -> dict[str, str]:
    """Setting -> its description: that of the field, or else that of the docstring."""
    described = attributes(settings)
    return {name: field.description or described.get(name, "") for name, field in settings.model_fields.items()}


def image_limits() -> str:
    """A Markdown table (limit, value, meaning) of ``ImageLimits``."""
    values = dataclasses.asdict(DEFAULT_LIMITS)
    rows = [(f"`{name}`", f"{values[name]:,}", meaning) for name, meaning in attributes(ImageLimits).items()]
    return markdown.table(("limit", "value", "meaning"), rows)


def table(settings: type[BaseSettings] = Settings, prefix: str = ENV_PREFIX) -> str:
    """A Markdown table (variable, default, allowed values, meaning) with one row per setting."""
    schemas = settings.model_json_schema(by_alias=False)["properties"]
    rows = [
        (f"`{prefix}{name.upper()}`", _default(settings, name), _allowed(schemas[name]), meaning)
        for name, meaning in descriptions(settings).items()
    ]
    return markdown.table(("variable", "default", "allowed", "meaning"), rows)


def _default(settings: type[BaseSettings], name: str) -> str:
    field = settings.model_fields[name]
    if field.is_required():
        return "required"
    value = _DEFAULTS.get(name, field.default)
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "boolean":
        return "`true`, `false`"
    least, above, most = (schema.get(bound) for bound in ("minimum", "exclusiveMinimum", "maximum"))
    bounds = [f"above {above:.15g}" if above is not None else "" if least is None else f"{least:.15g}"]
    bounds.append("" if most is None else f"to {most:.15g}")
    return " ".join(filter(None, bounds))


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, or write them into a document."""
    node = table(node_settings.NodeSettings, node_settings.ENV_PREFIX)
    tables = {"settings": table(), "node-settings": node, "image-limits": image_limits()}
    return markdown.run("tools.settings_docs", __doc__, tables, arguments)


if __name__ == "__main__":
    sys.exit(main())
