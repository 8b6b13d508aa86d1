"""The tables of the page, from the content of a metrics file: every cell a string, for HTML and Markdown alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.counterfactuals import full_name
from training.scoring.keyword_f1 import AVERAGE, KEY_WORDS
from training.scoring.metrics import METRICS
from training.scoring.permutation import MEASURES

TITLES = {
    "BLEU_1": "BLEU-1", "BLEU_2": "BLEU-2", "BLEU_3": "BLEU-3", "BLEU_4": "BLEU-4", "ROUGE_L": "ROUGE-L",
    "label_f1_micro": "label F1 (micro)", "label_f1_macro": "label F1 (macro)", "no_finding_f1": "No Finding F1",
    "mean_length": "mean length",
}  # fmt: skip
ROWS = {
    "system": "this bundle",
    "system_images_exchanged": "images exchanged",
    "system_cases_exchanged": "only cases exchanged",
    "system_patches_exchanged": "only patch tokens exchanged",
    "system_frontal_only": "frontal only",
    "system_lateral_only": "lateral only",
    "constant": "one constant report",
    "most_frequent": "most frequent report",
    "random": "random report",
    "nearest": "nearest case's report",
}
COUNTERFACTUAL = ("system_images_exchanged", "system_cases_exchanged", "system_patches_exchanged")
SINGLE_VIEW = ("system_frontal_only", "system_lateral_only")
TESTED = ("BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro")
_NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; ``head`` names all columns."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def title(metric: str) -> str:
    """A figure as people write it."""
    return TITLES.get(metric, metric)


def figure(value: float | None, digits: int = 3) -> str:
    """.376, 1.204, −.012, 27.3 (from ten on, one digit); a dash for None."""
    if value is None:
        return _NONE
    text = f"{value:.{1 if abs(value) >= 10 else digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", text).replace("-", "−")


def interval(ends: Sequence[float] | None) -> str:
    """``.24 to .54``; empty for None."""
    return "" if ends is None else f"{figure(ends[0])} to {figure(ends[1])}"


def ends_of(result: Mapping[str, Any], row: str, metric: str) -> Sequence[float] | None:
    """Interval of a figure of a comparable row, where studies were drawn."""
    known = result["confidence_95"]
    entries = known.get(row) or known.get("baselines", {}).get(row) or {}
    found: Sequence[float] | None = entries.get(metric)
    return found


def figures_of(result: Mapping[str, Any], row: str) -> Mapping[str, float | None] | None:
    """Figures of a comparable row; None where it was not made."""
    found: Mapping[str, float | None] | None = result[row] if row in result else result["baselines"].get(row)
    return found


def made(result: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Those of the rows that were made."""
    return [row for row in rows if figures_of(result, row) is not None]


