"""Writes the generated tables of the API guide: ``python -m tools.api_docs [--into docs/api.md]``.

The tables come from the OpenAPI description and from the tables of problem codes and image warnings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.calibration.ood import WARNINGS as CHECK_WARNINGS
from model.images.dicom.header import WARNINGS as HEADER_WARNINGS
from service.app import create_app
from service.settings import Settings
from service.web.problems import CODES
from tools.markdown import run, table


def tables() -> dict[str, str]:
    """Name of a generated block -> its Markdown table."""
    document = create_app(Settings(bundle=Path("none"), device="cpu")).openapi()
    warnings = {**CHECK_WARNINGS, **HEADER_WARNINGS}
    return {
        "endpoints": table(("endpoint", "purpose"), _endpoints(document)),
        "report fields": table(("field", "type", "meaning"), _fields(document)),
        "report answer": table(("member", "meaning"), _members(document, "ReportResponse")),
        "image warnings": table(("warning", "meaning"), [(f"`{code}`", when) for code, when in warnings.items()]),
        "problems": table(("status", "codes"), _problems()),
    }


def _endpoints(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"`{method.upper()} {path}`", operation["summary"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _fields(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    body = document["paths"]["/report"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    properties = _resolved(document, body)["properties"]
    return [(f"`{name}`", _kind(field), field.get("description", "")) for name, field in properties.items()]


def _kind(field: Mapping[str, Any]) -> str:
    """What a form field may hold, in a few words."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    field = {**field, **options[0]}
    if field.get("format") == "binary" or "contentMediaType" in field:
        return "file"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum") or [field["const"]])
    if field.get("type") == "boolean":
        return "`true`, `false`"
    if "minimum" in field:
        return f"{field['minimum']:.12g} to {field['maximum']:.12g}"
    return str(field.get("type", ""))


def _members(document: Mapping[str, Any], name: str, prefix: str = "") -> list[tuple[str, str]]:
    """The described members of a schema, nested ones by their path (``sentences[].confidence``), each schema once."""
    rows: list[tuple[str, str]] = []
    described: set[str] = set()

    def describe(name: str, prefix: str) -> None:
        described.add(name)
        for member, schema in document["components"]["schemas"][name]["properties"].items():
            if "description" in schema:
                rows.append((f"`{prefix}{member}`", schema["description"]))
            for nested, suffix in _references(schema):
                if nested not in described:
                    describe(nested, f"{prefix}{member}{suffix}.")

    describe(name, prefix)
    return rows


def _references(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for option in [schema, *schema.get("anyOf", [])]:
        if "$ref" in option:
            yield option["$ref"].rpartition("/")[2], ""
        elif "$ref" in option.get("items", {}):
            yield option["items"]["$ref"].rpartition("/")[2], "[]"


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def _problems() -> list[tuple[str, str]]:
    codes = {status: [code for code, (of, _) in CODES.items() if of == status] for status, _ in CODES.values()}
    return [(str(status), ", ".join(f"`{code}`" for code in codes[status])) for status in sorted(codes)]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, or write them into a document."""
    return run("tools.api_docs", __doc__, tables(), arguments)


if __name__ == "__main__":
    sys.exit(main())
