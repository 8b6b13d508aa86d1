"""Texts with letters outside ASCII are refused, or warned of, with examples: data sets, scores, references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.text.tokenizer import clean_report
from tests.support.tiny import write_tiny_bundle
from training.data.letters import check_letters, is_damaged
from training.evaluate import main as evaluate
from training.run import main as train
from training.score import main as score

ENGLISH = "The heart is normal in size. The lungs are clear without effusion or consolidation."
GERMAN = "Das Herz ist normal groß. Kein Erguss, keine Stauung. Die Lungen sind gut belüftet. Rückläufige Ödeme."
CHINESE = "双肺清晰。心影大小正常。"


@pytest.mark.parametrize("text", [GERMAN, CHINESE, "Сердце не увеличено.", "Pas d'e\u0301panchement."])
def test_refuses_texts_that_the_cleaning_would_destroy(text: str) -> None:
    assert clean_report(text).split() != [word.strip(",.").lower() for word in text.split()]
    with pytest.raises(ValueError, match="hold letters outside a to z") as raised:
        check_letters([text] * 20, "these reports")
    assert "Write them in ASCII, or translate" in str(raised.value)
    (first, *_) = [word for word in text.split() if is_damaged(word)]
    assert first[:20] in str(raised.value)


def test_warns_of_a_few_words_and_accepts_signs(caplog: pytest.LogCaptureFixture) -> None:
    check_letters([ENGLISH] * 50, "a")
    check_letters(["Angle of 30° – “normal” ≥ 5 mm, 2×3."], "b")
    assert not caplog.text
    check_letters([*[ENGLISH] * 50, "Compared by Dr. Müller, with a naïve reader."], "these reports")
    assert "2 of 708 words of these reports hold letters outside a to z" in caplog.text
    assert "'Müller,' (1), 'naïve' (1)" in caplog.text


def _lines(path: Path, texts: dict[str, str]) -> str:
    path.write_text("".join(json.dumps({"id": study, "text": text}) + "\n" for study, text in texts.items()))
    return str(path)


@pytest.mark.parametrize("wrong", ["predictions", "references", "training-reports", "against"])
def test_score_refuses_each_of_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str) -> None:
    arguments = ["--draws", "0", "--no-meteor"]
    for name in ("predictions", "references", "training-reports", "against"):
        text = CHINESE if name == wrong else ENGLISH
        arguments += [f"--{name}", _lines(tmp_path / f"{name}.jsonl", {"a": text, "b": text})]
    assert score(arguments) == 2
    assert f"{wrong}.jsonl hold letters outside a to z" in caplog.text


def test_commands_refuse_such_a_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"id": f"s{row}", "report": GERMAN, "image_path": [f"{row}.png"]} for row in range(3)]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": entries[:1], "val": entries[1:]}))
    data = ["--annotation", str(tmp_path / "annotation.json"), "--images", str(tmp_path), "--device", "cpu"]
    bundle = write_tiny_bundle(tmp_path / "B")
    assert evaluate(["--bundle", str(bundle), *data, "--out", str(tmp_path / "o.json")]) == 2
    assert train([*data, "--preset", "smoke", "--out", str(tmp_path / "C")]) == 2
    assert caplog.text.count("words of the reports of r2gen hold letters outside a to z") == 2
    assert not (tmp_path / "C").exists()
