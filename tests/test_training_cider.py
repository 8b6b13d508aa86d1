"""CIDEr-D with cached references: pycocoevalcap's values, other document frequencies, the end token, errors."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from model.text.tokenizer import clean_report_r2gen
from training.phantoms.report import compose_report
from training.phantoms.study import PHANTOM_FINDINGS, chest_of
from training.scoring.cider import CiderD, Floats, _displaced

Items = Sequence[Sequence[str]]

REFERENCES = (
    ("the heart is large . there is a left effusion .",),
    ("the lungs are clear . the heart is normal .", "no effusion . the heart is normal . the lungs are clear ."),
    ("there is a pacemaker . the lungs are clear .",),
    ("no effusion . no effusion . no effusion .",),
)
LONG = "pneumonoultramicroscopic"  # 24 letters, of which the first 16 stand alone as well


def pycocoevalcap(references: Items, hypotheses: Sequence[str]) -> tuple[float, Floats]:
    """Mean and scores; hypothesis i stands against references i."""
    mean, scores = Cider().compute_score(
        {i: [*texts] for i, texts in enumerate(references)}, {i: [text] for i, text in enumerate(hypotheses)}
    )
    return float(mean), scores


def by_definition(hypothesis: str, references: Sequence[str], documents: Items) -> float:
    """CIDEr-D of one draft as the paper writes it, with pycocoevalcap's lengths (pairs of words), word by word."""

    def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for n in (1, 2, 3, 4):
        held = Counter(ngram for item in documents for ngram in set().union(*(ngrams(text, n) for text in item)))

        def vector(text: str, n: int = n, held: Counter[tuple[str, ...]] = held) -> dict[tuple[str, ...], float]:
            return {
                ngram: times * (math.log(len(documents)) - math.log(max(held[ngram], 1)))
                for ngram, times in ngrams(text, n).items()
            }

        draft = vector(hypothesis)
        for reference in references:
            truth = vector(reference)
            dot = sum(min(weight, truth.get(ngram, 0.0)) * truth.get(ngram, 0.0) for ngram, weight in draft.items())
            norm = math.hypot(*draft.values()) * math.hypot(*truth.values())
            apart = ngrams(hypothesis, 2).total() - ngrams(reference, 2).total()
            total += (dot / norm if norm else 0.0) * math.exp(-(apart**2) / (2 * 6.0**2)) / len(references)
    return 10 * total / 4


def phantom_reports(count: int) -> list[str]:
    reports = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 5])
        findings = frozenset(name for name in PHANTOM_FINDINGS if rng.random() < 0.2)
        reports.append(clean_report_r2gen(compose_report(chest_of(seed, findings), rng)[0]))
    return reports


def perturbed(text: str, rng: np.random.Generator) -> str:
    """Some words dropped, doubled, or put in the place of others."""
    words = text.split()
    for _ in range(int(rng.integers(1, 8))):
        place = int(rng.integers(len(words)))
        words[place : place + 1] = [[], [words[place]] * 2, ["zzz"], [words[int(rng.integers(len(words)))]]][
            int(rng.integers(4))
        ]
        words = words or ["."]
    return " ".join(words)


# --- the value --------------------------------------------------------------------------------------------------------

known = st.sampled_from(["a", "b", "c", "d", ".", "é", LONG, LONG[:16]])
texts = st.lists(known, min_size=1, max_size=14).map(" ".join)
drafts = st.lists(st.one_of(known, st.sampled_from(["x", "y", LONG[:20]])), max_size=14).map(" ".join)
items = st.lists(texts, min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(items, drafts), min_size=1, max_size=8))
@example(pairs=[(["a"], "a")])  # one item: every tf-idf is 0
@example(pairs=[(["a b c d"], "x y x y x"), (["b"], "b")])  # unknown n-grams that stand twice, and some that do not
@example(pairs=[(["a a a a b"], "a a"), (["a"], "a a a"), (["b"], "")])  # clipped on either side
def test_scores_are_those_of_pycocoevalcap(pairs: list[tuple[list[str], str]]) -> None:
    references, hypotheses = [item for item, _ in pairs], [draft for _, draft in pairs]
    mean, expected = pycocoevalcap(references, hypotheses)
    scores = CiderD(references).scores(hypotheses, range(len(pairs)))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_of_whole_reports_are_those_of_pycocoevalcap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reports = phantom_reports(300)  # more than are handled at once
    references = [[reports[i], *(perturbed(reports[i], rng) for _ in range(rng.integers(3)))] for i in range(300)]
    hypotheses = [perturbed(report, rng) for report in reports]
    mean, expected = pycocoevalcap(references, hypotheses)
    scores = CiderD(references).scores(hypotheses, range(300))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(mean, abs=1e-9)
    assert 1 < scores.mean() < 9.9  # neither all alike nor all different


