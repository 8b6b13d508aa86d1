"""The tables of one evaluation, from the content of its metrics file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.evaluation.annotation_tables import agreement_by_row, errors_of_system
from training.evaluation.rows import (
    COUNTERFACTUAL,
    KEYWORD_F1,
    SINGLE_VIEW,
    data_of,
    ends_of,
    full_name,
    keyword_table,
    made,
    row_title,
    scores_of,
)
from training.evaluation.tables import NO_VALUE, Table, interval, number, title, unbroken, with_ends
from training.scoring.keyword_f1 import AVERAGE, KEY_WORDS
from training.scoring.metrics import METRICS
from training.scoring.permutation_across_studies import MEASURES

TESTED = ("BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro")


def tiles(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The headline metrics, each with its interval and the value of the constant row."""
    constant = result["baselines"].get("constant") or {}
    shown = []
    for metric in ("CIDEr", "label_f1_micro", "BLEU_4", "ROUGE_L", "distinct", "mean_length"):
        against = result["system_minus"].get("constant", {}).get(metric)
        shown.append({
            "name": title(metric),
            "value": number(result["system"][metric]),
            "interval": interval(ends_of(result, "system", metric)),
            "constant": number(constant[metric]) if constant else "",
            "p": f"p {number(against['p'])}" if against and metric in TESTED else "",
        })  # fmt: skip
    return shown


def all_tables(result: Mapping[str, Any]) -> dict[str, Table | None]:
    """Every table of the page by name; None for a table without content."""
    return {
        "comparable": _scores(result, full=False),
        "full": _scores(result, full=True),
        "differences": _differences(result),
        "paired": _paired(result),
        "counterfactual": _counterfactual(result),
        "single_views": _single_views(result),
        "labels": _labels(result),
        "finding_auroc": _finding_auroc(result),
        "annotations": agreement_by_row(result),
        "annotations_system": errors_of_system(result),
        "language": _language(result),
        "key_words": _key_words(result, "keyword_f1"),
        "key_words_without_negated": _key_words(result, "keyword_f1_without_negated"),
        "key_words_system": _key_words_of_system(result),
        "forte": _forte(result),
        "forte_system": _forte_of_system(result),
        "reference_labels": _reference_labels(result),
        "clinical": _clinical(result),
        "decoding": Table(("", ""), list(_setting(result["decoding"]))) if result["decoding"] else None,
        "run": Table(("", ""), list(_run(result))),
    }


def _scores(result: Mapping[str, Any], *, full: bool) -> Table:
    metrics = metrics_of(result)
    head = ["reports", *map(title, metrics)]
    rows = []
    for row in ("system", *result["n_beside"], *result["baselines"]):
        if row in result["baselines"]:
            scores = result["baselines_full" if full else "baselines"][row]
        else:
            scores = result[full_name(row) if full else row]
        if scores is not None:
            rows.append([_named(result, row), *(number(scores.get(metric)) for metric in metrics)])
    return Table(head, rows)


def metrics_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    """``METRICS`` and those that packages added."""
    return (*METRICS, *(metric for metric in result["system"] if metric not in METRICS))


_FAULTS = {
    "unattested_sentences": "sentences with an unattested word trigram",
    "drafts_with_unattested_pair": "reports with an unattested word pair",
    "drafts_with_comparison": "reports with a comparison",
    "drafts_with_fragment": "reports with a fragment",
    "drafts_with_contradiction": "reports with a contradiction",
}


def _language(result: Mapping[str, Any]) -> Table | None:
    """Shares of faults of language; metrics files of 0.2 and older have none."""
    language = result.get("language")
    if language is None:
        return None
    rows = [[text, *(number(language[row][fault]) for row in language)] for fault, text in _FAULTS.items()]
    head = ["reference reports" if row == "references" else row_title(result, row) for row in language]
    return Table(["faults of language, shares", *head], rows)


def _named(result: Mapping[str, Any], row: str) -> str:
    n = result["n_beside"].get(row, result["n"])
    return row_title(result, row) if n == result["n"] else f"{row_title(result, row)} (n = {n})"


def _differences(result: Mapping[str, Any]) -> Table | None:
    if not result["system_minus"]:
        return None
    rows = [
        [f"− {_named(result, row)}", *(_difference(entry[metric]) for metric in TESTED)]
        for row, entry in result["system_minus"].items()
    ]
    return Table([row_title(result, "system"), *map(title, TESTED)], rows)


