"""The report of a calibration: ``calibration.json`` with the metrics, ``calibration.md`` with tables, three plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.calibration.ood import project
from model.calibration.schema import Calibration, Floats
from model.calibration.track_record import SEPARATES
from model.files import write_atomic
from training.calibration.fit_ood import LabelledFeatures
from training.calibration.metrics import EXTERNAL_GROUP
from training.evaluation.tables import Table, percent
from training.trainer.plots import panels

_KINDS = {
    "all": "all sentences",
    "present": "a finding is present",
    "absent": "findings are absent",
    "other": "neither",
}
_SOURCES = {"calibrated": "confidence", "words": "mean word probability", "rate_of_the_kind": "rate of the kind"}
_BRIER = ("classifier", "calibrated", "rate")
_BLUE, _BROWN, _RED = "#1f6f8b", "#8a5a2b", "#b03030"


def write_report(
    folder: Path, metrics: Mapping[str, Any], calibration: Calibration, held: LabelledFeatures,
    ood_scores: Mapping[str, Floats],
) -> None:  # fmt: skip
    """Write metrics, tables and plots into ``folder``; none of them holds an image or a text."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "calibration.json", (json.dumps(metrics, indent=1) + "\n").encode())
    tables = [table(metrics) for table in _TABLES]
    write_atomic(folder / "calibration.md", ("\n\n".join(["# Calibration", *tables]) + "\n").encode())
    _plot_view(calibration, held, folder / "view.png")
    _plot_ood(ood_scores, metrics["unusual"]["threshold"], folder / "unusual.png")
    _plot_confidence(metrics["confidence"]["reliability"], folder / "confidence.png")


# --- tables -----------------------------------------------------------------------------------------------------------


def view_table(metrics: Mapping[str, Any]) -> str:
    """Results of the view check on validation images."""
    view = metrics["view"]
    counts = {
        "pairs wrongly exchanged": ("pairs_wrongly_exchanged", "pairs"),
        "pairs wrongly reported as two of one view": ("pairs_wrongly_called_same", "pairs"),
        "exchanged pairs, corrected": ("exchanged_pairs_put_right", "pairs"),
        "pairs of one view, found": ("pairs_of_one_view_found", "pairs_of_one_view"),
        "pairs of one view, wrongly exchanged": ("pairs_of_one_view_wrongly_exchanged", "pairs_of_one_view"),
        "single images, wrongly read as the other view": ("single_images_wrongly_corrected", "single_images"),
        "single images sent as the other view, corrected": (
            "single_images_sent_as_the_other_view_corrected", "single_images",
        ),
    }  # fmt: skip
    rows = [["images whose true view is the more probable one", f"{view['accuracy']:.4f}", str(view["images"])]]
    rows += [[label, str(view[count]), str(view[total])] for label, (count, total) in counts.items()]
    note = f"A view is corrected from a probability of {view['certain']:.4f} on."
    return "\n\n".join(["## View", note, Table(("", "", "of"), rows, left=3).markdown()])


def ood_table(metrics: Mapping[str, Any]) -> str:
    """Radiographs and other images with a warning."""
    ood = metrics["unusual"]
    rows = [["radiographs (val)", str(ood["val"]["n"]), percent(ood["val"]["warned"]), "", ""]]
    external = ood["external"]
    if external is not None:
        rows.append([EXTERNAL_GROUP, *_warned(external)])
    for name, entry in ood["strange"].items():
        rows.append([f"{name} *" if entry["shown_to_the_fit"] else name, *_warned(entry)])
    head = ("images", "n", "with a warning", "AUROC against val", "against another hospital")
    note = "\\* the fit used training radiographs altered in this way; it used no image of the other kinds."
    return "\n\n".join(["## Unusual images", Table(head, rows, left=5).markdown(), note])


def _warned(entry: Mapping[str, Any]) -> list[str]:
    areas = (entry.get("auroc"), entry.get("auroc_against_external"))
    return [str(entry["n"]), percent(entry["warned"]), *map(_decimal, areas)]


def confidence_table(metrics: Mapping[str, Any]) -> str:
    """How good the probabilities of sentences are, by the kind of sentence."""
    confidence = metrics["confidence"]
    rows = []
    for kind, title in _KINDS.items():
        if kind not in confidence:
            continue
        whole = confidence if kind == "all" else confidence[kind]
        for name, source in _SOURCES.items():
            quality = confidence[kind][name]
            cells = (_decimal(quality[one]) for one in ("ece", "brier", "auroc"))
            rows.append([title, str(whole["sentences"]), percent(whole["right"]), source, *cells])
    head = ("sentence states", "n", "correct", "probability", "ECE", "Brier", "AUROC")
    return f"## Confidence\n\n{Table(head, rows, left=7).markdown()}"


