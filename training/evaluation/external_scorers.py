"""RadGraph F1 and CheXbert F1, where their packages and weights are installed; nothing is downloaded.

Both packages download missing weights on first use. They are used only if the weights are in their caches, and with
their hub client offline.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from training.evaluation.scoring import ReferenceSet
from training.scoring.baselines import TrivialRow
from training.scoring.metrics import Pair, Scores

Scorer = Callable[[Sequence[Pair]], Scores]

RADGRAPH_MODELS = ("radgraph-xl", "radgraph")  # the first whose weights are there
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class NotRunError(Exception):
    """A scorer that cannot run here; the message is the reason."""


def external_scores(
    references: ReferenceSet, findings: Sequence[str], rows: Mapping[str, TrivialRow]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores of the system and of each trivial row by scorer, on the strings of the full row.

    Returns:
        ``{"RadGraph": {"system": {...}, "baselines": {...}} or None, "CheXbert": ...}`` and, for each that is None, the
        reason.
    """
    tables: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, load in (("RadGraph", _radgraph), ("CheXbert", _chexbert)):
        try:
            with patch.dict(os.environ, _OFFLINE):
                scorer = load()
                tables[name] = {
                    "system": scorer(references.draft_pairs(findings)[1]),
                    "baselines": {
                        key: row.merged([scorer(references.report_pairs(texts)[1]) for texts in row.variants.values()])
                        for key, row in rows.items()
                    },
                }
        except Exception as error:  # foreign packages raise anything; the other metrics do not depend on them
            failed = f"its package failed ({type(error).__name__}: {error})"
            tables[name], reasons[name] = None, str(error) if isinstance(error, NotRunError) else failed
    return tables, reasons


def _radgraph() -> Scorer:
    package = _package("radgraph")
    folder = _cache_folder("radgraph") / importlib.metadata.version("radgraph")
    present = [name for name in RADGRAPH_MODELS if (folder / name / "weights.th").is_file()]
    if not present:
        raise NotRunError(f"the package is installed, its weights are not in {_shown(folder)}")
    scorer = package.F1RadGraph(reward_level="all", model_type=present[0])

    def score(pairs: Sequence[Pair]) -> Scores:
        references, predictions = map(list, zip(*pairs, strict=True))
        simple, partial, complete = scorer(refs=references, hyps=predictions)[0]
        return {f"simple ({present[0]})": float(simple), "partial": float(partial), "complete": float(complete)}

    return score


def _chexbert() -> Scorer:
    package = _package("f1chexbert")
    weights = _cache_folder("chexbert") / "chexbert.pth"
    if not weights.is_file():
        raise NotRunError(f"the package is installed, its weights {_shown(weights)} are not there")
    scorer = package.F1CheXbert(device="cpu")

    def score(pairs: Sequence[Pair]) -> Scores:
        references, predictions = map(list, zip(*pairs, strict=True))
        _, _, all_classes, five_classes = scorer(hyps=predictions, refs=references)
        return {
            f"{average} F1, {count} classes": float(table[f"{average} avg"]["f1-score"])
            for count, table in ((14, all_classes), (5, five_classes))
            for average in ("micro", "macro")
        }

    return score


def _package(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise NotRunError(f"the package {name} is not installed")
    return importlib.import_module(name)


def _cache_folder(name: str) -> Path:
    """Where both packages keep weights, by their dependency ``appdirs``."""
    return Path(importlib.import_module("appdirs").user_cache_dir(name))


def _shown(path: Path) -> str:
    """A path without this user's home."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