def test_scores_with_a_large_vocabulary_are_those_of_pycocoevalcap() -> None:
    """Thousands of words, of which some must meet at one place of every table; short and long, ASCII and not."""
    rng = np.random.default_rng(0)
    spellings = ["w{}", "{}", "wörd{}", "a-very-long-word-{}", "{}-a-very-long-word"]
    vocabulary = [spelling.format(number) for number in range(1200) for spelling in spellings]
    ascii_only = [word for word in vocabulary if word.isascii()]
    for words in (vocabulary, ascii_only):
        references = [[" ".join(rng.choice(words, 40))] for _ in range(300)]
        hypotheses = [perturbed(f"{references[i][0]} {' '.join(rng.choice(words, 10))}", rng) for i in range(300)]
        _, expected = pycocoevalcap(references, hypotheses)
        scores = CiderD(references).scores(hypotheses, range(300))
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "draft",
    [
        "  the lungs  are clear . ",
        "the lungs are\tclear .\nthe heart",
        "the\x1flungs are clear .",
        "the lungs\u00a0are clear .",
        "the lungs\x7f are clear .",
        "the lungs\0 are clear .",
        "the lungs are clear \ud800 .",
    ],
    ids=ascii,
)
def test_strings_are_split_as_python_splits_them(draft: str) -> None:
    """Those that are read as bytes and those that cannot be; a draft beside it is none the worse."""
    _, expected = pycocoevalcap(REFERENCES, [draft, draft, "", REFERENCES[3][0]])
    scores = CiderD(REFERENCES).scores([draft, draft, "", REFERENCES[3][0]], range(4))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert scores[1] > 0


