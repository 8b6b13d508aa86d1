"""``MODEL_CARD.md`` of a bundle: what it is, what it was trained on, how it scores, what it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from model.config import BundleConfig
from model.network.report_model import writer_class
from training.data.headings import TARGET_TEXT
from training.evaluation.tables import Table, interval, number, title
from training.scoring.metrics import METRICS

CARD = "MODEL_CARD.md"
_USE = (
    "It drafts the findings of a chest X-ray report from a frontal and a lateral radiograph, for research on report "
    "generation and as a first text that a radiologist reads against the images and corrects. It is not a medical "
    "device: no draft may reach a patient's record unread, and nothing is known of images from other hospitals."
)

_HEADINGS = "It writes MeSH headings, such as 'opacity lung base left mild.', in place of the sentences of a report."
_UNRECORDED = "epochs, settings and calibration were probably chosen on these studies (the bundle has no record)"


def model_card(config: BundleConfig, metrics: Mapping[str, Any]) -> str:
    """The card of a bundle, from its configuration and ``metrics.json``."""
    headings = [_HEADINGS] if config.trained_on.get(TARGET_TEXT) == "headings" else []
    parts = [
        f"# {config.name}", _USE, *headings, "## Model", _lines(_model(config)),
        "## Training data", _lines(_data(config)), "## Scores", *_scores(metrics.get("val") or {}),
        "## Licence", config.licence or "Not stated.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _lines(facts: Iterator[tuple[str, Any]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts if value not in (None, "", {}))


def _model(config: BundleConfig) -> Iterator[tuple[str, Any]]:
    model, decoding = config.model, config.decoding
    side = config.preprocessing.image_size
    writer = writer_class(model)
    title = writer.title or f"writer {model.writer}"
    yield "architecture", title + " with retrieved cases" * bool(config.retrieval)
    yield "backbone", f"{model.backbone}, images of {side} × {side} pixels"
    yield "size", f"{writer.dimensions(model)}, {model.vocab_size} words"
    if config.retrieval is not None:
        yield "retrieval", f"{config.retrieval.k} of {config.retrieval.cases} training cases"
    yield "decoding", decoding.method + f", {decoding.beam_size} beams" * (decoding.method == "beam")


def _data(config: BundleConfig) -> Iterator[tuple[str, Any]]:
    for name, value in config.trained_on.items():
        if isinstance(value, dict):
            value = ", ".join(f"`{key}` {json.dumps(one)}" for key, one in value.items())
        yield name.replace("_", " "), value


def _scores(val: Mapping[str, Any]) -> Iterator[str]:
    """The scores on val next to those of one constant report, without which the scores of texts mislead."""
    if not val:
        yield "None are stored in this bundle; `python -m training.evaluate` measures them."
        return
    constant = val["baselines"].get("constant") or {}
    intervals = val["confidence_95"].get("system", {})
    rows = [
        [title(name), number(val["system"].get(name)), interval(intervals.get(name)), number(constant.get(name))]
        for name in METRICS
    ]
    yield f"On {val['n']} validation studies, by the protocol of docs/evaluation.md:"
    yield Table(["metric", "this bundle", "95 %", "one constant report"], rows).markdown()
    statement = val.get("selection", {}).get("statement", _UNRECORDED)
    if statement:
        yield f"{statement[0].upper()}{statement[1:]}."
