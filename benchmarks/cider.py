"""The reward of SCST: CIDEr-D with cached references against ``pycocoevalcap`` on the same pairs."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from pycocoevalcap.cider.cider import Cider

from benchmarks.measure import Row, at_least, seconds
from model.text.tokenizer import END_OF_SENTENCE, clean_report_r2gen
from training.phantoms.report import compose_report
from training.phantoms.study import PHANTOM_FINDINGS, chest_of
from training.scoring.cider import CiderD

REPORTS = 2000  # all are cached, whichever are scored
SIZES = ((16, 5), (REPORTS, 1))  # images, drafts of each
WORDS = 35  # of a report, about
GOAL = 50
AGREEMENT = 1e-6


def rows(reports: int = REPORTS) -> list[Row]:
    """One row per size; raises RuntimeError where the scores differ."""
    rng = np.random.default_rng(0)
    made = [made_up_report(seed) for seed in range(reports)]
    return [_row(made, min(images, reports), samples, rng) for images, samples in SIZES]


def _row(reports: list[list[str]], images: int, samples: int, rng: np.random.Generator) -> Row:
    items = [image for image in range(images) for _ in range(samples)]
    drafts = [made_up_draft(reports[item], reports[int(rng.integers(len(reports)))], rng) for item in items]
    texts = [" ".join(report) for report in reports]
    references = {pair: [texts[item]] for pair, item in enumerate(items)}
    hypotheses = {pair: [draft] for pair, draft in enumerate(drafts)}
    # pycocoevalcap takes document frequencies from the pairs it scores, so the comparison does the same
    scorer = CiderD(texts, [texts[item] for item in items])
    with contextlib.redirect_stdout(io.StringIO()):
        _, expected = Cider().compute_score(references, hypotheses)
        peer_value = seconds(lambda: Cider().compute_score(references, hypotheses), repeats=5, warm_up=0)
    difference = float(np.abs(scorer.scores(drafts, items) - expected).max())
    if not difference <= AGREEMENT:
        raise RuntimeError(f"CIDEr-D differs from pycocoevalcap by {difference:g} on {len(items)} pairs")
    value = seconds(lambda: scorer.scores(drafts, items), repeats=50, warm_up=3)
    words = sum(len(draft.split()) for draft in drafts) / len(drafts)
    note = f"{len(reports):,} references cached; {words:.0f} words a draft; scores agree within {AGREEMENT:g}"
    name = f"CIDEr-D of {len(items):,} drafts, {samples} an image"
    return at_least(GOAL, Row(name, value, peer="pycocoevalcap", peer_value=peer_value, note=note))


def made_up_report(seed: int) -> list[str]:
    """Sentences of a phantom's report, about ``WORDS`` words together; one word in twelve is a rare one."""
    rng = np.random.default_rng([seed, 1])
    findings = frozenset(name for name in PHANTOM_FINDINGS if rng.random() < 0.15)
    report = clean_report_r2gen(compose_report(chest_of(seed, findings), rng)[0])
    sentences = [f"{text.strip()} {END_OF_SENTENCE}" for text in report.split(END_OF_SENTENCE) if text.strip()]
    chosen: list[str] = []
    for number in rng.permutation(len(sentences)).tolist():
        if sum(len(sentence.split()) for sentence in chosen) < WORDS - 5:
            words = sentences[number].split()
            chosen.append(" ".join(w if rng.random() < 11 / 12 else f"rare{rng.zipf(1.3) % 2000}" for w in words))
    return chosen


def made_up_draft(report: list[str], other: list[str], rng: np.random.Generator) -> str:
    """``report`` with a sentence of another, and in one draft of four a word that no report holds."""
    sentences = [*report]
    sentences[int(rng.integers(len(sentences)))] = other[int(rng.integers(len(other)))]
    words = " ".join(sentences).split()
    if rng.random() < 0.25:
        words[int(rng.integers(len(words)))] = f"word{rng.integers(50)}"
    return " ".join(words)
