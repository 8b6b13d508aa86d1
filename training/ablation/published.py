"""The table of the study that this project reproduces, as published. It is only printed."""

from __future__ import annotations

from training.evaluation.tables import Table, number

FIGURES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L")
Row = tuple[float, ...]

IU_XRAY_TEST: dict[str, Row] = {
    "published weights": (0.4946, 0.3251, 0.2362, 0.1813, 0.2076, 0.3808),
    "baseline, rerun": (0.4410, 0.2860, 0.2081, 0.1589, 0.1795, 0.3821),
    "densenet": (0.4546, 0.2869, 0.2045, 0.1555, 0.1778, 0.3557),
    "densenet-lr": (0.4873, 0.3110, 0.2206, 0.1618, 0.2019, 0.3699),
    "retrieval": (0.4615, 0.2983, 0.2134, 0.1596, 0.2059, 0.3679),
    "retrieval-scst": (0.4911, 0.3137, 0.2224, 0.1626, 0.2162, 0.3803),
}
PRIVATE_SET: dict[str, Row] = {
    "published weights": (0.3974, 0.2510, 0.1635, 0.1120, 0.1761, 0.3447),
    "retrieval": (0.4116, 0.2800, 0.2090, 0.1661, 0.1901, 0.3602),
    "retrieval-scst": (0.4634, 0.3076, 0.2204, 0.1661, 0.2033, 0.3752),
}
NOTE = (
    "As published, on its test split of IU X-Ray. Its set sizes differ from the standard split of R2Gen (5,229 "
    "training and 1,494 test images, 2,768 and 791 reports: a 70/20 cut of the whole collection; the standard split "
    "has 2,069 training, 296 validation and 590 test studies), so these values cannot be compared column by column."
)
PRIVATE_NOTE = "The same study's private set, 22 reports with 43 images:"


def published_markdown() -> list[str]:
    """The two tables as paragraphs of Markdown."""
    heading = "## As published (not measured here)"
    return [heading, NOTE, _table(IU_XRAY_TEST).markdown(), PRIVATE_NOTE, _table(PRIVATE_SET).markdown()]


def _table(rows: dict[str, Row]) -> Table:
    return Table(["row", *FIGURES], [[name, *(number(value, 4) for value in row)] for name, row in rows.items()])
