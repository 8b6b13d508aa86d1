"""``calibration.json``: strict validation, view and OOD checks of images, confidence and support of sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model.bundle import CALIBRATION, WEIGHTS, add_calibration, load_bundle, write_bundle
from model.calibration.ood import assess_views, project, statistics
from model.calibration.schema import Calibration, PackedArray
from model.calibration.sentence_confidence import Evidence, confidence, kind_of, named_findings, supported
from model.manifest import BundleError, write_manifest
from model.types import DraftOptions, Label, View
from retrieval_index.index import ReportIndex
from tests.support.calibration import add_plain_calibration, plain_calibration, plain_track_record
from tests.support.tiny import noise_study, open_drafter, write_tiny_bundle

FRONTAL, LATERAL = View.FRONTAL, View.LATERAL


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_packed_array_round_trips_within_half_a_step(dtype: Any) -> None:
    values = np.random.default_rng(0).normal(scale=1e-7, size=(5, 7))
    packed = PackedArray.model_validate_json(PackedArray.of(values, dtype).model_dump_json())
    assert packed.array.shape == (5, 7)
    assert np.abs(packed.array - values).max() <= np.abs(values).max() / 250
    assert not PackedArray.of(np.zeros(4), dtype).array.any()


def test_calibration_round_trips_through_json_with_and_without_a_track_record() -> None:
    for record in (None, plain_track_record()):
        calibration = plain_calibration(track_record=record)
        assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
    older = plain_calibration().model_dump(mode="json", exclude={"track_record"})
    assert Calibration.model_validate_json(json.dumps(older)) == plain_calibration()


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        *names, last = path.split(".")
        for name in names:
            content = content[name]
        content[last] = value

    return apply


RECORD = {"studies": 4, "called": 2, "right": 1}
DAMAGES = {
    "another version": (change("schema_version", 2), "schema_version"),
    "no digest": (change("weights_sha256", "x"), "weights_sha256"),
    "an unknown key": (change("extra", 1), "extra"),
    "invalid base64": (change("features.centre.data", "!"), "not valid base64"),
    "too short": (change("features.directions.data", "AAAA"), "holds 3 bytes"),
    "infinite values": (change("features.centre.data", "AHwAfAB8"), "not finite"),
    "another width": (change("features.centre", PackedArray.of(np.zeros(2), "float16").model_dump()), "not \\(D,\\)"),
    "a threshold of 0.5": (change("view.certain", 0.5), "view.certain"),
    "a unit too few": (change("unusual.units", []), "units"),
    "falling quantiles": (change("unusual.quantiles", [1.0, 0.0]), "ascending"),
    "another finding": (change("support.thresholds", {"Baldness": 0.5}), "Baldness"),
    "a record of another finding": (change("track_record.findings", {"Baldness": RECORD}), "Baldness"),
    "more right than called": (change("track_record.findings.Fracture", {**RECORD, "right": 3}), "right=3 exceeds"),
    "another kind of sentence": (change("track_record.separation", {"poetic": 0.9}), "poetic"),
    "an infinite weight": (change("confidence.other.bias", float("inf")), "confidence.other.bias"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a calibration."""
    return add_plain_calibration(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


@pytest.mark.parametrize("name", DAMAGES)
def test_rejects_a_damaged_calibration_and_names_the_key(name: str) -> None:
    damage, message = DAMAGES[name]
    content = json.loads(plain_calibration(track_record=plain_track_record()).model_dump_json())
    damage(content)
    with pytest.raises(ValidationError, match=message):
        Calibration.model_validate_json(json.dumps(content))


def rewritten(tiny: Path, folder: Path, text: str) -> Path:
    """A copy of the bundle whose calibration is ``text``."""
    write_bundle_of(tiny, folder)
    (folder / CALIBRATION).write_text(text)
    write_manifest(folder)
    return folder


def write_bundle_of(tiny: Path, folder: Path) -> None:
    bundle = load_bundle(tiny)
    write_bundle(
        folder, config=bundle.config, model=bundle.model, tokenizer=bundle.tokenizer, index_dir=tiny / "index",
        calibration=bundle.calibration, weights_dtype="fp32",
    )  # fmt: skip


def test_a_bundle_with_a_damaged_calibration_does_not_load(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"calibration.json is not a valid calibration \(the file.*training.calibrate"
    ):
        load_bundle(rewritten(tiny, tmp_path / "cut", "{"))
    with pytest.raises(BundleError, match="fitted to the weights of another bundle"):
        load_bundle(rewritten(tiny, tmp_path / "other", plain_calibration().model_dump_json()))
    digest = load_bundle(tiny).manifest.files[WEIGHTS].sha256
    with pytest.raises(BundleError, match="features of width 3"):
        load_bundle(rewritten(tiny, tmp_path / "width", plain_calibration(weights_sha256=digest).model_dump_json()))


def test_a_calibration_is_copied_with_its_bundle(tiny: Path, tmp_path: Path) -> None:
    calibration = load_bundle(tiny).calibration
    assert calibration is not None
    write_bundle_of(tiny, tmp_path / "written")
    assert load_bundle(tmp_path / "written").calibration == calibration
    assert load_bundle(write_tiny_bundle(tmp_path / "bare")).calibration is None


def test_adding_a_calibration_changes_no_other_file(tiny: Path, tmp_path: Path) -> None:
    before = load_bundle(tiny)
    assert before.calibration is not None
    add_calibration(tiny, before.calibration, tmp_path / "copy")
    after = load_bundle(tmp_path / "copy")
    assert after.manifest == before.manifest
    ReportIndex.load(tmp_path / "copy" / "index", expected_sha256=after.index_sha256())
    with pytest.raises(BundleError, match="already exists"):
        add_calibration(tiny, before.calibration, tmp_path / "copy")


# --- images -----------------------------------------------------------------------------------------------------------


def read(
    sent: list[View], logits: list[float], unusual: float = 0.0, correct: bool = True, headers: Sequence[View] = ()
) -> tuple[Any, list[str]]:
    pooled = np.array([[logit, unusual, 0.0] for logit in logits], np.float32)
    pixels = np.zeros((len(sent), 32, 32), np.uint8)
    reading = assess_views(plain_calibration(), sent, pooled, pixels, correct=correct, headers=headers)
    return list(reading.views), [warning.code for warning in reading.warnings]


@pytest.mark.parametrize(
    ("sent", "logits", "views", "codes"),
    [
        ([FRONTAL, LATERAL], [9, -9], [FRONTAL, LATERAL], []),
        ([FRONTAL, LATERAL], [-9, 9], [LATERAL, FRONTAL], ["views_swapped"]),
        ([FRONTAL, LATERAL], [-9, 1], [LATERAL, FRONTAL], ["views_swapped"]),  # one is certain, the other agrees
        ([FRONTAL, LATERAL], [-3, 3], [FRONTAL, LATERAL], []),  # neither is certain
        ([FRONTAL, LATERAL], [9, 9], [FRONTAL, LATERAL], ["same_view"]),
        ([FRONTAL, LATERAL], [-9, -9], [FRONTAL, LATERAL], ["same_view"]),
        ([FRONTAL], [9], [FRONTAL], []),
        ([FRONTAL], [-3], [FRONTAL], []),
        ([FRONTAL], [-9], [LATERAL], ["view_corrected"]),
        ([LATERAL], [9], [FRONTAL], ["view_corrected"]),
        ([FRONTAL, FRONTAL], [9, -9], [FRONTAL, FRONTAL], []),  # a data set names its views
    ],
)
def test_corrects_a_view_where_the_check_is_certain(
    sent: list[View], logits: list[float], views: list[View], codes: list[str]
) -> None:
    assert read(sent, logits) == (views, codes)
    assert read(sent, logits, correct=False) == (sent, [])


def test_corrects_no_view_of_an_ood_image() -> None:
    assert read([FRONTAL, LATERAL], [-9, 9], unusual=1.0) == ([FRONTAL, LATERAL], ["unusual_image"] * 2)
    assert read([FRONTAL], [-9], unusual=0.98) == ([LATERAL], ["view_corrected"])


@pytest.mark.parametrize(
    ("logits", "unusual", "views", "codes"),
    [
        ([-9, 9], 1.0, [LATERAL, FRONTAL], ["unusual_image", "unusual_image", "views_swapped"]),
        ([9, -9], 1.0, [LATERAL, FRONTAL], ["unusual_image", "unusual_image", "views_swapped"]),  # not judged by it
        ([-3, 3], 0.0, [LATERAL, FRONTAL], ["views_swapped"]),  # the check is not certain
        ([9, -9], 0.0, [FRONTAL, LATERAL], []),  # it is certain that the headers are wrong
        ([9, 9], 0.0, [FRONTAL, LATERAL], ["same_view"]),
    ],
)
def test_exchanges_views_where_both_headers_say_so(
    logits: list[float], unusual: float, views: list[View], codes: list[str]
) -> None:
    sent, headers = [FRONTAL, LATERAL], [LATERAL, FRONTAL]
    assert read(sent, logits, unusual, headers=headers) == (views, codes)
    assert read(sent, logits, unusual, headers=headers, correct=False)[0] == sent
    for other in ([LATERAL, LATERAL], [FRONTAL, LATERAL]):
        assert read(sent, logits, unusual, headers=other) == read(sent, logits, unusual)


def test_warnings_name_the_field_of_the_image() -> None:
    pooled = np.array([[-9, 0, 0]], np.float32)
    reading = assess_views(plain_calibration(), [FRONTAL], pooled, np.zeros((1, 32, 32), np.uint8), correct=True)
    assert reading.warnings[0].message == "The image sent as frontal looks like a lateral and was read as one."
    assert reading.checks[0] == pytest.approx((1 / (1 + np.exp(9)), 0.0), abs=1e-6)


def test_the_residual_is_orthogonal_to_all_directions() -> None:
    features = plain_calibration(width=5).features
    projections, residual = project(features, np.array([[1, 2, 3, 4, 0], [1, 2, 3, 0, 0]], np.float32))
    assert projections == pytest.approx(np.array([[1, 2, 3], [1, 2, 3]]))
    assert residual == pytest.approx(np.log([5, 1]), abs=1e-4)


def test_statistics_of_grey_values() -> None:
    rising = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    blank = np.full((64, 64), 255, np.uint8)
    found = statistics(np.stack([rising, rising.T, blank]))
    mean, spread, black, white, mirrored, flipped, _, middle = found.T
    assert mean == pytest.approx([126 / 255, 126 / 255, 1])
    assert spread[2] == 0
    assert spread[0] > 0.25
    assert black.tolist() == pytest.approx([2 / 64, 2 / 64, 0])
    assert white.tolist() == pytest.approx([2 / 64, 2 / 64, 1])
    assert mirrored == pytest.approx([-1, 1, 0], abs=1e-3)
    assert flipped == pytest.approx([1, -1, 0], abs=1e-3)
    assert middle == pytest.approx([0, 0, 0], abs=1e-6)


# --- sentences --------------------------------------------------------------------------------------------------------

NORMAL, LARGE = {"No Finding": "present", "Cardiomegaly": "absent"}, {"Cardiomegaly": "present", "Edema": "uncertain"}
HEAD = np.full(14, 0.25, np.float32)


def test_evidence_counts_the_nearest_and_the_shown_cases() -> None:
    evidence = Evidence.of([NORMAL, NORMAL, LARGE, LARGE], 2, HEAD)
    assert evidence.cases["Cardiomegaly"] == evidence.cases["Edema"] == evidence.cases["No Finding"] == 0.5
    assert evidence.cases["Fracture"] == 0
    assert evidence.shown == {"No Finding"}
    assert evidence.images["Edema"] == 0.25
    assert Evidence.of([], 2, None) == Evidence({}, {}, frozenset())


def test_no_finding_is_never_a_named_finding() -> None:
    assert named_findings("the lungs are clear .").get("No Finding") is None
    assert named_findings("there is no pneumothorax .") == {"Pneumothorax": "absent"}
    assert [kind_of(labels) for labels in ({}, {"Edema": "absent"}, {"Edema": "uncertain"})] == [
        "other", "absent", "present",
    ]  # fmt: skip


def test_confidence_rises_with_the_evidence_for_a_sentence() -> None:
    fitted = plain_calibration().confidence
    few, many = Evidence.of([NORMAL, NORMAL, LARGE], 3, HEAD), Evidence.of([LARGE, LARGE, NORMAL], 3, HEAD)
    large: dict[str, Label] = {"Cardiomegaly": "present"}
    odds = [chance / (1 - chance) for chance in (confidence(fitted, 0.9, large, one) for one in (few, many))]
    assert odds == pytest.approx([0.5 * np.exp(-1), 2 * np.exp(-1)])
    denied = confidence(fitted, 0.9, {"Cardiomegaly": "absent", "Edema": "absent"}, few)
    assert denied / (1 - denied) == pytest.approx(3 * np.e)  # the head gives a quarter
    assert confidence(fitted, 0.9, {}, few) == pytest.approx(0.9)


def test_support_needs_a_shown_case_or_the_images() -> None:
    fitted = plain_calibration().support
    seen = np.full(14, 0.6, np.float32)
    alone, shown = Evidence.of([NORMAL], 1, HEAD), Evidence.of([LARGE], 1, HEAD)
    assert supported(fitted, {"Cardiomegaly": "present"}, alone) is False
    assert supported(fitted, {"Cardiomegaly": "present"}, shown) is True
    assert supported(fitted, {"Cardiomegaly": "present"}, Evidence.of([NORMAL], 1, seen)) is True
    assert supported(fitted, {"Cardiomegaly": "present", "Fracture": "present"}, Evidence.of([LARGE], 1, seen)) is False
    assert supported(fitted, {"Cardiomegaly": "uncertain"}, alone) is False, "uncertain, without evidence"
    assert supported(fitted, {"Cardiomegaly": "uncertain", "Edema": "absent"}, shown) is True
    assert supported(fitted, {"Edema": "absent"}, shown) is None


def test_number_of_shown_cases_does_not_change_the_draft(tmp_path: Path) -> None:
    drafter = open_drafter(add_plain_calibration(write_tiny_bundle(tmp_path / "tiny", seed=10, full_stops=2.0)))
    study = noise_study(1, FRONTAL, LATERAL)
    few, k, many = (drafter.draft([study], DraftOptions(top_k=top_k))[0] for top_k in (1, 3, 20))
    assert [len(draft.reference_cases) for draft in (few, k, many)] == [1, 3, 8]
    assert many.reference_cases[:3] == k.reference_cases
    assert any(sentence.supported is not None for sentence in k.sentences)
    for draft in (few, many):  # ``sentences`` hold confidence, labels and support
        assert (draft.findings, draft.sentences, draft.labels) == (k.findings, k.sentences, k.labels)
        assert draft.warnings == k.warnings