def _paired(result: Mapping[str, Any]) -> Table | None:
    """Paired comparisons with other systems: both tests for each metric. None if there are none."""
    rows = [
        [name, title(metric), number(scores_of(result, "system")[metric]), number(result[other["row"]][metric]),
         number(entry["difference"], sign=True), interval(entry["confidence_95"], sign=True), number(entry["p"]),
         number(entry["p_permutation"])]
        for name, other in result.get("against", {}).items()
        for metric, entry in result["system_minus"].get(other["row"], {}).items()
    ]  # fmt: skip
    head = ["against", "metric", row_title(result, "system"), "the other", "difference", "95 % interval", "p bootstrap",
            "p permutation"]  # fmt: skip
    return Table(head, rows, left=2) if rows else None


def _difference(entry: Mapping[str, Any]) -> str:
    ends, p = interval(entry["confidence_95"]), number(entry["p"])
    return f"{number(entry['difference'], sign=True)} ({unbroken(ends)}), {unbroken(f'p {p}')}"


def _intervals(result: Mapping[str, Any], row: str, metrics: Sequence[str]) -> list[str]:
    """The name of a row that was made, and its metrics with their intervals."""
    scores = scores_of(result, row)
    cells = (with_ends(scores.get(metric), ends_of(result, row, metric)) for metric in metrics)
    return [row_title(result, row), *cells]


def _counterfactual(result: Mapping[str, Any]) -> Table | None:
    rows = made(result, COUNTERFACTUAL)
    if not rows and result["by_chance"] is None:
        return None
    metrics = ("BLEU_4", *MEASURES)
    shown = [[*_intervals(result, row, metrics), _against_random(result, row)] for row in ("system", *rows)]
    if (permuted := result["by_chance"]) is not None:
        means = (with_ends(entry["mean"], entry["interval_95"]) for entry in permuted.values())
        drafts = "the bundle's drafts" if result["bundle"] else row_title(result, "system")
        shown.append([f"{drafts}, permuted", NO_VALUE, *means, ""])
    shown += [[*_intervals(result, row, metrics), ""] for row in made(result, ("random",))]
    return Table(["reports", *map(title, metrics), "against the random row"], shown)


def _against_random(result: Mapping[str, Any], row: str) -> str:
    """Whether the metrics that should fall with swapped images lie above, within or below the random row."""
    parts = []
    for metric in MEASURES:
        ends, value = ends_of(result, "random", metric), scores_of(result, row).get(metric)
        if ends is None or value is None:
            return NO_VALUE
        position = "above" if value > ends[1] else "below" if value < ends[0] else "within"
        parts.append(f"{title(metric)} {position}")
    return ", ".join(parts)


def _single_views(result: Mapping[str, Any]) -> Table | None:
    rows = made(result, SINGLE_VIEW)
    if not rows:
        return None
    shown = []
    for row in ("system", *rows):
        name, *cells = _intervals(result, row, TESTED)
        shown.append([name, str(result["n_beside"].get(row, result["n"])), *cells])
    return Table(["images", "studies", *map(title, TESTED)], shown)


def _labels(result: Mapping[str, Any]) -> Table:
    """Most frequent finding first; a dash for a division by zero."""
    rows = []
    for name, row in by_prevalence(result):
        reported, drafted = row["prevalence"], row["predicted"]
        parts = (row["precision"] if drafted else None, row["recall"] if reported else None,
                 row["f1"] if reported or drafted else None)  # fmt: skip
        rows.append([name, *map(number, (reported, drafted, *parts))])
    return Table(["finding", "in reports", "in drafts", "precision", "recall", "F1"], rows)


def _finding_auroc(result: Mapping[str, Any]) -> Table | None:
    """Most frequent finding first, and the mean of those with enough cases."""
    found = {name: table for name, table in (result.get("finding_auroc") or {}).items() if table and table["findings"]}
    if not found:
        return None
    counts = {name: row["cases"] for table in reversed(found.values()) for name, row in table["findings"].items()}
    rows = []
    for name in (*sorted(counts, key=lambda name: (-counts[name], name)), "mean"):
        cells = [name]
        for table in found.values():
            row = table["mean"] if name == "mean" else table["findings"].get(name)
            cells.append("" if name == "mean" or row is None else str(row["cases"]))
            cells.append(with_ends(row["auroc"], row.get("confidence_95")) if row else NO_VALUE)
        rows.append(cells)
    head = [f"{column} ({name})" for name in found for column in ("cases", "AUROC")]
    return Table(["finding", *head], rows)


