"""The reader of sentences: side, regions, degree and concept of each finding, and the scope of each modifier.

All sentences are invented for these tests.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text.annotations import Annotation, annotate_report, annotate_sentence, sentences_of
from model.text.labeler import FINDINGS, NO_FINDING, RANK, label_report

MAX_TIMES_THE_LABELER = 12

Expected = tuple[str, str, str | None, tuple[str, ...], str | None]  # finding, presence, side, regions, degree


def read(sentence: str) -> list[Expected]:
    return [(a.finding, a.presence, a.side, a.regions, a.degree) for a in annotate_sentence(sentence)]


SENTENCES: list[tuple[str, list[Expected]]] = [
    # a modifier belongs to the finding of its phrase
    (
        "Small left effusion and right basilar atelectasis.",
        [
            ("Pleural Effusion", "present", "left", (), "mild"),
            ("Atelectasis", "present", "right", ("base",), None),
        ],
    ),
    (
        "small left effusion right basilar atelectasis",
        [
            ("Pleural Effusion", "present", "left", (), "mild"),
            ("Atelectasis", "present", "right", ("base",), None),
        ],
    ),
    (
        "Opacity at the right base and a small effusion on the left.",
        [
            ("Lung Opacity", "present", "right", ("base",), None),
            ("Pleural Effusion", "present", "left", (), "mild"),
        ],
    ),
    (
        "The heart is mildly enlarged and there is a large right pleural effusion.",
        [
            ("Cardiomegaly", "present", None, (), "mild"),
            ("Pleural Effusion", "present", "right", (), "severe"),
        ],
    ),
    (
        "The right hemidiaphragm is elevated and there is a trace left effusion.",
        [
            ("elevated diaphragm", "present", "right", (), None),
            ("Pleural Effusion", "present", "left", (), "minimal"),
        ],
    ),
    ("Moderate-sized right pneumothorax.", [("Pneumothorax", "present", "right", (), "moderate")]),
    ("Small to moderate left effusion.", [("Pleural Effusion", "present", "left", (), "moderate")]),
    ("Mild cardiomegaly.", [("Cardiomegaly", "present", None, (), "mild")]),
    # both sides
    ("Bilateral effusions, left greater than right.", [("Pleural Effusion", "present", "both", (), None)]),
    ("Effusions, R>L.", [("Pleural Effusion", "present", "both", (), None)]),
    (
        "Opacities in the right upper and left lower lobes.",
        [("Lung Opacity", "present", "both", ("upper lobe", "lower lobe"), None)],
    ),
    ("Bibasilar atelectasis.", [("Atelectasis", "present", "both", ("base",), None)]),
    ("Biapical pleural thickening.", [("Pleural Other", "present", "both", ("apex",), None)]),
    ("Scarring in the apices.", [("Lung Opacity", "present", "both", ("apex",), None)]),
    # a region that implies its side
    ("Lingular scarring.", [("Lung Opacity", "present", "left", ("lingula",), None)]),
    ("Middle lobe consolidation.", [("Consolidation", "present", "right", ("middle lobe",), None)]),
    ("A right-sided chest port.", [("Support Devices", "present", "right", (), None)]),
    # negation and doubt
    ("No effusion on the left.", [("Pleural Effusion", "absent", "left", (), None)]),
    ("No large effusion.", [("Pleural Effusion", "absent", None, (), None)]),
    ("The left lung is clear.", [("Lung Opacity", "absent", "left", (), None)]),
    (
        "Left basilar atelectasis or pneumonia.",
        [
            ("Atelectasis", "uncertain", "left", ("base",), None),
            ("Pneumonia", "uncertain", "left", ("base",), None),
        ],
    ),
    # a list, and an explanation, share a location
    (
        "Atelectasis and effusion at the left base.",
        [
            ("Atelectasis", "present", "left", ("base",), None),
            ("Pleural Effusion", "present", "left", ("base",), None),
        ],
    ),
    (
        "Bibasilar opacities, likely atelectasis.",
        [
            ("Lung Opacity", "present", "both", ("base",), None),
            ("Atelectasis", "present", "both", ("base",), None),
        ],
    ),
    (
        "Opacity left base may represent atelectasis.",
        [
            ("Lung Opacity", "present", "left", ("base",), None),
            ("Atelectasis", "uncertain", "left", ("base",), None),
        ],
    ),
    (
        "Mild left opacity, likely atelectasis.",
        [("Lung Opacity", "present", "left", (), "mild"), ("Atelectasis", "present", "left", (), None)],
    ),
    ("Density in the right apex, compatible with a granuloma.", [("granuloma", "present", "right", ("apex",), None)]),
    (
        "Left lower lobe pneumonia and minimal scarring or atelectasis in the right base.",
        [
            ("Pneumonia", "present", "left", ("lower lobe",), None),
            ("Lung Opacity", "present", "right", ("base",), "minimal"),
            ("Atelectasis", "uncertain", "right", ("base",), "minimal"),
        ],
    ),
    (
        "Large right effusion and probable atelectasis.",
        [("Pleural Effusion", "present", "right", (), "severe"), ("Atelectasis", "present", "right", (), None)],
    ),
    # words of something else
    (
        "Right upper lobe granuloma and enlarged left hilar nodes.",
        [("granuloma", "present", "right", ("upper lobe",), None)],
    ),
    ("Left hilar fullness and right opacity.", [("Lung Opacity", "present", "right", (), None)]),
    ("Opacity of the right base compared to the left.", [("Lung Opacity", "present", "right", ("base",), None)]),
    ("Left IJ line that ends in the right brachiocephalic vein.", [("Support Devices", "present", "left", (), None)]),
    ("Left PICC with its tip in the right atrium.", [("Support Devices", "present", "left", (), None)] * 2),
    (
        "The patient is rotated to the left, limiting the view of the effusion.",
        [("Pleural Effusion", "present", None, (), None)],
    ),
    (
        "The trachea is deviated to the right by a left upper lobe mass.",
        [("Lung Lesion", "present", "left", ("upper lobe",), None)],
    ),
    (
        "Leftward shift of the mediastinum from the large right effusion.",
        [("Pleural Effusion", "present", "right", (), "severe")],
    ),
    (
        "Right IJ catheter, feeding tube and effusion.",
        [
            ("Support Devices", "present", "right", (), None),
            ("Support Devices", "present", None, (), None),
            ("Pleural Effusion", "present", None, (), None),
        ],
    ),
    # a side that the finding does not have
    ("Opacity on the left, not on the right.", [("Lung Opacity", "present", "left", (), None)]),
    ("Right but not left pleural effusion.", [("Pleural Effusion", "present", None, (), None)]),
    ("Nodule in the left or right base.", [("Lung Lesion", "present", None, ("base",), None)]),
    ("No left or right effusion.", [("Pleural Effusion", "absent", "both", (), None)]),
    # each side has a degree
    ("Mild right and severe left atelectasis.", [("Atelectasis", "present", "both", (), None)]),
    ("Low lung volumes cause mild crowding.", [("low lung volumes", "present", None, (), None)]),
    ("Cardiomegaly and mild vascular prominence.", [("Cardiomegaly", "present", None, (), None)]),
    ("The effusion on the left is slightly larger.", [("Pleural Effusion", "present", "left", (), None)]),
    ("The previously large left effusion is now small.", [("Pleural Effusion", "present", "left", (), "mild")]),
    ("The large left effusion is now small.", [("Pleural Effusion", "present", "left", (), "mild")]),
    ("The effusion on the left is small.", [("Pleural Effusion", "present", "left", (), "mild")]),
    ("Opacity lung base left mild.", [("Lung Opacity", "present", "left", ("base",), "mild")]),
    ("Hiatal hernia, moderate-sized.", [("hiatal hernia", "present", None, (), "moderate")]),
    ("The heart is large.", [("Cardiomegaly", "present", None, (), None)]),
    ("The heart is slightly large.", [("Cardiomegaly", "present", None, (), "mild")]),
    # a location before its finding
    ("In the right upper lobe, there is a 5 mm nodule.", [("Lung Lesion", "present", "right", ("upper lobe",), None)]),
    # bones, and what no label covers
    ("Healed fractures of the left sixth and seventh ribs.", [("Fracture", "present", "left", ("rib",), None)]),
    ("Old left 5th and 6th rib fractures.", [("Fracture", "present", "left", ("rib",), None)]),
    ("Flattened hemidiaphragms.", [("flattened diaphragm", "present", "both", (), None)]),
    ("Mild thoracic dextroscoliosis.", [("scoliosis", "present", "right", ("thoracic spine",), "mild")]),
]


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES)
def test_reads_side_regions_and_degree_of_each_finding(sentence: str, expected: list[Expected]) -> None:
    assert read(sentence) == expected


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in SENTENCES])
def test_words_are_the_sentence_between_the_offsets(sentence: str) -> None:
    for found in annotate_sentence(sentence):
        assert sentence[found.start : found.end] == found.words


def test_keeps_words_degree_and_concept_as_written() -> None:
    assert annotate_sentence("Dr. N: a Small, Left pleural EFFUSION is seen.", 3) == (
        Annotation(
            finding="Pleural Effusion", presence="present", side="left", regions=(), degree="mild",
            degree_words="small", concept="pleural effusion", words="Small, Left pleural EFFUSION", sentence=3,
            start=9, end=37,
        ),
    )  # fmt: skip


def test_numbers_the_sentences_of_a_report() -> None:
    text = "Heart size is normal. No effusion; mild scarring at 2.5 cm."
    assert sentences_of(text) == ("Heart size is normal.", "No effusion;", "mild scarring at 2.5 cm.")
    assert [(found.finding, found.sentence) for found in annotate_report(text)] == [
        ("Cardiomegaly", 0), ("Pleural Effusion", 1), ("Lung Opacity", 2),
    ]  # fmt: skip


WORDS = [
    *(
        "no",
        "mild",
        "left",
        "right",
        "bilateral",
        "effusion",
        "and",
        "or",
        "opacity",
        ",",
        ".",
        ";",
        "but",
        "heart",
        "is",
    ),
    *(
        "enlarged",
        "normal",
        "lungs",
        "clear",
        "may represent",
        "atelectasis",
        "at the base",
        "with",
        "without",
        "İ",
        "-",
    ),
    *("pneumonia", "cannot be excluded", "no change", "scoliosis", "versus", "upper lobes"),
]


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_strongest_presence_of_each_label_is_that_of_the_labeler(text: str) -> None:
    found = annotate_report(text)
    labels = {name: label for name, label in label_report(text).items() if name != NO_FINDING}
    strongest = {
        name: max((a.presence for a in found if a.finding == name), key=RANK.__getitem__, default=None)
        for name in FINDINGS if name != NO_FINDING
    }  # fmt: skip
    assert strongest == labels
    parts = sentences_of(text)
    assert all(parts[a.sentence][a.start : a.end] == a.words for a in found)


@given(st.text(max_size=60), st.text(max_size=60))
def test_offsets_are_of_the_sentence_as_given(before: str, after: str) -> None:
    text = f"{before} left effusion {after}"
    for part, sentence in enumerate(sentences_of(text)):
        assert all(sentence[a.start : a.end] == a.words for a in annotate_sentence(sentence, part))


def test_time_for_a_hostile_text_is_near_that_of_the_labeler() -> None:
    text = "".join(f"{'lower upper left and opacity or mild ' * 26}{number} " for number in range(20))
    start = time.process_time()
    annotate_report(text)
    between = time.process_time()
    label_report(text, use_cache=False)
    assert between - start < MAX_TIMES_THE_LABELER * (time.process_time() - between)
