"""Report text to token ids and back: word-level, built from training reports, stored as JSON in the bundle.

``clean_report`` is the project's cleaning, with commas or without. ``clean_report_r2gen`` and
``clean_report_r2gen_mimic`` are those of the published R2Gen code for IU X-Ray and MIMIC-CXR, quirks
included, for comparison with published tables.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNK)
END_OF_SENTENCE, COMMA = ".", ","
Cleaning = Literal["own", "commas", "r2gen", "r2gen-mimic"]

_NUMBERING = re.compile(r"(?:(?<=^)|(?<=[.:]\s))\d{1,2}[.)]\s+")
_SENTENCE_END = re.compile(r"(?<![.?!;])[.?!;]++(?=\s|$)|[?!;]+")  # linear time: starts only where a run begins
_REDACTED = re.compile(r"x{4,}")
_WORD = re.compile(r"\d+(?:\.\d+)+|[a-z0-9]+(?:-[a-z0-9]+)*")
_WORD_OR_COMMA = re.compile(_WORD.pattern + r"|,(?=\s)")
_MISPLACED_COMMAS = re.compile(r"^[ ,]+|[ ,]+$|(?<=,)[ ,]*,")


def clean_report(report: str, *, commas: bool = False) -> str:
    """Lower case, words and numbers only, sentences ended by `` . ``.

    Keeps decimals (``1.5``) and hyphens inside words, removes list numbers and empty sentences; a
    slash separates words. With ``commas``, commas between words of a sentence stay, as words of
    their own. ``clean_report(clean_report(x)) == clean_report(x)``.
    """
    text = _NUMBERING.sub("", " ".join(report.lower().replace("'", "").split()))
    parts = _SENTENCE_END.split(text)
    if commas:
        sentences = [_MISPLACED_COMMAS.sub("", " ".join(_WORD_OR_COMMA.findall(part))) for part in parts]
    else:
        sentences = [" ".join(_WORD.findall(part)) for part in parts]
    return " ".join(f"{sentence} {END_OF_SENTENCE}" for sentence in sentences if sentence)


_R2GEN_DROP = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")  # ":-\[" is an accidental range, which keeps the hyphen


def clean_report_r2gen(report: str) -> str:
    """The published IU X-Ray cleaning (R2Gen, ``modules/tokenizers.py``): keeps hyphens and empty sentences."""
    return _r2gen_sentences(_halved(report, "..", 3))


def clean_report_r2gen_mimic(report: str) -> str:
    """The published MIMIC-CXR cleaning: as for IU X-Ray, after joining lines and shortening blanks and ``___``."""
    text = _halved(_halved(report.replace("\n", " "), "__", 7), "  ", 6)
    return _r2gen_sentences(_halved(text, "..", 8))


def _halved(text: str, pair: str, times: int) -> str:
    """Runs of a character shortened ``times`` times by a half."""
    for _ in range(times):
        text = text.replace(pair, pair[0])
    return text


def _r2gen_sentences(text: str) -> str:
    text = text.replace("1. ", "")
    for number in "2345":
        text = text.replace(f". {number}. ", ". ")
    for number in "2345":
        text = text.replace(f" {number}. ", ". ")
    sentences = (
        _R2GEN_DROP.sub("", s.replace('"', "").replace("/", "").replace("\\", "").replace("'", "").strip().lower())
        for s in text.strip().lower().split(". ")
    )
    return " . ".join(sentences) + " ."


CLEANINGS: Final[Mapping[Cleaning, Callable[[str], str]]] = {
    "own": clean_report,
    "commas": partial(clean_report, commas=True),
    "r2gen": clean_report_r2gen,
    "r2gen-mimic": clean_report_r2gen_mimic,
}


@dataclass(frozen=True)
class Tokenizer:
    """Word vocabulary. Ids 0..3 are ``<pad> <bos> <eos> <unk>``, words follow in sorted order.

    Attributes:
        tokens: by id.
        cleaning: how ``encode`` prepares a report: ``own`` (``clean_report``), ``commas`` (the same
            with commas), or ``r2gen`` and ``r2gen-mimic``, the rules of published checkpoints.
    """

    tokens: tuple[str, ...]
    cleaning: Cleaning = "own"

    def __post_init__(self) -> None:
        if self.tokens[: len(SPECIALS)] != SPECIALS:
            raise ValueError(f"a vocabulary must start with {SPECIALS}, not {self.tokens[: len(SPECIALS)]}")
        if len(set(self.tokens)) != len(self.tokens):
            twice = [token for token, count in Counter(self.tokens).items() if count > 1]
            raise ValueError(f"tokens occur twice in the vocabulary: {twice[:5]}")
        object.__setattr__(self, "_ids", {token: i for i, token in enumerate(self.tokens)})

    @classmethod
    def build(cls, reports: Iterable[str], *, min_count: int = 3, commas: bool = False) -> Tokenizer:
        """Vocabulary of the words that occur at least ``min_count`` times in cleaned training reports."""
        counts = Counter(word for report in reports for word in clean_report(report, commas=commas).split())
        words = sorted(word for word, count in counts.items() if count >= min_count)
        return cls((*SPECIALS, *words), cleaning="commas" if commas else "own")

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def comma_id(self) -> int:
        """Id of the comma, which published scores drop; ``pad_id`` where it is no word of the vocabulary."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return ids.get(COMMA, self.pad_id)

    def id_of(self, token: str) -> int:
        """Id of a token; ``unk_id`` if it is not in the vocabulary."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return ids.get(token, self.unk_id)

    def encode(self, report: str, max_length: int) -> list[int]:
        """``bos, words…, eos`` of the cleaned report, cut to ``max_length`` ids (a cut report has no eos)."""
        words = [self.id_of(word) for word in self._words(report)]
        return [self.bos_id, *words, self.eos_id][:max_length]

    def has_known_word(self, report: str) -> bool:
        """Whether a report has a word of the vocabulary other than the archive's redaction mark."""
        return any(
            self.id_of(word) != self.unk_id and word not in (END_OF_SENTENCE, COMMA) and not _REDACTED.fullmatch(word)
            for word in self._words(report)
        )

    def _words(self, report: str) -> list[str]:
        return CLEANINGS[self.cleaning](report).split()

    def decode(self, ids: Iterable[int]) -> str:
        """Words up to the first eos; bos and pad are dropped."""
        words = []
        for i in ids:
            if i == self.eos_id:
                break
            if i not in (self.pad_id, self.bos_id):
                words.append(self.tokens[i])
        return " ".join(words)

    def to_json(self) -> str:
        """The content of ``tokenizer.json``; the cleaning ``own`` is left out."""
        named = {} if self.cleaning == "own" else {"cleaning": self.cleaning}
        content = {"schema_version": 1, "kind": "word", **named, "tokens": self.tokens}
        return json.dumps(content, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read ``tokenizer.json``.

        Raises:
            ValueError: the content is not a tokenizer.
        """
        content: Any = json.loads(text)
        if not isinstance(content, dict) or content.get("kind") != "word" or content.get("schema_version") != 1:
            raise ValueError("tokenizer.json must hold {'schema_version': 1, 'kind': 'word', 'tokens': [...]}")
        cleaning = content.get("cleaning", "own")
        if cleaning not in tuple(CLEANINGS):  # it may not be hashable
            raise ValueError(f"tokenizer.json: cleaning {cleaning!r} is unknown; use one of {tuple(CLEANINGS)}")
        tokens = content.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) and token.isprintable() for token in tokens):
            raise ValueError("tokenizer.json: tokens must be a list of printable strings")
        return cls(tuple(tokens), cleaning)


def split_sentences(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Half-open token ranges of the sentences in a generated report, each with its final `` . ``."""
    spans, start = [], 0
    for i, token in enumerate(tokens):
        if token == END_OF_SENTENCE:
            if i > start:
                spans.append((start, i + 1))
            start = i + 1
    if start < len(tokens):
        spans.append((start, len(tokens)))
    return spans


def display_sentence(tokens: Sequence[str]) -> str:
    """A sentence for display: first letter upper case, a full stop at the end."""
    text = " ".join(token for token in tokens if token != END_OF_SENTENCE).replace(f" {COMMA}", COMMA)
    return text[:1].upper() + text[1:] + "."
