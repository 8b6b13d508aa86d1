"""Writes the page: ``report.html`` is self-contained, ``report.md`` links to image files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model.files import write_atomic
from training.evaluation.metric_tables import all_tables, tiles
from training.evaluation.page.gallery import EvaluatedSplit, gallery
from training.evaluation.privacy import GITIGNORE, check_page_folder
from training.evaluation.rows import COUNTERFACTUAL, data_of, made
from training.evaluation.tables import Table, number, title

_TEMPLATES = Path(__file__).parent
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~<>&])")


def write_page(folder: Path, result: Mapping[str, Any], drafted: EvaluatedSplit) -> None:
    """Write ``report.html``, ``report.md``, ``plots/``, ``images/`` and a ``.gitignore`` into ``folder``.

    ``result`` is the content of the metrics file. Raises as ``check_page_folder``.
    """
    from training.evaluation.page.plots import all_plots  # imports Matplotlib

    check_page_folder(folder)
    write_atomic(folder / ".gitignore", GITIGNORE.encode())
    plots, groups = all_plots(result, drafted), gallery(drafted)
    pictures = {f"plots/{plot.name}.png": plot.png for plot in plots.values()}
    for shown in (study for studies in groups.values() for study in studies):
        pictures |= {f"images/{picture.name}": picture.png for picture in shown["pictures"]}
    for name, png in pictures.items():
        write_atomic(folder / name, png)
    for old in (*folder.glob("images/*.png"), *folder.glob("plots/*.png")):
        if old.relative_to(folder).as_posix() not in pictures:
            old.unlink()
    content = {
        "result": result,
        "tiles": tiles(result),
        "tables": all_tables(result),
        "plots": plots,
        "gallery": groups,
        "heading": heading(result),
        "subject": "This bundle" if result["bundle"] else "This system",
        "exchanged": made(result, COUNTERFACTUAL),
        "image_size": drafted.cache.size if drafted.cache else None,
        "css": Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
    }
    for name, template, markdown in (("report.md", "page.md", True), ("report.html", "page.html", False)):
        page = _environment(markdown=markdown).get_template(template).render(content)
        write_atomic(folder / name, page.encode())


def heading(result: Mapping[str, Any]) -> str:
    """The title of the page."""
    if result["bundle"]:
        return f"{result['bundle']['name']} on the {data_of(result)}"
    return " against ".join([result["system_name"], *result["against"]]) + f" on {data_of(result)}"


def _environment(*, markdown: bool) -> Environment:
    """Every value is escaped: by jinja2's autoescape in HTML, by ``_escaped`` in Markdown."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=not markdown, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=markdown, finalize=_escaped if markdown else None,
    )  # fmt: skip
    environment.filters |= {"number": number, "title_of": title, "safe_svg": Markup, "path": Markup, "grid": _grid}
    return environment


def _escaped(value: object) -> object:
    """Strings as one line of plain text, without Markdown or HTML."""
    return _plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _plain(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _grid(table: Table) -> Markup:
    return Markup(table.markdown(_plain))
