"""Values of the papers, printed below a table: the study that this project reproduces, and earlier systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.tables import Table, number

FIGURES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L")
Row = tuple[float | None, ...]

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

EARLIER_SYSTEMS: dict[str, Row] = {
    "coattention: Jing et al. 2018 (CoAtt)": (0.517, 0.386, 0.306, 0.247, 0.217, 0.447),
    "the same, in table 3 of Chen et al. 2020": (0.455, 0.288, 0.205, 0.154, None, 0.369),
    "r2gen: Chen et al. 2020 (R2Gen), table 3": (0.470, 0.304, 0.219, 0.165, 0.187, 0.371),
    "cmn: Chen et al. 2021 (R2GenCMN)": (0.475, 0.309, 0.222, 0.170, 0.191, 0.375),
}
EARLIER_NOTE = (
    "As published, each paper on its own split and cleaning of IU X-Ray, so no value can be compared with another "
    "paper's, or with those above: one system has two values here. The values of Jing et al. and of R2GenCMN are those "
    "that later repositories quote. Shin et al. 2016 (CNN-RNN) score annotations, not reports."
)
BRAINGPT = {"degree": 0.661, "landmark": 0.706, "feature": 0.693, "impression": 0.779, "average": 0.71}
BRAINGPT_NOTE = (
    "FORTE F1 of BrainGPT on CT of the brain, with word lists for the brain (Li et al. 2025, abstract). "
    "`training.evaluate --forte-keywords` scores a bundle with the list for chest radiographs:"
)
HEADING = "## As published (not measured here)"


def content(table: str) -> dict[str, Any]:
    """The published values that go with the table ``study`` or ``evolution``, for its JSON file."""
    if table == "study":
        return {"table": table, "note": NOTE, "figures": FIGURES, "iu_xray_test": IU_XRAY_TEST,
                "private_set": PRIVATE_SET}  # fmt: skip
    return {"table": table, "note": EARLIER_NOTE, "figures": FIGURES, "earlier_systems": EARLIER_SYSTEMS,
            "forte_braingpt": BRAINGPT}  # fmt: skip


def published_markdown(table: str) -> list[str]:
    """The same as paragraphs of Markdown."""
    if table == "study":
        return [HEADING, NOTE, _table(IU_XRAY_TEST).markdown(), PRIVATE_NOTE, _table(PRIVATE_SET).markdown()]
    forte = Table(["system", *BRAINGPT], [["BrainGPT", *map(number, BRAINGPT.values())]])
    return [HEADING, EARLIER_NOTE, _table(EARLIER_SYSTEMS, 3).markdown(), BRAINGPT_NOTE, forte.markdown()]


def _table(rows: Mapping[str, Row], digits: int = 4) -> Table:
    return Table(["row", *FIGURES], [[name, *(number(value, digits) for value in row)] for name, row in rows.items()])
