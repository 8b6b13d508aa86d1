"""Bootstrap intervals and paired differences; the metrics of a draw equal those of its studies."""

from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from tests.support.tiny import REPORTS
from training.scoring.baselines import TrivialRow
from training.scoring.bootstrap import Bootstrap, Resampled
from training.scoring.metrics import Pair, score
from training.scoring.protocol import full_prediction, full_reference
from training.scoring.study_statistics import METRICS, PerStudyStatistics, sentence_bleu4

MEANS_OF_ALL = {"CIDEr"}  # its document frequencies stay those of all references


def pairs(seed: int, *, right: float = 0.3, count: int = 40) -> list[Pair]:
    """References, and predictions of which a share ``right`` is the reference; one of them empty."""
    rng = np.random.default_rng(seed)
    truth = [REPORTS[i] for i in np.random.default_rng(0).integers(0, len(REPORTS), count)]
    guess = [report if rng.random() < right else REPORTS[rng.integers(len(REPORTS))] for report in truth]
    guess[3] = ""
    return [(full_reference(one), full_prediction(other)) for one, other in zip(truth, guess, strict=True)]


def test_whole_metrics_equal_the_scorers() -> None:
    row = pairs(1)
    expected = score(row)
    assert dict(Bootstrap(len(row), draws=5).of(row).whole) == pytest.approx({name: expected[name] for name in METRICS})


def test_draw_scores_like_the_studies_that_it_holds() -> None:
    row = pairs(2)
    times = np.random.default_rng(5).multinomial(len(row), np.full(len(row), 1 / len(row)), size=3)
    found = PerStudyStatistics.of(row).metrics(times.astype(np.float64))
    for draw, counts in enumerate(times):
        held = [pair for pair, count in zip(row, counts, strict=True) for _ in range(count)]
        expected = score(held)
        for name in set(METRICS) - MEANS_OF_ALL:
            assert found[name][draw] == pytest.approx(expected[name]), name


def test_intervals_contain_the_metric_and_shrink_with_the_studies() -> None:
    small, large = pairs(3, count=20), pairs(3, count=320)
    widths = []
    for row in (small, large):
        resampled = Bootstrap(len(row), draws=400).of(row)
        for name, (low, high) in resampled.intervals().items():
            assert low <= resampled.whole[name] <= high or name == "label_f1_macro", name
        low, high = resampled.intervals()["CIDEr"]
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_difference_to_the_same_row_is_zero_and_to_a_better_one_significant() -> None:
    bootstrap = Bootstrap(40, draws=400)
    worse, better = bootstrap.of(pairs(4, right=0.1)), bootstrap.of(pairs(5, right=0.8))
    same = worse.minus(worse)
    assert {name: (entry["difference"], entry["p"]) for name, entry in same.items()} == dict.fromkeys(
        METRICS, (0.0, 1.0)
    )
    gain = better.minus(worse)["CIDEr"]
    assert gain["difference"] == pytest.approx(better.whole["CIDEr"] - worse.whole["CIDEr"])
    assert gain["confidence_95"][0] > 0
    assert gain["p"] < 0.01
    assert worse.minus(better)["CIDEr"]["p"] == gain["p"]


def test_paired_difference_is_significant_where_intervals_overlap() -> None:
    """Two rows that differ in one study of ten: the intervals overlap, the paired difference is above 0."""
    row = pairs(6, right=0.2, count=100)
    better = [(ref, ref) if i % 10 == 0 else (ref, guess) for i, (ref, guess) in enumerate(row)]
    bootstrap = Bootstrap(len(row), draws=400)
    one, other = bootstrap.of(row), bootstrap.of(better)
    assert one.intervals()["ROUGE_L"][1] > other.intervals()["ROUGE_L"][0]
    assert other.minus(one)["ROUGE_L"]["confidence_95"][0] > 0


def test_draws_are_decided_by_the_seed() -> None:
    row = pairs(7)

    def intervals(seed: int) -> dict[str, list[float]]:
        return Bootstrap(len(row), draws=50, seed=seed).of(row).intervals()

    assert intervals(1) == intervals(1)
    assert intervals(1) != intervals(2)


@pytest.mark.parametrize(("merge", "expected"), [("best", max), ("mean", lambda values: sum(values) / len(values))])
def test_variants_merge_like_the_metrics_of_their_row(merge: str, expected: object) -> None:
    variants = [pairs(8), pairs(9)]
    bootstrap = Bootstrap(40, draws=60)
    row = TrivialRow({"a": (), "b": ()}, merge)  # type: ignore[arg-type]
    merged, (one, other) = bootstrap.of_row(row, variants), (bootstrap.of(pairs_) for pairs_ in variants)
    assert isinstance(merged, Resampled)
    for name in METRICS:
        whole = expected([one.whole[name], other.whole[name]])  # type: ignore[operator]
        assert merged.whole[name] == pytest.approx(whole)
    if merge == "best":
        better = max((one, other), key=lambda each: each.whole["CIDEr"])
        np.testing.assert_array_equal(merged.drawn["CIDEr"], better.drawn["CIDEr"])


def test_statistics_of_single_studies_equal_pycocoevalcap() -> None:
    row = [*pairs(3), ("the heart is normal .", ""), ("a", "a a a"), ("a b c d", "z")]
    references, texts = ({i: [pair[side]] for i, pair in enumerate(row)} for side in (0, 1))
    _, by_order = Bleu(4).compute_score(references, texts, verbose=0)
    expected = np.where([text == [""] for text in texts.values()], 0.0, by_order[3])
    np.testing.assert_allclose(sentence_bleu4(row), expected, rtol=1e-12)
    np.testing.assert_allclose(PerStudyStatistics.of(row).scores[:, 0], Rouge().compute_score(references, texts)[1])