def by_prevalence(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """The findings with their metrics, most frequent in the reports first."""
    return sorted(result["labels"]["system"].items(), key=lambda item: (-item[1]["prevalence"], item[0]))


def _key_words(result: Mapping[str, Any], key: str) -> Table:
    table = keyword_table(result, key)
    rows = {**{name: row for name, row in table.items() if name != "baselines"}, **table["baselines"]}
    categories = (*KEY_WORDS, AVERAGE)
    shown = [
        [row_title(result, name), *(number(row[c]["f1"]) for c in categories)] for name, row in rows.items() if row
    ]
    return Table(["reports", *categories], shown)


def _key_words_of_system(result: Mapping[str, Any]) -> Table:
    rows = []
    for category in (*KEY_WORDS, AVERAGE):
        cells = []
        for key in KEYWORD_F1:
            row = keyword_table(result, key)["system"][category]
            cells += [number(row[name]) for name in ("precision", "recall", "f1")] + [f"{row['support']:.0f}"]
        rows.append([category, *cells])
    part = ("precision", "recall", "F1", "in reports")
    return Table(["category", *part, *(f"{name} *" for name in part)], rows)


def _forte(result: Mapping[str, Any]) -> Table | None:
    """F1 of FORTE as published; None without the lists."""
    table = result.get("forte_published")
    if table is None:
        return None
    rows = {**{name: row for name, row in table.items() if name not in ("baselines", "keywords")}, **table["baselines"]}
    categories = (*KEY_WORDS, AVERAGE)
    shown = [
        [row_title(result, name), *(with_ends(row[c]["f1"], row[c].get("f1_95")) for c in categories)]
        for name, row in rows.items() if row
    ]  # fmt: skip
    return Table(["reports", *categories], shown)


def _forte_of_system(result: Mapping[str, Any]) -> Table | None:
    """Precision and recall of each category, and how many reports have them."""
    table = result.get("forte_published")
    if table is None:
        return None
    rows = []
    for category in KEY_WORDS:
        row = table["system"][category]
        rows.append([category, number(row["precision"]), str(row["precision_n"]), number(row["recall"]),
                     str(row["recall_n"]), with_ends(row["f1"], row.get("f1_95"))])  # fmt: skip
    return Table(["category", "precision", "reports", "recall", "reports", "F1"], rows)


def _reference_labels(result: Mapping[str, Any]) -> Table | None:
    table = result.get("reference_labels")
    if table is None:
        return None
    columns = ("label_f1_micro", "label_f1_macro", "no_finding_f1")
    rows = {"labeler on the references": table["labeler_on_references"], row_title(result, "system"): table["system"]}
    rows |= {row_title(result, name): row for name, row in table["baselines"].items()}
    shown = [[name, *(number(row[column]) for column in columns)] for name, row in rows.items()]
    return Table([f"reports against {table['table']} (n = {table['n']})", *map(title, columns)], shown)


def _clinical(result: Mapping[str, Any]) -> Table | None:
    rows = [
        [scorer, row_title(result, name), measure, number(value)]
        for scorer, table in (result.get("clinical") or {}).items()
        if table is not None
        for name, row in {"system": table["system"], **table["baselines"]}.items()
        for measure, value in row.items()
    ]
    return Table(["scorer", "reports", "measure", "value"], rows) if rows else None


def _setting(values: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in values.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else str(value)
        yield [name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else shown]


def _run(result: Mapping[str, Any]) -> Iterator[list[str]]:
    counts = result["counts"]
    if result["bundle"]:
        yield ["bundle", f"{result['bundle']['name']}, digest {result['bundle']['digest']}"]
        yield ["data", f"{result['dataset']}, {result['split']} split; views: {result['views']}"]
        yield ["images", f"{counts['images']} used, {counts['images_skipped']} not readable"]
    else:
        yield ["texts", result["predictions"]]
        yield ["data", data_of(result)]
    yield ["studies", f"{counts['scored']} scored of {counts['in_split']}, {counts['skipped']} skipped"]
    yield ["protocol", result["protocol"]]
    yield ["vocabulary", f"{result['vocabulary']['words']} words, {result['vocabulary']['from']}"]
    yield ["constant chosen on", result["constant_chosen_on"] or NO_VALUE]
    yield ["seed, draws", f"{result['seed']}, {result['confidence_95'].get('draws', 'none')}"]
    if result["bundle"]:
        yield ["computed", f"on {result['device']} in {result['precision']}"]
