"""The library: every kind of input gives the draft of ``POST /report``; maps are arrays; errors name the remedy."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import cxr_report
from cxr_report import ImageError, LoadError, StudyDrafter, heatmap, load_bundle, overlay
from model.images import read_image, read_pixels
from model.types import Draft, SentenceAttention, SentenceEvidence
from tests.support.dicom import dicom
from tests.support.paths import REPOSITORY
from tests.support.service import png
from tests.support.tiny import write_denying_bundle

FRONTAL, LATERAL = png(90, 120), png(100, 80)


@pytest.fixture(scope="module")
def drafter(bundle: Path) -> StudyDrafter:
    return load_bundle(str(bundle), device="cpu")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    """A draft with maps of both kinds, in which some sentences name a finding."""
    path = write_denying_bundle(tmp_path_factory.mktemp("bundles") / "denying")
    return load_bundle(path, device="cpu").draft(FRONTAL, LATERAL, attention=True, evidence=True)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_paths_bytes_arrays_and_pil_images_give_the_same_draft(drafter: StudyDrafter, tmp_path: Path) -> None:
    (tmp_path / "frontal.png").write_bytes(FRONTAL)
    (tmp_path / "lateral.png").write_bytes(LATERAL)
    expected = drafter.draft(FRONTAL, LATERAL)
    for frontal, lateral in (
        (str(tmp_path / "frontal.png"), tmp_path / "lateral.png"),
        (np.asarray(opened(FRONTAL)), np.asarray(opened(LATERAL))),
        (opened(FRONTAL), opened(LATERAL)),
    ):
        draft = drafter.draft(frontal, lateral)
        assert draft.sentences == expected.sentences
        assert draft.reference_cases == expected.reference_cases
    (frontal_only,) = drafter.draft_all([(FRONTAL, None)])
    assert [warning.code for warning in frontal_only.warnings] == ["missing_view"]


def test_the_response_is_that_of_post_report(drafter: StudyDrafter, client: httpx.Client) -> None:
    files = {"frontal": ("f", FRONTAL, "image/png"), "lateral": ("l", LATERAL, "image/png")}
    served = client.post("/report", files=files, data={"top_k": "2"}).json()
    response = drafter.response(drafter.draft(FRONTAL, LATERAL, top_k=2))
    for one in (served, response):
        del one["report_id"], one["timings_ms"]
    assert response == served


def test_batches_do_not_change_drafts(drafter: StudyDrafter) -> None:
    studies = [(png(90 + row, 120), LATERAL if row % 2 else None) for row in range(5)]
    together = list(drafter.draft_all(studies, batch_size=3))
    alone = [drafter.draft(*study) for study in studies]
    assert [draft.findings for draft in together] == [draft.findings for draft in alone]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_in_memory_has_the_pixels_of_its_file(mode: str) -> None:
    grey = np.random.default_rng(1).integers(0, 4096 if mode == "I;16" else 256, (80, 70))
    image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.uint8))
    image = image if mode == "I;16" else image.convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    expected = read_image(file.getvalue(), 64).pixels
    np.testing.assert_array_equal(read_pixels(opened(file.getvalue()), 64).pixels, expected)
    if mode in ("L", "RGB", "RGBA", "I;16"):
        np.testing.assert_array_equal(read_pixels(np.asarray(image), 64).pixels, expected)


def test_wide_arrays_are_scaled_by_minimum_and_maximum() -> None:
    values = np.linspace(-1, 1, 64 * 64).reshape(64, 64)
    pixels = read_pixels(values, 64).pixels
    assert (pixels.min(), pixels.max()) == (0, 255)
    scaled = np.arange(64 * 64, dtype=np.int32).reshape(64, 64) - 1000
    np.testing.assert_array_equal(pixels, read_pixels(scaled, 64).pixels)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((64, 64, 2), np.uint8), r"is \(64, 64, 2\) uint8. Give \(H, W\)"),
        (np.zeros(64, np.uint8), r"Give \(H, W\)"),
        (np.zeros((64, 64, 3), np.uint16), "Give colours as uint8"),
        (np.zeros((64, 64), np.complex64), "grey as numbers"),
        (np.full((64, 64), np.nan), "not finite"),
        (np.zeros((0, 64), np.uint8), "at least 32 on each side"),
        (np.zeros((9000, 9000), np.uint8), "lower resolution"),
    ],
)
def test_refuses_unusual_arrays_with_a_remedy(drafter: StudyDrafter, array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message) as refused:
        drafter.draft(lateral=array)
    assert str(refused.value).startswith("lateral: ")


def test_errors_name_the_image_and_the_remedy(drafter: StudyDrafter, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageError, match=r"frontal .*notes.txt: .*Send a PNG, JPEG or DICOM file") as refused:
        drafter.draft(tmp_path / "notes.txt")
    assert refused.value.code == "not_an_image"
    with pytest.raises(FileNotFoundError, match="give the path of a PNG, JPEG or DICOM file"):
        drafter.draft("missing.png")
    with pytest.raises(TypeError, match="frontal is a int; give a path, bytes, a NumPy array or a PIL image"):
        drafter.draft(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neither a frontal nor a lateral"):
        drafter.draft()
    with pytest.raises(ValueError, match="top_k=51 must lie between 1 and 50"):
        drafter.draft(FRONTAL, top_k=51)
    with pytest.raises(ImageError, match="cut short or damaged"):
        drafter.draft(opened(FRONTAL[: len(FRONTAL) // 2]))
    with pytest.raises(TypeError, match=r"a study is a bytes; give \(frontal, lateral\)"):
        next(drafter.draft_all([FRONTAL]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="precision=fp8: use one of fp32, bf16"):
        load_bundle("missing", precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(LoadError, match="missing"):
        load_bundle("missing")
    with pytest.raises(LoadError, match="use device=cpu"):
        load_bundle(tmp_path, device="cuda:77")


def test_a_dicom_file_warns_of_its_other_view(drafter: StudyDrafter) -> None:
    data = dicom(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), ViewPosition="LL")
    assert "view_mismatch" in [warning.code for warning in drafter.draft(frontal=data).warnings]


# --- maps ---------------------------------------------------------------------------------------------------------


def naming(draft: Draft) -> int:
    """The first sentence with an evidence map."""
    return next(number for number, part in enumerate(draft.sentences) if part.evidence)


def test_a_map_without_a_size_is_the_grid_of_patches(mapped: Draft) -> None:
    number = naming(mapped)
    evidence, attention = mapped.sentences[number].evidence, mapped.sentences[number].attention
    assert evidence is not None
    assert attention is not None
    np.testing.assert_array_equal(heatmap(mapped, number), np.array(evidence.patches["frontal"], np.float32))
    lateral = heatmap(mapped, number, "lateral", kind="attention")
    np.testing.assert_array_equal(lateral, np.array(attention.patches["lateral"], np.float32))
    assert heatmap(mapped, number, size=(90, 120)).shape == (90, 120)


def test_the_overlay_has_the_colours_of_the_page(mapped: Draft) -> None:
    number = naming(mapped)
    grids = {"frontal": ((1.0, -2.0), (0.0, 0.5)), "lateral": ((0.1, 0.1), (0.1, 0.1))}
    part = replace(
        mapped.sentences[number],
        evidence=SentenceEvidence("Fracture", grids),
        attention=SentenceAttention({"frontal": ((0.1, 0.1), (0.1, 0.5))}, (0.2,)),
    )
    draft = replace(mapped, sentences=(part,))
    picture = np.full((40, 60), 100, np.uint8)
    shown = overlay(draft, 0, picture)
    corners = [shown[row, column].tolist() for row in (0, -1) for column in (0, -1)]
    warm, cold = np.array([255, 176, 59]), np.array([74, 168, 255])
    colours = (warm, cold, warm, warm)
    opacity = 0.75 * np.array([0.5, 1, 0, 0.25])  # the largest contribution of the draft is 2
    blended = [100 * (1 - share) + colour * share for share, colour in zip(opacity, colours, strict=True)]
    np.testing.assert_allclose(corners, blended, atol=0.5)
    np.testing.assert_array_equal(overlay(draft, 0, Image.fromarray(picture)), shown)
    with_file = overlay(draft, 0, dicom(np.tile(np.arange(60, dtype=np.uint16), (40, 1))))
    assert with_file.shape == (40, 60, 3)
    attended = overlay(draft, 0, picture, kind="attention")
    assert attended[0, 0].tolist() == [100, 100, 100]
    np.testing.assert_allclose(attended[-1, -1], 100 * 0.25 + warm * 0.75, atol=0.5)
    assert overlay(draft, 0, picture, "lateral").shape == (40, 60, 3)


def test_a_missing_map_names_the_remedy(mapped: Draft, drafter: StudyDrafter) -> None:
    plain = drafter.draft(FRONTAL)
    with pytest.raises(ValueError, match="draft with evidence=True"):
        heatmap(plain, 0)
    with pytest.raises(ValueError, match="draft with attention=True"):
        overlay(plain, 0, np.zeros((64, 64), np.uint8), kind="attention")
    with pytest.raises(ValueError, match="sentence 99: the draft has"):
        heatmap(mapped, 99)
    with pytest.raises(ImageError, match=r"picture: The image is \(4, 4\) float64. Give"):
        overlay(mapped, naming(mapped), np.zeros((4, 4)))
    with pytest.raises(FileNotFoundError, match="give the path"):
        overlay(mapped, naming(mapped), "missing.png")
    with pytest.raises(ValueError, match="kind 'saliency' is unknown; use one of evidence, attention"):
        heatmap(mapped, naming(mapped), kind="saliency")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this draft has frontal, lateral"):
        heatmap(mapped, naming(mapped), "left")


# --- the package --------------------------------------------------------------------------------------------------


def test_the_import_loads_nothing() -> None:
    code = (
        "import sys, cxr_report, model; assert not {'torch', 'numpy', 'fastapi'} & set(sys.modules);"
        "assert cxr_report.__version__; assert set(cxr_report._HOMES) | {'__version__'} == set(cxr_report.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_every_public_name_exists() -> None:
    for name in cxr_report.__all__:
        assert getattr(cxr_report, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'drafter'; it has FINDINGS"):
        _ = cxr_report.drafter
