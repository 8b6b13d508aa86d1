"""CIDEr-D with cached references equals pycocoevalcap; other document frequencies, one text against all, errors."""

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
from training.scoring.cider import CiderD
from training.scoring.ngrams import Floats

REFERENCES = (
    "the heart is large . there is a left effusion .",
    "no effusion . the heart is normal . the lungs are clear .",
    "there is a pacemaker . the lungs are clear .",
    "no effusion . no effusion . no effusion .",
)
LONG = "pneumonoultramicroscopic"  # 24 letters; its first 16 are also a word


def pycocoevalcap(references: Sequence[str], texts: Sequence[str]) -> tuple[float, Floats]:
    """Mean and scores of text i against reference i."""
    mean, scores = Cider().compute_score(
        {i: [text] for i, text in enumerate(references)}, {i: [text] for i, text in enumerate(texts)}
    )
    return float(mean), scores


def by_definition(text: str, reference: str, documents: Sequence[str]) -> float:
    """CIDEr-D of one text as the paper writes it, with pycocoevalcap's lengths (pairs of words), word by word."""

    def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for n in (1, 2, 3, 4):
        held = Counter(ngram for document in documents for ngram in ngrams(document, n))

        def vector(text: str, n: int = n, held: Counter[tuple[str, ...]] = held) -> dict[tuple[str, ...], float]:
            return {
                ngram: times * (math.log(len(documents)) - math.log(max(held[ngram], 1)))
                for ngram, times in ngrams(text, n).items()
            }

        draft, truth = vector(text), vector(reference)
        dot = sum(min(weight, truth.get(ngram, 0.0)) * truth.get(ngram, 0.0) for ngram, weight in draft.items())
        norm = math.hypot(*draft.values()) * math.hypot(*truth.values())
        apart = ngrams(text, 2).total() - ngrams(reference, 2).total()
        total += (dot / norm if norm else 0.0) * math.exp(-(apart**2) / (2 * 6.0**2))
    return 10 * total / 4


def phantom_reports(count: int) -> list[str]:
    reports = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 5])
        findings = frozenset(name for name in PHANTOM_FINDINGS if rng.random() < 0.2)
        reports.append(clean_report_r2gen(compose_report(chest_of(seed, findings), rng)[0]))
    return reports


def perturbed(text: str, rng: np.random.Generator) -> str:
    """Some words dropped, doubled, or replaced."""
    words = text.split()
    for _ in range(int(rng.integers(1, 8))):
        at = int(rng.integers(len(words)))
        word, other = words[at], words[int(rng.integers(len(words)))]
        words[at : at + 1] = [[], [word, word], ["zzz"], [other]][int(rng.integers(4))]
        words = words or ["."]
    return " ".join(words)


# --- values -----------------------------------------------------------------------------------------------------------

