"""The page of ``python -m benchmarks gpu``: one table per part, in the style of the evaluation's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.measure import show

STYLE = Path(__file__).parents[2] / "training/evaluation/page/page.css"
LEFT = "th, td { text-align: left; }"  # the tables hold words


def page(content: Mapping[str, Any]) -> str:
    """HTML of the content of ``gpu.json``; it loads nothing."""
    run, parts = content["run"], content["parts"]
    done = sum(part["state"] == "done" for part in parts.values())
    described = f"{run['device']}, PyTorch {run['torch']}, CUDA {run['cuda']}, Python {run['python']}"
    warning = '<p class="warning">Dry run on CPU: no figure here counts.</p>' if run["dry_run"] else ""
    sections = "\n".join(_section(name, part) for name, part in parts.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>cxr-report on a GPU</title>
<style>{STYLE.read_text(encoding="utf-8")}{LEFT}</style>
</head>
<body>
<header>
<h1>cxr-report on a GPU</h1>
<p class="soft">{escape(described)}. {done} of {len(parts)} parts measured.</p>
{warning}
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def _section(name: str, part: Mapping[str, Any]) -> str:
    lines = [f'<section id="{escape(name)}">', f"<h2>{escape(part['title'])}</h2>"]
    if part["state"] != "done":
        lines.append(f'<p class="warning">{escape(part["state"])}: {escape(part["error"])}</p>')
    else:
        peak = part.get("peak_bytes")
        memory = f", peak memory on the device {show(peak, 'bytes')}" if peak else ""
        lines += [_table(part["head"], part["rows"]), *(f"<p>{escape(note)}</p>" for note in part["notes"])]
        lines.append(f'<p class="soft">{part["seconds"]:.0f} s in all{memory}.</p>')
    return "\n".join([*lines, "</section>"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>'