def test_document_frequencies_of_another_set() -> None:
    rng = np.random.default_rng(3)
    reports = phantom_reports(60)
    documents = [[report] for report in reports[:50]] + [[reports[50], reports[51]]]
    references = [[reports[i], perturbed(reports[i], rng)] for i in range(45, 60)]
    hypotheses = [perturbed(texts[0], rng) for texts in references]
    scores = CiderD(references, documents).scores(hypotheses, range(15))
    expected = [by_definition(draft, texts, documents) for draft, texts in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert np.abs(scores - CiderD(references).scores(hypotheses, range(15))).max() > 0.01


@settings(max_examples=60, deadline=None)
@given(item=items, documents=st.lists(items, min_size=1, max_size=5), draft=drafts)
def test_document_frequencies_by_definition(item: list[str], documents: list[list[str]], draft: str) -> None:
    score = CiderD([item], documents).scores([draft], [0])[0]
    assert score == pytest.approx(by_definition(draft, item, documents), abs=1e-9)


def test_unknown_words_lengthen_the_draft_and_are_told_apart() -> None:
    scorer, reference = CiderD(REFERENCES), REFERENCES[2][0]
    same, other = scorer.scores([f"{reference} x x", f"{reference} x y"], [2, 2])
    weight = math.log(4)
    for score, draft in ((same, f"{reference} x x"), (other, f"{reference} x y")):
        assert score == pytest.approx(by_definition(draft, REFERENCES[2], REFERENCES), abs=1e-9)
    assert (2 * weight) ** 2 > 2 * weight**2  # the norm of two that are the same is the greater one
    assert same < other < scorer.scores([reference], [2])[0] == pytest.approx(10.0)


def test_an_empty_draft_scores_nothing() -> None:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for end in (None, "<eos>"):
            scores = CiderD(REFERENCES, end=end).scores(["", "  ", "the heart is large .", ""], [0, 1, 0, 3])
            assert scores[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
            assert scores[2] > 0
            assert CiderD(REFERENCES, end=end).scores(["", ""], [0, 1]).tolist() == [0.0, 0.0]
    assert CiderD(REFERENCES).scores([], []).shape == (0,)


# --- many drafts ------------------------------------------------------------------------------------------------------


def test_drafts_that_share_an_item() -> None:
    rng = np.random.default_rng(4)
    references = [[report] for report in phantom_reports(30)]
    rows = np.repeat(rng.permutation(30), 5)
    hypotheses = [perturbed(references[row][0], rng) for row in rows]
    # pycocoevalcap sees an item five times; so do the document frequencies
    _, expected = pycocoevalcap([references[row] for row in rows], hypotheses)
    scorer = CiderD(references, [references[row] for row in rows])
    np.testing.assert_allclose(scorer.scores(hypotheses, rows), expected, rtol=0, atol=1e-9)


def test_many_at_once_equal_one_by_one_in_any_order_and_from_threads() -> None:
    rng = np.random.default_rng(5)
    references = [[report, perturbed(report, rng)][: 1 + i % 2] for i, report in enumerate(phantom_reports(40))]
    rows = rng.integers(0, 40, 300)
    hypotheses = [perturbed(references[row][0], rng) for row in rows]
    scorer = CiderD(references)
    scores = scorer.scores(hypotheses, rows)
    single = [scorer.scores([draft], [int(row)])[0] for draft, row in zip(hypotheses, rows, strict=True)]
    np.testing.assert_allclose(scores, single, rtol=0, atol=1e-12)
    order = rng.permutation(300)
    np.testing.assert_allclose(scorer.scores([hypotheses[i] for i in order], rows[order]), scores[order], atol=1e-12)
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: scorer.scores(hypotheses, rows), range(8)):
            assert again.tolist() == scores.tolist()


def test_token_ids_score_like_the_words_they_stand_for() -> None:
    rng = np.random.default_rng(6)
    reports = phantom_reports(20)
    ids = {word: number for number, word in enumerate(sorted({word for report in reports for word in report.split()}))}
    hypotheses = [perturbed(report, rng).replace("zzz", "") for report in reports]
    scores = CiderD([[report] for report in reports], end="<eos>").scores(hypotheses, range(20))
    of_ids = CiderD([[[ids[word] for word in report.split()]] for report in reports], end=len(ids))
    encoded = [[ids[word] for word in draft.split()] for draft in hypotheses]
    np.testing.assert_allclose(of_ids.scores(encoded, range(20)), scores, rtol=0, atol=1e-12)
    of_lists = CiderD([[report.split()] for report in reports], end="<eos>")
    np.testing.assert_allclose(of_lists.scores(hypotheses, range(20)), scores, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_lists.scores([d.split() for d in hypotheses], range(20)), scores, rtol=0, atol=1e-12)


# --- the end token ----------------------------------------------------------------------------------------------------


def test_the_end_stands_in_drafts_references_and_documents_alike() -> None:
    rng = np.random.default_rng(7)
    references = [[report, perturbed(report, rng)] for report in phantom_reports(20)]
    documents = [[report] for report in phantom_reports(35)]
    hypotheses = [perturbed(texts[0], rng) for texts in references]

    def ended(items: Items) -> list[list[str]]:
        return [[f"{text} <eos>" for text in item] for item in items]

    scores = CiderD(references, documents, end="<eos>").scores(hypotheses, range(20))
    by_hand = CiderD(ended(references), ended(documents)).scores([f"{draft} <eos>" for draft in hypotheses], range(20))
    np.testing.assert_allclose(scores, by_hand, rtol=0, atol=1e-12)
    _, expected = pycocoevalcap(ended(references), [f"{draft} <eos>" for draft in hypotheses])
    np.testing.assert_allclose(
        CiderD(references, end="<eos>").scores(hypotheses, range(20)), expected, rtol=0, atol=1e-9
    )
    assert np.abs(scores - CiderD(references, documents).scores(hypotheses, range(20))).max() > 1e-3


def test_the_end_makes_breaking_off_cost_more() -> None:
    whole = REFERENCES[0][0]
    broken = whole.removesuffix(" effusion .")
    without, with_end = (CiderD(REFERENCES, end=end).scores([whole, broken], [0, 0]) for end in (None, "<eos>"))
    assert without[0] == with_end[0] == pytest.approx(10.0)
    assert with_end[1] < without[1] < 10


# --- errors and tables ------------------------------------------------------------------------------------------------


def test_references_that_do_not_do() -> None:
    with pytest.raises(ValueError, match="references has no items"):
        CiderD([])
    with pytest.raises(ValueError, match="documents has no items"):
        CiderD(REFERENCES, [])
    with pytest.raises(ValueError, match=r"references\[1\] has no references"):
        CiderD([["a"], []])
    with pytest.raises(ValueError, match=r"documents\[0\] is \['a', ' '\].*without words"):
        CiderD([["a"]], [["a", " "]])
    with pytest.raises(ValueError, match=r"references\[0\] is the string 'a b'"):
        CiderD(["a b", "c"])
    for end in ("", " ", "the end"):
        with pytest.raises(ValueError, match=f"end is {end!r}"):
            CiderD(REFERENCES, end=end)


def test_rows_that_do_not_do() -> None:
    scorer = CiderD(REFERENCES)
    assert len(scorer) == 4
    with pytest.raises(ValueError, match="2 hypotheses came with 1 rows"):
        scorer.scores(["a", "b"], [0])
    for row in (4, -1):
        with pytest.raises(ValueError, match=f"row {row} is out of range; the 4 items"):
            scorer.scores(["a", "b"], [0, row])
    with pytest.raises(TypeError):
        scorer.scores(["a"], [0.5])  # type: ignore[list-item]


@pytest.mark.parametrize("seed", range(5))
def test_displaced_rows_never_meet(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((80, 300)) < rng.random((80, 1)) ** 6  # few full rows, many with one entry or none
    rows, columns = np.nonzero(table)
    slots = _displaced(rows, columns)
    assert len(set(slots.tolist())) == rows.size
    for row in range(80):
        assert len(set((slots - columns)[rows == row].tolist())) <= 1
    assert slots.max() < 6 * rows.size + 300