def support_table(metrics: Mapping[str, Any]) -> str:
    """Sentences that name a finding, with and without support; findings that the images support."""
    support = metrics["support"]
    names = {"supported": "supported", "not_supported": "not supported"}
    rows = [[label, str(support[name]["sentences"]), percent(support[name]["right"])] for name, label in names.items()]
    sentences = Table(("sentences that state a finding as present or possible", "n", "correct"), rows, left=3)
    head = ("finding", "studies with it whose images support it")
    images = Table(head, [[name, percent(share)] for name, share in support["images"].items()], left=2)
    return "\n\n".join(["## Support", sentences.markdown(), images.markdown()])


def finding_table(metrics: Mapping[str, Any]) -> str:
    """Findings that the drafts catch, and the quality of the calibrated probabilities."""
    rows = []
    for name, one in metrics["findings"].items():
        errors = one.get("brier", {})
        cells = [_decimal(one.get("auroc")), *(_decimal(errors.get(source)) for source in _BRIER)]
        rows.append([name, *(str(one[count]) for count in ("studies", "called", "right")), *cells])
    head = ("finding", "studies", "called", "right", "AUROC", *(f"Brier, {source}" for source in _BRIER))
    return f"## Findings\n\n{Table(head, rows).markdown()}"


def separation_table(metrics: Mapping[str, Any]) -> str:
    """Kinds of sentences, and whether a page shows their confidence."""
    areas = {title: metrics["confidence"].get(kind, {}).get("calibrated", {}).get("auroc")
             for kind, title in _KINDS.items() if kind != "all"}  # fmt: skip
    rows = [[title, _decimal(area), "yes" if (area or 0) >= SEPARATES else "no"] for title, area in areas.items()]
    return f"## Percentages\n\n{Table(('sentence states', 'AUROC', 'percentage shown'), rows, left=3).markdown()}"


_TABLES = (view_table, ood_table, confidence_table, separation_table, support_table, finding_table)


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# --- plots ------------------------------------------------------------------------------------------------------------


def _plot_view(calibration: Calibration, held: LabelledFeatures, path: Path) -> None:
    """Logits of frontals and laterals, with the thresholds from which a view is corrected."""
    line = calibration.view.line
    logits = line.slope * project(calibration.features, held.pooled)[0][:, 0] + line.bias
    threshold = float(np.log(calibration.view.certain / (1 - calibration.view.certain)))
    edges = np.linspace(logits.min(), logits.max(), 60).tolist()
    with panels(path, size=(6.4, 3.2)) as (axis,):
        for chosen, name, colour in ((held.frontal, "frontals", _BLUE), (~held.frontal, "laterals", _BROWN)):
            axis.hist(logits[chosen], edges, alpha=0.75, label=f"{name} ({chosen.sum()})", color=colour)
        for position in (-threshold, threshold):
            axis.axvline(position, color="0.3", linestyle="--", linewidth=1)
        axis.set(xlabel="logit of a frontal; dashed: certain enough to correct a view", ylabel="validation images")


def _plot_ood(scores: Mapping[str, Floats], threshold: float, path: Path) -> None:
    """A strip of scores for each group, radiographs on top, with the threshold of the warning."""
    jitter = np.random.default_rng(0)
    with panels(path, size=(8, 0.32 * len(scores) + 1)) as (axis,):
        for line, (name, values) in enumerate(scores.items()):
            heights = line + jitter.uniform(-0.3, 0.3, len(values))
            colour = _BLUE if name.startswith("radiographs") else _BROWN
            axis.scatter(values, heights, s=4, alpha=0.35, color=colour, linewidths=0)
        axis.axvline(threshold, color=_RED, linewidth=1)
        axis.set_xscale("symlog", linthresh=2)
        axis.set_yticks(range(len(scores)), list(scores))
        axis.invert_yaxis()
        axis.set_xlabel("score, 0 ordinary, 1 rare; red: threshold of the warning")


def _plot_confidence(bins: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Reliability of the calibrated confidence and of the word probability."""
    with panels(path, size=(4.6, 4.2)) as (axis,):
        axis.plot((0, 1), (0, 1), color="0.6", linewidth=1)
        for name, colour, marker in (("words", _BROWN, "s"), ("calibrated", _BLUE, "o")):
            points = [(one["said"], one["came_true"]) for one in bins[name]]
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=_SOURCES[name])
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="mean probability of a tenth of the sentences",
                 ylabel="share that is correct")  # fmt: skip
