"""A drafted "small left effusion" in the answer, the text, FHIR, the SR and the page; annotations of edited texts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pydicom
import pytest

from service.formats.dicom_source import ExportContext, SourceImage
from service.formats.fhir import diagnostic_report
from service.formats.sr import structured_report
from service.formats.text import plain_text
from service.schemas.annotations import MAX_ANNOTATIONS, read_annotations
from service.schemas.examples import CASE_EXAMPLE, REPORT_EXAMPLE
from service.schemas.export import ExportRequest
from service.schemas.models import ReportResponse
from tests.support.browser import choose, draft, edit, open_page
from tests.support.formats import dicom, facts_of_sr, fhir_validators, header, written_as
from tests.support.service import Live, live_server
from tests.support.tiny import write_tiny_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SNOMED = "http://snomed.info/sct"
EFFUSION = {
    "finding": "Pleural Effusion", "presence": "present", "side": "left", "regions": [], "degree": "mild",
    "degree_words": "small", "concept": "pleural effusion", "words": "Small left effusion", "sentence": 0, "start": 0,
    "end": 19,
}  # fmt: skip
NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A service whose model was trained to write one sentence."""
    folder = tmp_path_factory.mktemp("speaking")
    bundle = write_tiny_bundle(folder / "tiny", retrieval=False, min_length=3, says="Small left effusion.")
    with live_server(bundle, warm_up=False) as live:
        yield live


