"""MBR decoding: expected rewards equal sums over all cases, and the search finds the best report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.rouge.rouge import Rouge

from model.config import ConsensusConfig, LanguageConfig
from model.decoding.attested import AttestedText
from model.decoding.mbr import MbrSearch, Reading, Sentence, rouge_l
from model.decoding.mbr_table import LENGTHS, Expectation, MbrTable, NgramCounts, ngram_keys
from model.text.labeler import FINDINGS
from model.text.statements import claims
from model.text.tokenizer import Tokenizer
from training.data.studies import Study
from training.scoring.cider import CiderD
from training.stages.mbr_table import build_consensus

SENTENCES = (
    "the heart is normal in size .",
    "the lungs are clear .",
    "there is a small left pleural effusion .",
    "the heart is enlarged .",
    "no pneumothorax .",
    "there is no pleural effusion .",
)
REPORTS = (
    tuple(
        " ".join(SENTENCES[row] for row in rows)
        for rows in ((0, 1), (3, 2), (0, 1, 4), (3, 5), (0, 5), (1, 4), (0, 1), (3, 2), (4, 1), (2, 4))
    )
    * 4
)


def studies(reports: tuple[str, ...] = REPORTS) -> list[Study]:
    return [Study(f"CXR{row}", f"CXR{row}", "train", report, ()) for row, report in enumerate(reports)]


def unit(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


TOKENIZER = Tokenizer.build(REPORTS)


@pytest.fixture(scope="module")
def table() -> MbrTable:
    return build_consensus(studies(), unit(len(REPORTS)), TOKENIZER, directions=999, max_length=60, seed=1)


def ids(*reports: str) -> np.ndarray:
    rows = [[TOKENIZER.id_of(word) for word in report.split()] for report in reports]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, words in enumerate(rows):
        tokens[row, : len(words)] = words
    return tokens


def sentences(report: str) -> tuple[Sentence, ...]:
    words, found = [], []
    for word in report.split():
        words.append(TOKENIZER.id_of(word))
        if word == ".":
            found.append(tuple(words))
            words = []
    return tuple(found)


def no_findings(_: Sentence) -> Reading:
    return Reading(frozenset(), frozenset())


EFFUSION = FINDINGS.index("Pleural Effusion")


def effusions(sentence: Sentence) -> Reading:
    """Reads an effusion, present or absent, and no other finding."""
    text = TOKENIZER.decode(sentence)
    named = frozenset({EFFUSION}) if "pleural" in text else frozenset()
    return Reading(frozenset(), named) if " no " in text else Reading(named, frozenset())


def test_ngram_counts_equal_counts_of_words() -> None:
    texts = ["a b a b", "b b", "a b a b c", "a"]
    tokens = np.array([[1, 2, 1, 2, 0], [2, 2, 0, 0, 0], [1, 2, 1, 2, 3], [1, 0, 0, 0, 0]])
    phrases = NgramCounts.of(tokens)
    names: dict[int, str] = {}
    for row, text in enumerate(texts):
        words = text.split()
        keys = ngram_keys(tokens)[:, row]
        for n in range(4):
            for start in range(len(words) - n):
                name = " ".join(words[start : start + n + 1])
                assert names.setdefault(int(keys[n, start]), name) == name
            assert not keys[n, max(len(words) - n, 0) :].any()
    assert len(set(names.values())) == len(names)
    for row, text in enumerate(texts):
        words = text.split()
        of_text = phrases.text == row
        pairs = zip(phrases.key[of_text].tolist(), phrases.count[of_text], strict=True)
        counted = {names[key]: count for key, count in pairs}
        grams = [" ".join(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)]
        assert counted == {gram: grams.count(gram) for gram in set(grams)}
        lengths = [len(names[key].split()) for key in phrases.key[of_text].tolist()]
        assert lengths == (phrases.order[of_text] + 1).tolist()


def test_expected_cider_is_the_mean_over_the_cases(table: MbrTable) -> None:
    study = unit(1, seed=5)[0]
    expectation = table.expected_statistics(study, 0.3)
    logits = table._vectors @ study / 0.3
    weights = np.exp(logits) / np.exp(logits).sum()
    drafts = [REPORTS[0], REPORTS[1], SENTENCES[0], " ".join(SENTENCES[:3])]
    cider = CiderD(REPORTS)
    for draft, value in zip(drafts, expectation.scores(ids(*drafts))[0], strict=True):
        each = cider.scores([draft] * len(REPORTS), range(len(REPORTS)))
        # lengths are counted in classes of two words, and phrases of fewer than three reports are left out
        assert value == pytest.approx(float(weights @ each), rel=0.12)


def test_ngram_probabilities_are_weighted_shares_of_cases(table: MbrTable) -> None:
    study = unit(1, seed=6)[0]
    expectation = table.expected_statistics(study, 0.5)
    logits = table._vectors @ study / 0.5
    weights = np.exp(logits) / np.exp(logits).sum()
    for phrase in ("the heart is enlarged", "left pleural effusion .", "no pneumothorax"):
        key = ngram_keys(ids(phrase))[len(phrase.split()) - 1, 0, 0]
        holds = np.array([f" {phrase} " in f" {report} " for report in REPORTS])
        assert expectation.share[table.find(np.array([key]))[0]] == pytest.approx(float(weights @ holds), abs=0.02)
    assert expectation.length == pytest.approx(float(weights @ [len(report.split()) for report in REPORTS]), rel=1e-3)
    effusion = float(weights @ ["small left pleural" in report for report in REPORTS])
    assert expectation.findings[FINDINGS.index("Pleural Effusion")] == pytest.approx(effusion, abs=1e-3)


def test_four_directions_still_separate_reports() -> None:
    full, few = (
        build_consensus(studies(), unit(len(REPORTS)), TOKENIZER, directions=count, max_length=60, seed=1)
        for count in (999, 4)
    )
    assert few.basis.shape[0] == 4 < full.basis.shape[0]
    assert np.allclose(few._basis @ few._basis.T, np.eye(4), atol=2e-2)
    near = few._vectors[1]  # a study whose images look like those of case 1
    cider = few.expected_statistics(near, 0.02).scores(ids(REPORTS[1], REPORTS[0]))[0]
    assert cider[0] > 2 * cider[1]


def test_search_finds_the_best_report(table: MbrTable) -> None:
    expectation = table.expected_statistics(table._vectors[1], 0.02)  # "… enlarged . … effusion ."
    config = ConsensusConfig(bleu4=0, finding=0)
    search = MbrSearch(expectation, None, no_findings, config)
    candidates = [sentences(report) for report in (REPORTS[0], SENTENCES[3], SENTENCES[2])]
    assert search.compose(candidates, 59)[0] == sentences(REPORTS[1])
    assert search.compose(candidates, 8)[0] == sentences(SENTENCES[2])  # no room for both
    still = MbrSearch(expectation, None, no_findings, config.model_copy(update={"max_edits": 0}))
    assert still.compose(candidates, 59)[0] in [tuple(candidate) for candidate in candidates]


def test_names_a_finding_above_the_classifier_threshold(table: MbrTable) -> None:
    expectation = table.expected_statistics(unit(1, seed=7)[0], 1.0)
    config = ConsensusConfig(cider=0.01, bleu4=0, finding=10, finding_threshold=0.3, classifier_weight=1.0)
    candidates = [sentences(report) for report in REPORTS[:6]]
    for probability, expected in ((0.5, True), (0.1, False)):
        chances = np.full(len(FINDINGS), probability, np.float32)
        report = MbrSearch(expectation, chances, effusions, config).compose(candidates, 59)[0]
        assert (sentences(SENTENCES[2])[0] in report) is expected
        assert not {sentences(SENTENCES[2])[0], sentences(SENTENCES[5])[0]} <= set(report)  # not both


def test_table_round_trips_and_damage_is_rejected(table: MbrTable, tmp_path: Path) -> None:
    path = tmp_path / "consensus.safetensors"
    table.save(path)
    again = MbrTable.load(path)
    study = unit(1, seed=3)[0]
    drafts = ids(*REPORTS[:5])
    one, other = (t.expected_statistics(study, 0.1).scores(drafts) for t in (table, again))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"consensus\.safetensors is not an MBR table"):
        MbrTable.load(path)
    with pytest.raises(OSError, match="cannot be written"):
        table.save(tmp_path / "gone" / "consensus.safetensors")


def test_table_file_holds_no_words(table: MbrTable, tmp_path: Path) -> None:
    path = tmp_path / "consensus.safetensors"
    table.save(path)
    content = path.read_bytes()
    assert not any(word.encode() in content for word in ("heart", "effusion", "pneumothorax"))


def test_empty_report_has_score_zero(table: MbrTable) -> None:
    expectation: Expectation = table.expected_statistics(unit(1)[0], 0.1)
    cider, bleu = expectation.scores(np.zeros((1, 1), np.int64))
    assert cider[0] == 0
    assert bleu[0] < 0.01
    assert len(LENGTHS) == expectation.cosine.shape[1]


def test_rouge_equals_the_scorer() -> None:
    rng = np.random.default_rng(4)
    texts, references = ([rng.integers(1, 5, rng.integers(1, 10)) for _ in range(6)] for _ in range(2))
    padded = [np.stack([np.pad(row, (0, 9 - len(row))) for row in rows]) for rows in (texts, references)]
    words = [[" ".join(map(str, row)) for row in rows] for rows in (texts, references)]
    expected = [[Rouge().calc_score([text], [reference]) for reference in words[1]] for text in words[0]]
    np.testing.assert_allclose(rouge_l(*padded), expected, atol=1e-6)


def test_rouge_between_candidates_can_decide(table: MbrTable) -> None:
    expectation = table.expected_statistics(unit(1, seed=9)[0], 5.0)
    config = ConsensusConfig(cider=0.001, bleu4=0, finding=0, rouge=1.0)
    candidates = [sentences(report) for report in (REPORTS[0], REPORTS[0] + " " + SENTENCES[4], SENTENCES[3])]
    report = MbrSearch(expectation, None, no_findings, config).compose(candidates, 59)[0]
    assert report in (sentences(REPORTS[0]), sentences(REPORTS[2]))


def test_adds_no_sentence_without_new_facts(table: MbrTable) -> None:
    expectation = table.expected_statistics(table._vectors[1], 0.02)  # "… enlarged . … effusion ."
    candidates = [sentences(sentence) for sentence in SENTENCES]
    config = ConsensusConfig(bleu4=0, finding=0)
    assert len(MbrSearch(expectation, None, no_findings, config).compose(candidates, 59)[0]) == 2

    def equal_facts(_: Sentence) -> Reading:
        return Reading(frozenset(), frozenset({3}))

    def subset_of_facts(sentence: Sentence) -> Reading:
        return Reading(frozenset(), frozenset({3, 4} if "effusion" in TOKENIZER.decode(sentence) else {3}))

    for reading in (equal_facts, subset_of_facts):
        assert len(MbrSearch(expectation, None, reading, config).compose(candidates, 59)[0]) == 1


def test_drops_repeated_and_contradictory_sentences_of_a_candidate(table: MbrTable) -> None:
    rows = (1, 2, 1, 5, 0)  # clear, effusion, clear, no effusion, heart
    candidate = [sentences(SENTENCES[row])[0] for row in rows]
    config = ConsensusConfig(max_edits=0)
    search = MbrSearch(table.expected_statistics(unit(1)[0], 1.0), None, effusions, config)
    report, reward = search.compose([candidate], 59)
    assert report == (candidate[0], candidate[1], candidate[4])
    assert reward > 0


def reading(sentence: Sentence) -> Reading:
    text = TOKENIZER.decode(sentence)
    return Reading(frozenset(), frozenset(), claims(text), 1 if "heart" in text else 2 if "lungs" in text else 0)


@pytest.mark.parametrize("consistent", [True, False])
def test_consistent_reports_give_an_organ_one_state(consistent: bool, table: MbrTable) -> None:
    report = sentences("the heart is enlarged . the heart is normal in size . no pneumothorax .")
    language = LanguageConfig(consistent=consistent)
    config = ConsensusConfig(max_edits=0)
    search = MbrSearch(table.expected_statistics(unit(1)[0], 1.0), None, reading, config, language)
    assert search.compose([report], 59)[0] == (report if not consistent else (report[0], report[2]))


@pytest.mark.parametrize("per_finding", [0, 1])
def test_a_rare_sentence_that_names_a_credible_finding_may_be_inserted(table: MbrTable, per_finding: int) -> None:
    clear, effusion = sentences("the lungs are clear . there is a small left pleural effusion .")
    config = ConsensusConfig(sentence_pool=1, classifier_weight=1.0, sentences_per_finding=per_finding)
    probabilities = np.array([float(name == "Pleural Effusion") for name in FINDINGS], np.float32)
    named = {effusion: Reading(frozenset({FINDINGS.index("Pleural Effusion")}), frozenset())}
    read = lambda sentence: named.get(sentence, reading(sentence))  # noqa: E731
    search = MbrSearch(table.expected_statistics(unit(1)[0], 1.0), probabilities, read, config)
    candidates = [(clear,), (clear,), (effusion, *sentences("the heart is enlarged ."))]
    assert search._pool(candidates) == [clear, effusion][: 1 + per_finding]


def test_ordered_reports_follow_the_organs(table: MbrTable) -> None:
    report = sentences("the lungs are clear . the heart is normal in size . no pneumothorax .")
    config, language = ConsensusConfig(max_edits=0), LanguageConfig(ordered=True)
    search = MbrSearch(table.expected_statistics(unit(1)[0], 1.0), None, reading, config, language)
    assert search.compose([report], 59)[0] == (report[2], report[1], report[0])


def test_scores_ignore_commas_and_attested_sentences_keep_them() -> None:
    reports = tuple(report.replace(" in size", ", in size") for report in REPORTS)
    tokenizer = Tokenizer.build(reports, commas=True)
    with_commas = build_consensus(studies(reports), unit(len(reports)), tokenizer, directions=99, max_length=60, seed=1)
    comma = tokenizer.id_of(",")
    assert np.array_equal(with_commas.lengths, build_consensus(
        studies(), unit(len(REPORTS)), TOKENIZER, directions=99, max_length=60, seed=1).lengths)  # fmt: skip
    normal, clear = (tuple(map(tokenizer.id_of, text.split())) for text in (
        "the heart is normal , in size .", "the lungs are clear ."))  # fmt: skip
    plain = tuple(word for word in normal if word != comma)
    expectation = with_commas.expected_statistics(unit(1)[0], 1.0)
    search = MbrSearch(expectation, None, no_findings, ConsensusConfig(), unscored=comma)
    assert search.compose([(normal, clear)], 59)[1] == search.compose([(plain, clear)], 59)[1]
    attested = AttestedText(with_commas.attested, with_commas.sentences, tokenizer, ())
    assert attested.holds(normal)
    assert not attested.holds(plain)