known = st.sampled_from(["a", "b", "c", "d", ".", "é", LONG, LONG[:16]])
texts = st.lists(known, min_size=1, max_size=14).map(" ".join)
drafts = st.lists(st.one_of(known, st.sampled_from(["x", "y", LONG[:20]])), max_size=14).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(texts, drafts), min_size=1, max_size=8))
@example(pairs=[("a", "a")])  # one reference: every tf-idf is 0
@example(pairs=[("a b c d", "x y x y x"), ("b", "b")])  # unknown n-grams that occur twice, and some that do not
@example(pairs=[("a a a a b", "a a"), ("a", "a a a"), ("b", "")])  # clipped on either side
def test_scores_equal_pycocoevalcap(pairs: list[tuple[str, str]]) -> None:
    references, written = [reference for reference, _ in pairs], [draft for _, draft in pairs]
    mean, expected = pycocoevalcap(references, written)
    scorer = CiderD(references)
    scores = scorer.scores(written, range(len(pairs)))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(mean, abs=1e-9)
    for draft in written:
        each = scorer.scores([draft] * len(pairs), range(len(pairs)))
        np.testing.assert_allclose(scorer.against_all(draft), each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_of_whole_reports_equal_pycocoevalcap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    references = phantom_reports(300)  # more than one chunk
    written = [perturbed(report, rng) for report in references]
    mean, expected = pycocoevalcap(references, written)
    scorer = CiderD(references)
    scores = scorer.scores(written, range(300))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(mean, abs=1e-9)
    assert 1 < scores.mean() < 9.9  # neither all equal nor all different
    np.testing.assert_allclose([scorer.against_all(text)[row] for row, text in enumerate(written)], scores, atol=1e-12)


def test_scores_with_a_large_vocabulary_equal_pycocoevalcap() -> None:
    """Thousands of words, so that some collide in every table; short and long, ASCII and not."""
    rng = np.random.default_rng(0)
    spellings = ["w{}", "{}", "wörd{}", "a-very-long-word-{}", "{}-a-very-long-word"]
    vocabulary = [spelling.format(number) for number in range(1200) for spelling in spellings]
    ascii_only = [word for word in vocabulary if word.isascii()]
    for words in (vocabulary, ascii_only):
        references = [" ".join(rng.choice(words, 40)) for _ in range(300)]
        written = [perturbed(f"{reference} {' '.join(rng.choice(words, 10))}", rng) for reference in references]
        _, expected = pycocoevalcap(references, written)
        np.testing.assert_allclose(CiderD(references).scores(written, range(300)), expected, rtol=0, atol=1e-9)


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
    _, expected = pycocoevalcap(REFERENCES, [draft, draft, "", REFERENCES[3]])
    scores = CiderD(REFERENCES).scores([draft, draft, "", REFERENCES[3]], range(4))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    assert scores[1] > 0


@settings(max_examples=60, deadline=None)
@given(reference=texts, documents=st.lists(texts, min_size=1, max_size=5), draft=drafts)
def test_document_frequencies_of_another_set_follow_the_definition(
    reference: str, documents: list[str], draft: str
) -> None:
    scorer = CiderD([reference], documents)
    assert scorer.scores([draft], [0])[0] == pytest.approx(by_definition(draft, reference, documents), abs=1e-9)


def test_an_empty_draft_scores_zero() -> None:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        scorer = CiderD(REFERENCES)
        scores = scorer.scores(["", "  ", "the heart is large .", ""], [0, 1, 0, 3])
        assert scores[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
        assert scores[2] > 0
        assert scorer.scores(["", ""], [0, 1]).tolist() == [0.0, 0.0]
        assert scorer.against_all("").tolist() == [0.0] * 4
        assert scorer.scores([], []).shape == (0,)


# --- many drafts ------------------------------------------------------------------------------------------------------


def test_drafts_may_share_a_reference() -> None:
    rng = np.random.default_rng(4)
    references = phantom_reports(30)
    rows = np.repeat(rng.permutation(30), 5)
    written = [perturbed(references[row], rng) for row in rows]
    # pycocoevalcap reads a reference five times; so do the document frequencies
    _, expected = pycocoevalcap([references[row] for row in rows], written)
    scorer = CiderD(references, [references[row] for row in rows])
    np.testing.assert_allclose(scorer.scores(written, rows), expected, rtol=0, atol=1e-9)


def test_batches_equal_single_texts_in_any_order_and_from_threads() -> None:
    rng = np.random.default_rng(5)
    references = phantom_reports(40)
    scorer = CiderD(references)
    rows = [int(row) for row in rng.integers(0, 40, 300)]
    written = [perturbed(references[row], rng) for row in rows]
    scores = scorer.scores(written, rows)
    single = [scorer.scores([text], [row])[0] for text, row in zip(written, rows, strict=True)]
    np.testing.assert_allclose(scores, single, rtol=0, atol=1e-12)
    order = rng.permutation(300)
    np.testing.assert_allclose(
        scorer.scores([written[i] for i in order], [rows[i] for i in order]), scores[order], rtol=0, atol=1e-12
    )
    with ThreadPoolExecutor(4) as threads:
        for again in threads.map(lambda _: scorer.scores(written, rows), range(8)):
            assert again.tolist() == scores.tolist()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("references", "documents", "message"),
    [
        ([], None, "references is empty"),
        (REFERENCES, [], "documents is empty"),
        (["a", ""], None, r"references\[1\] is '', a text without words"),
        (["a"], [" "], r"documents\[0\] is ' '"),
    ],
)
def test_refuses_texts_without_words(references: list[str], documents: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CiderD(references, documents)


def test_refuses_rows_out_of_range() -> None:
    scorer = CiderD(REFERENCES)
    assert len(scorer) == 4
    with pytest.raises(ValueError, match="2 texts came with 1 rows"):
        scorer.scores(["a", "b"], [0])
    for row in (4, -1):
        with pytest.raises(ValueError, match=f"row {row} is out of range; the 4 references"):
            scorer.scores(["a", "b"], [0, row])
    with pytest.raises(TypeError):
        scorer.scores(["a"], [0.5])  # type: ignore[list-item]