def tiles(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures that stand on top, each with its interval and the constant row's."""
    constant = result["baselines"].get("constant") or {}
    shown = []
    for metric in ("CIDEr", "label_f1_micro", "BLEU_4", "ROUGE_L", "distinct", "mean_length"):
        against = result["system_minus"].get("constant", {}).get(metric)
        shown.append({
            "name": title(metric),
            "value": figure(result["system"][metric]),
            "interval": interval(ends_of(result, "system", metric)),
            "constant": figure(constant[metric]) if constant else "",
            "p": f"p {figure(against['p'])}" if against and metric in TESTED else "",
        })  # fmt: skip
    return shown


def all_tables(result: Mapping[str, Any]) -> dict[str, Table | None]:
    """Every table of the page by name; None for one that this evaluation has nothing for."""
    return {
        "comparable": _scores(result, full=False),
        "full": _scores(result, full=True),
        "differences": _differences(result),
        "counterfactual": _counterfactual(result),
        "single_views": _single_views(result),
        "labels": _labels(result),
        "key_words": _key_words(result["forte"]),
        "key_words_without_negated": _key_words(result["forte_without_negated"]),
        "key_words_system": _key_words_of_system(result),
        "reference_labels": _reference_labels(result),
        "clinical": _clinical(result),
        "decoding": Table(("", ""), list(_setting(result["decoding"]))),
        "run": Table(("", ""), list(_run(result))),
    }


def _scores(result: Mapping[str, Any], *, full: bool) -> Table:
    head = ["reports", *map(title, METRICS)]
    rows = []
    for row in ("system", *result["n_beside"], *result["baselines"]):
        if row in result["baselines"]:
            figures = result["baselines_full" if full else "baselines"][row]
        else:
            figures = result[full_name(row) if row != "system" else "system_full"] if full else result[row]
        if figures is not None:
            rows.append([_named(result, row), *(figure(figures[metric]) for metric in METRICS)])
    return Table(head, rows)


def _named(result: Mapping[str, Any], row: str) -> str:
    n = result["n_beside"].get(row, result["n"])
    return ROWS[row] if n == result["n"] else f"{ROWS[row]} (n = {n})"


def _differences(result: Mapping[str, Any]) -> Table | None:
    if not result["system_minus"]:
        return None
    rows = [
        [f"− {_named(result, row)}", *(_difference(entry[metric]) for metric in TESTED)]
        for row, entry in result["system_minus"].items()
    ]
    return Table(["this bundle", *map(title, TESTED)], rows)


def _difference(entry: Mapping[str, Any]) -> str:
    value = entry["difference"]
    sign = "+" if value >= 0 else ""
    return (
        f"{sign}{figure(value)} ({_unbroken(interval(entry['confidence_95']))}), {_unbroken('p ' + figure(entry['p']))}"
    )


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _with_interval(result: Mapping[str, Any], row: str, metric: str) -> str:
    found = figures_of(result, row)
    ends = interval(ends_of(result, row, metric))
    return figure(found[metric] if found else None) + (f" ({_unbroken(ends)})" if ends else "")


def _counterfactual(result: Mapping[str, Any]) -> Table | None:
    rows = made(result, COUNTERFACTUAL)
    if not rows:
        return None
    shown = [
        [
            ROWS[row],
            *(_with_interval(result, row, metric) for metric in ("BLEU_4", *MEASURES)),
            _beside_random(result, row),
        ]
        for row in ("system", *rows)
    ]
    if (dealt := result["by_chance"]) is not None:
        means = (f"{figure(entry['mean'])} ({_unbroken(interval(entry['interval_95']))})" for entry in dealt.values())
        shown.append(["the bundle's drafts, dealt out anew", _NONE, *means, ""])
    for row in made(result, ("random",)):
        shown.append([ROWS[row], *(_with_interval(result, row, metric) for metric in ("BLEU_4", *MEASURES)), ""])
    head = ["reports", *map(title, ("BLEU_4", *MEASURES)), "beside the random row"]
    return Table(head, shown)


def _beside_random(result: Mapping[str, Any], row: str) -> str:
    """Whether the figures that should fall with exchanged images lie within the random row's intervals, or above."""
    parts = []
    for metric in MEASURES:
        ends, found = ends_of(result, "random", metric), figures_of(result, row)
        if ends is None or found is None or found[metric] is None:
            return _NONE
        value = found[metric] or 0.0
        place = "above" if value > ends[1] else "below" if value < ends[0] else "within"
        parts.append(f"{title(metric)} {place}")
    return ", ".join(parts)


def _single_views(result: Mapping[str, Any]) -> Table | None:
    rows = made(result, SINGLE_VIEW)
    if not rows:
        return None
    shown = [
        [ROWS[row], str(result["n_beside"].get(row, result["n"])),
         *(_with_interval(result, row, metric) for metric in TESTED)]
        for row in ("system", *rows)
    ]  # fmt: skip
    return Table(["images", "studies", *map(title, TESTED)], shown)


def _labels(result: Mapping[str, Any]) -> Table:
    """Most frequent finding first; a dash where nobody named it on the side that a figure divides by."""
    rows = []
    for name, row in by_prevalence(result):
        reported, drafted = row["prevalence"], row["predicted"]
        parts = (row["precision"] if drafted else None, row["recall"] if reported else None,
                 row["f1"] if reported or drafted else None)  # fmt: skip
        rows.append([name, *map(figure, (reported, drafted, *parts))])
    return Table(["finding", "in reports", "in drafts", "precision", "recall", "F1"], rows)


def by_prevalence(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """The findings with their figures, those that most reports name first."""
    return sorted(result["labels"]["system"].items(), key=lambda item: (-item[1]["prevalence"], item[0]))


def _key_words(table: Mapping[str, Any]) -> Table:
    rows = {**{name: row for name, row in table.items() if name != "baselines"}, **table["baselines"]}
    categories = (*KEY_WORDS, AVERAGE)
    shown = [[ROWS[name], *(figure(row[c]["f1"]) for c in categories)] for name, row in rows.items() if row]
    return Table(["reports", *categories], shown)


def _key_words_of_system(result: Mapping[str, Any]) -> Table:
    rows = []
    for category in (*KEY_WORDS, AVERAGE):
        cells = []
        for key in ("forte", "forte_without_negated"):
            row = result[key]["system"][category]
            cells += [figure(row[name]) for name in ("precision", "recall", "f1")] + [f"{row['support']:.0f}"]
        rows.append([category, *cells])
    part = ("precision", "recall", "F1", "in reports")
    return Table(["category", *part, *(f"{name} *" for name in part)], rows)


def _reference_labels(result: Mapping[str, Any]) -> Table | None:
    table = result.get("reference_labels")
    if table is None:
        return None
    columns = ("label_f1_micro", "label_f1_macro", "no_finding_f1")
    rows = {"labeler on the references": table["labeler_on_references"], ROWS["system"]: table["system"]}
    rows |= {ROWS[name]: row for name, row in table["baselines"].items()}
    shown = [[name, *(figure(row[column]) for column in columns)] for name, row in rows.items()]
    return Table([f"reports against {table['table']} (n = {table['n']})", *map(title, columns)], shown)


def _clinical(result: Mapping[str, Any]) -> Table | None:
    rows = [
        [scorer, ROWS[name], measure, figure(value)]
        for scorer, table in (result.get("clinical") or {}).items()
        if table is not None
        for name, row in {"system": table["system"], **table["baselines"]}.items()
        for measure, value in row.items()
    ]
    return Table(["scorer", "reports", "measure", "figure"], rows) if rows else None


def _setting(values: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in values.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else str(value)
        yield [name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else shown]


def _run(result: Mapping[str, Any]) -> Iterator[list[str]]:
    counts = result["counts"]
    yield ["bundle", f"{result['bundle']['name']}, digest {result['bundle']['digest']}"]
    yield ["data", f"{result['dataset']}, {result['split']} split; views: {result['views']}"]
    yield ["studies", f"{counts['scored']} scored of {counts['in_split']}, {counts['skipped']} skipped"]
    yield ["images", f"{counts['images']} used, {counts['images_skipped']} not readable"]
    yield ["protocol", result["protocol"]]
    yield ["vocabulary", f"{result['vocabulary']['words']} words, {result['vocabulary']['from']}"]
    yield ["constant chosen on", result["constant_chosen_on"] or _NONE]
    yield ["seed, draws", f"{result['seed']}, {result['confidence_95'].get('draws', 'none')}"]
    yield ["computed", f"on {result['device']} in {result['precision']}"]