def post(live: Live, accept: str) -> httpx.Response:
    with live.client() as client:
        answer = client.post("/report", files={"frontal": ("f", dicom())}, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("example", [CASE_EXAMPLE, *REPORT_EXAMPLE["reference_cases"], REPORT_EXAMPLE])
def test_examples_have_the_annotations_of_their_texts(example: dict[str, Any]) -> None:
    assert example["annotations"] == [each.model_dump() for each in read_annotations(example["findings"])]


def test_small_left_effusion_reaches_answer_text_and_fhir(speaking: Live) -> None:
    answer = post(speaking, "application/json").json()
    assert answer["findings"] == "Small left effusion."
    assert answer["annotations"] == [EFFUSION]
    assert "\nLabels: Pleural Effusion: present (left, small)\n" in post(speaking, "text/plain").text
    resource = post(speaking, "application/fhir+json").json()
    for validate in fhir_validators():
        validate(resource)
    (effusion,) = [part for part in resource["contained"] if part["id"].startswith("label-")]
    assert effusion["code"]["coding"][0]["code"] == "60046008"
    assert effusion["valueCodeableConcept"]["text"] == "present"
    parts = [(part["code"]["coding"], part["valueCodeableConcept"]["coding"]) for part in effusion["component"]]
    assert parts == [
        (
            [{"system": SNOMED, "code": "272741003", "display": "Laterality"}],
            [{"system": SNOMED, "code": "7771000", "display": "Left"}],
        ),
        (
            [{"system": SNOMED, "code": "246112005", "display": "Severity"}],
            [{"system": SNOMED, "code": "255507004", "display": "Small"}],
        ),
    ]


def test_small_left_effusion_reaches_the_structured_report(speaking: Live) -> None:
    pytest.importorskip("highdicom", reason="needs pip install highdicom")
    report = pydicom.dcmread(io.BytesIO(post(speaking, "application/dicom").content))
    (labels,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "labels"]
    (effusion,) = labels.ContentSequence
    assert effusion.ConceptNameCodeSequence[0].CodeValue == "60046008"
    parts = [
        (part.RelationshipType, *(code(part[name]) for name in ("ConceptNameCodeSequence", "ConceptCodeSequence")))
        for part in effusion.ContentSequence
    ]
    assert parts == [
        ("HAS CONCEPT MOD", ("272741003", "SCT"), ("7771000", "SCT")),
        ("HAS PROPERTIES", ("246112005", "SCT"), ("255507004", "SCT")),
    ]


def code(sequence: Any) -> tuple[str, str]:
    return sequence.value[0].CodeValue, sequence.value[0].CodingSchemeDesignator


def test_small_left_effusion_reaches_the_page_and_follows_an_edit(speaking: Live, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, reduced_motion="reduce", locale="en")
    open_page(page, speaking.url)
    choose(page)
    draft(page, anyway=True)
    chip = page.locator("#labels .chip[data-finding='Pleural Effusion']")
    assert " ".join(chip.inner_text().split()) == "Pleural Effusion : present · left · small"
    assert chip.get_attribute("title") == "left, small"
    assert page.locator("#legend-sides").is_visible()
    edit(page, "No effusion on the left.")
    page.locator("#legend-sides").wait_for(state="hidden")
    edit(page, "Moderate right effusion with a moderate effusion at the left base.")
    page.wait_for_function("() => document.querySelector('#labels .place')?.textContent.includes('right')")
    assert chip.locator(".place").inner_text().strip() == "· right · moderate / left · moderate"
    assert chip.get_attribute("title") == "right, moderate; left, base, moderate"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.select_option("#language", "zh-Hans")
    assert chip.locator(".place").inner_text().strip() == "· 右侧 · 中度 / 左侧 · 中度"
    page.close()


# --- places ---------------------------------------------------------------------------------------------------------


def observations(report: ReportResponse, finding: str) -> list[dict[str, Any]]:
    contained = diagnostic_report(report, ExportContext(("frontal",)))["contained"]
    return [part for part in contained if part["id"].startswith(f"label-{finding}")]


def test_finding_in_two_places_has_one_observation_for_each() -> None:
    report = written_as("Small left pleural effusion. Large right pleural effusion. Trace effusion on the left, small.")
    whole, *parts = observations(report, "pleural-effusion")
    assert whole["hasMember"] == [{"reference": f"#{part['id']}"} for part in parts]
    assert "component" not in whole
    assert {json.dumps(part["code"]) for part in parts} == {json.dumps(whole["code"])}
    assert "Pleural Effusion: present (left, small; right, large" in plain_text(report)


def test_region_is_the_body_site_and_several_are_components() -> None:
    (one,) = observations(written_as("Opacity in the right lower lobe."), "lung-opacity")
    assert one["bodySite"]["coding"][0] == {"system": SNOMED, "code": "90572001", "display": "Lower lobe of lung"}
    assert [part["code"]["coding"][0]["display"] for part in one["component"]] == ["Laterality"]
    (two,) = observations(written_as("Scarring at the right base and apex."), "lung-opacity")
    assert two["bodySite"] == {"text": "base, apex"}
    named = [part["code"]["coding"][0]["display"] for part in two["component"]]
    assert named == ["Finding", "Finding Site", "Finding Site", "Laterality"]
    assert two["component"][0]["valueCodeableConcept"]["coding"][0] == {
        "system": SNOMED, "code": "12402003", "display": "Scar",
    }  # fmt: skip


def test_structured_report_has_the_side_at_each_finding_site() -> None:
    pytest.importorskip("highdicom", reason="needs pip install highdicom")
    source = SourceImage.from_dataset(header(dicom()))
    written = structured_report(written_as("Scarring at the right base and apex."), 1, [source])
    report = pydicom.dcmread(io.BytesIO(written))
    place = {"concept": "scar", "side": "right", "regions": ["base", "apex"], "degree": None}
    assert facts_of_sr(report)["places"] == {"Lung Opacity": [place]}
    (labels,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "labels"]
    (opacity,) = [item for item in labels.ContentSequence if item.ConceptCodeSequence[0].CodeMeaning == "Present"]
    *sites, scar = opacity.ContentSequence
    assert code(scar["ConceptCodeSequence"]) == ("12402003", "SCT")
    for site in sites:
        assert code(site["ConceptNameCodeSequence"]) == ("363698007", "SCT")
        assert code(site.ContentSequence[0]["ConceptCodeSequence"]) == ("24028007", "SCT")


def test_structured_report_gives_no_site_both_sides() -> None:
    pytest.importorskip("highdicom", reason="needs pip install highdicom")
    source = SourceImage.from_dataset(header(dicom()))
    written = structured_report(written_as("Opacity in the right upper and left lower lobes."), 1, [source])
    report = pydicom.dcmread(io.BytesIO(written))
    place = {"concept": None, "side": "both", "regions": ["upper lobe", "lower lobe"], "degree": None}
    assert facts_of_sr(report)["places"] == {"Lung Opacity": [place]}
    (labels,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "labels"]
    (opacity,) = [item for item in labels.ContentSequence if item.ConceptCodeSequence[0].CodeMeaning == "Present"]
    assert not any("ContentSequence" in item for item in opacity.ContentSequence)


@pytest.mark.parametrize("findings", ["Effusion. No large left pneumothorax.", "Clear lungs.", "Mild scoliosis."])
def test_text_without_side_region_and_degree_of_a_present_label_is_written_as_before(findings: str) -> None:
    report = written_as(findings)
    assert report.annotations or findings == "Clear lungs."
    before = report.model_copy(update={"annotations": []})
    for write in (plain_text, lambda each: diagnostic_report(each, ExportContext(("frontal",)), NOW)):
        assert write(report) == write(before)


# --- texts ----------------------------------------------------------------------------------------------------------


def test_words_are_found_at_their_offsets_in_the_text() -> None:
    text = "Clear.  Small left effusion; mild edema. \n\nNo pneumothorax. Small left effusion."
    found = read_annotations(text)
    assert [text[each.start : each.end] for each in found] == [each.words for each in found]
    assert [each.start for each in found if each.finding == "Pleural Effusion"] == [8, 60]


def test_annotations_of_an_edit_are_read_from_it() -> None:
    report = {**REPORT_EXAMPLE, "annotations": [EFFUSION]}
    edited = ExportRequest.model_validate({"report": report, "findings": "Large right effusion."}).edited_report()
    assert [(each.side, each.degree_words) for each in edited.annotations] == [("right", "large")]
    unedited = ExportRequest.model_validate({"report": report}).edited_report()
    assert [each.model_dump() for each in unedited.annotations] == [EFFUSION]
    old = {name: part for name, part in REPORT_EXAMPLE.items() if name != "annotations"}
    assert ExportRequest.model_validate({"report": old}).edited_report().annotations == []


def test_mentions_beyond_the_limit_are_left_out() -> None:
    assert len(read_annotations("Edema. Effusion. " * MAX_ANNOTATIONS)) == MAX_ANNOTATIONS
