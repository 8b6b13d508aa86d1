"""The published protocols by name: how reports are cleaned, cut and counted, and which images a study has.

Data set, vocabulary, reward, evaluation and import take a ``Protocol``. Read from the R2Gen code,
which R2GenCMN shares: ``modules/tokenizers.py``, ``modules/datasets.py``, and the options of its
``run_iu_xray.sh`` and ``run_mimic_cxr.sh``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from model.config import ProtocolName
from model.text.tokenizer import CLEANINGS, SPECIALS, UNK, Cleaning, Tokenizer


@dataclass(frozen=True)
class Protocol:
    """One published protocol.

    Attributes:
        name: of ``--protocol``, and in ``config.json`` of a bundle.
        title: for tables and messages.
        cleaning: of reports.
        max_ids: bos, words and eos of a report; a longer report loses eos first (``--max_seq_length``).
        min_count: a word that training reports have less often is ``<unk>`` (``--threshold``).
        images: of a study, the first ones of its annotation; None for all.
    """

    name: ProtocolName
    title: str
    cleaning: Cleaning
    max_ids: int
    min_count: int
    images: int | None

    @property
    def max_words(self) -> int:
        """Words of a reference, "." counted: bos takes one id."""
        return self.max_ids - 1

    def clean(self, report: str) -> str:
        """A report as the published code cleans it: lower case, sentences ended by `` .``."""
        return CLEANINGS[self.cleaning](report)

    def frequent(self, reports: Iterable[str]) -> frozenset[str]:
        """The words that cleaned training reports have at least ``min_count`` times."""
        counts = Counter(word for report in reports for word in self.clean(report).split())
        return frozenset(word for word, count in counts.items() if count >= self.min_count)

    def words(self, reports: Iterable[str]) -> tuple[str, ...]:
        """The published vocabulary of training reports: their frequent words and ``<unk>``, sorted."""
        return tuple(sorted([*self.frequent(reports), UNK]))

    def tokenizer(self, words: Iterable[str]) -> Tokenizer:
        """A tokenizer over published words: our ids 0 to 3, then the words in published order."""
        return Tokenizer((*SPECIALS, *(word for word in words if word != UNK)), cleaning=self.cleaning)


IU_XRAY: Final = Protocol("iu-xray", "IU X-Ray", "r2gen", max_ids=60, min_count=3, images=None)
MIMIC_CXR: Final = Protocol("mimic-cxr", "MIMIC-CXR", "r2gen-mimic", max_ids=100, min_count=10, images=1)
PROTOCOLS: Final[Mapping[ProtocolName, Protocol]] = {protocol.name: protocol for protocol in (IU_XRAY, MIMIC_CXR)}
