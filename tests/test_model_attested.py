"""Decoding that continues only with attested words, and the sentences that training reports hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from model.config import DecodingConfig, LanguageConfig
from model.decoding.attested import AttestedText, attested_keys, attested_text, sentence_keys
from model.decoding.mbr_table import MbrTable
from model.decoding.search import NEVER, Constraints
from model.text.tokenizer import Tokenizer
from training.data.studies import Study
from training.stages.mbr_table import build_consensus

REPORTS = ("the heart is normal . the lungs are clear .", "the heart is enlarged . no effusion .", "no acute disease .")
TOKENIZER = Tokenizer.build(REPORTS, min_count=1)
STOP = TOKENIZER.id_of(".")


def ids(*texts: str) -> list[list[int]]:
    return [[TOKENIZER.id_of(word) for word in text.split()] for text in texts]


def padded(*texts: str, length: int = 12) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array([row + [0] * (length - len(row)) for row in ids(*texts)], np.int64)


@pytest.fixture
def attested() -> AttestedText:
    return of(REPORTS, TOKENIZER, (0, 1))


def of(reports: Sequence[str], tokenizer: Tokenizer, suppressed: tuple[int, ...]) -> AttestedText:
    rows = [[tokenizer.id_of(word) for word in report.split()] for report in reports]
    tokens, stop = np.array([row + [0] * (12 - len(row)) for row in rows], np.int64), tokenizer.id_of(".")
    return AttestedText(attested_keys(tokens, stop), sentence_keys(tokens, stop), tokenizer, suppressed)


def built() -> MbrTable:
    studies = [Study(str(row), str(row), "train", report, ()) for row, report in enumerate(REPORTS * 5)]
    vectors = np.eye(5 * len(REPORTS), dtype=np.float32)
    return build_consensus(studies, vectors, TOKENIZER, directions=4, max_length=20, seed=1)


def follow_all(attested: AttestedText) -> list[list[bool]]:
    words = torch.cartesian_prod(*[torch.arange(len(TOKENIZER))] * 3)
    return attested.continuations(words, 3).tolist()


def follow(attested: AttestedText, text: str) -> set[str]:
    history = torch.tensor(ids(text), dtype=torch.int64).reshape(1, -1)
    (row,) = attested.continuations(history, history.shape[1])
    return {TOKENIZER.tokens[index] for index in row.nonzero().flatten().tolist()}


@pytest.mark.parametrize(("text", "words"), [
    ("", {"the", "no", "<eos>"}),
    ("the", {"heart", "lungs"}),
    ("the heart", {"is"}),
    ("the lungs", {"are"}),
    ("heart is", {"."}),  # no sentence begins so
    ("the heart is", {"normal", "enlarged"}),
    ("the heart is normal", {"."}),
    ("the heart is normal .", {"the", "no", "<eos>"}),
    ("no effusion . the", {"heart", "lungs"}),
    ("the effusion", {"."}),  # no report has it
])  # fmt: skip
def test_continuations_complete_a_4_gram_of_a_training_report(
    attested: AttestedText, text: str, words: set[str]
) -> None:
    assert follow(attested, text) == words


def test_no_path_leads_to_a_word_that_only_suppressed_words_continue() -> None:
    reports = ("a b c .", "a d .")
    tokenizer = Tokenizer.build(reports, min_count=1)
    attested = of(reports, tokenizer, (0, 1, tokenizer.id_of("c")))
    history = torch.tensor([[tokenizer.id_of("a")]])
    assert attested.continuations(history, 1)[0].nonzero().flatten().tolist() == [tokenizer.id_of("d")]
    with pytest.raises(ValueError, match="no attested sentence is free of suppressed words"):
        of(reports[:1], tokenizer, (0, 1, tokenizer.id_of("c")))


@pytest.mark.parametrize(("sentence", "held"), [
    ("the heart is enlarged .", True), ("no acute disease .", True), ("heart is normal .", False),
    ("the heart is clear .", False), ("no effusion", False), ("the lungs are normal .", False),
])  # fmt: skip
def test_holds_whole_sentences_of_training_reports(attested: AttestedText, sentence: str, held: bool) -> None:
    assert attested.holds(ids(sentence)[0]) is held


def test_apply_leaves_attested_words_only(attested: AttestedText) -> None:
    constraints = Constraints((0, 1), TOKENIZER.eos_id, 0, block_trigrams=False, attested=attested)
    scores: Tensor = constraints.apply(torch.zeros(1, len(TOKENIZER)), torch.tensor(ids("the heart is")), 3)
    kept = {TOKENIZER.tokens[index] for index in (scores[0] > NEVER).nonzero().flatten().tolist()}
    assert kept == {"normal", "enlarged"}


def test_repeated_trigram_without_another_word_ends_the_report(attested: AttestedText) -> None:
    constraints = Constraints((0, 1), TOKENIZER.eos_id, 0, block_trigrams=True, attested=attested)
    history = torch.tensor(ids("the lungs are clear . the lungs"))
    scores = constraints.apply(torch.zeros(1, len(TOKENIZER)), history, 7)
    assert (scores[0] > NEVER).nonzero().flatten().tolist() == [TOKENIZER.eos_id]


def test_sentence_of_attested_4_grams_that_no_report_holds_is_refused() -> None:
    reports = ("a b c d e .", "x b c d f .")
    tokenizer = Tokenizer.build(reports, min_count=1)
    attested = of(reports, tokenizer, (0, 1))
    joined = [tokenizer.id_of(word) for word in ["a", "b", "c", "d", "f", "."]]
    assert attested.continuations(torch.tensor([joined]), 4)[0, joined[4]]  # sampling may write it
    assert not attested.holds(joined)
    assert attested.holds([tokenizer.id_of(word) for word in ["x", "b", "c", "d", "f", "."]])


def test_sentences_without_a_full_stop_are_not_attested() -> None:
    assert len(sentence_keys(padded("no effusion", "the heart is normal . no"), STOP)) == 1
    assert sentence_keys(padded(*REPORTS), STOP).max() < 2**20


def test_table_of_training_holds_the_attested_sentences(attested: AttestedText) -> None:
    table = built()
    assert table.attested.tolist() == attested_keys(padded(*REPORTS), STOP).tolist()
    assert table.sentences.tolist() == sentence_keys(padded(*REPORTS), STOP).tolist()
    same = attested_text(table, TOKENIZER, (0, 1))
    assert same is attested_text(table, TOKENIZER, (0, 1))  # made once
    assert follow_all(same) == follow_all(attested)


def test_table_keeps_them_on_disk_and_older_tables_have_none(tmp_path: Path) -> None:
    table = built()
    table.save(tmp_path / "new.safetensors")
    loaded = MbrTable.load(tmp_path / "new.safetensors")
    assert (loaded.attested.tolist(), loaded.sentences.tolist()) == (table.attested.tolist(), table.sentences.tolist())
    content = load_file(tmp_path / "new.safetensors")
    del content["attested"], content["sentences"]
    save_file(content, tmp_path / "old.safetensors")
    assert len(MbrTable.load(tmp_path / "old.safetensors").attested) == 0


def test_table_without_attested_sentences_is_refused() -> None:
    old = replace(built(), sentences=np.zeros(0, np.int32))
    with pytest.raises(ValueError, match=r"has no attested sentences; make them with .*--clean-language"):
        attested_text(old, TOKENIZER, (0, 1))
    decoding = DecodingConfig(language=LanguageConfig(attested=True))
    with pytest.raises(ValueError, match="needs the table"):
        Constraints.of(decoding, TOKENIZER)
