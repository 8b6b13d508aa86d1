"""The pipeline that service, command line and evaluation share: studies in, drafts with their evidence out.

One pass: pixels -> backbone once -> pooled embedding -> index -> K report embeddings beside the patch tokens ->
memory, encoder, beam search -> sentences with confidence, labels, reference cases. Nothing is kept between calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from model.attention import Attention, WordAttention, attention_of
from model.bundle import Bundle
from model.draft_warning import DraftWarning
from model.generation import generate
from model.images import Pixels, Resample
from model.labeler import Label, label_report
from model.linear import products_in
from model.progress import Progress
from model.protocols import Case, CaseIndex
from model.report_model import Patches
from model.tokenizer import END_OF_SENTENCE, display_sentence, split_sentences
from model.views import View

MAX_TOP_K, MAX_BEAM_SIZE = 50, 8
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class StudyView:
    """One radiograph of a study: ``pixels`` (S, S) uint8, its projection, and what the reader of it should know."""

    pixels: Pixels
    view: View
    warnings: tuple[DraftWarning, ...] = ()


@dataclass(frozen=True)
class DraftOptions:
    """What a request may choose; None takes the bundle's default.

    ``top_k`` is the number of reference cases returned; the model leans on the first min(top_k, K) of them.
    ``attention`` asks for each sentence's attention over the images and the cases.

    Raises:
        ValueError: ``top_k`` outside 1..50 or ``beam_size`` outside 1..8.
    """

    top_k: int | None = None
    beam_size: int | None = None
    attention: bool = False

    def __post_init__(self) -> None:
        for name, value, most in (("top_k", self.top_k, MAX_TOP_K), ("beam_size", self.beam_size, MAX_BEAM_SIZE)):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name}={value} must lie between 1 and {most}")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a draft.

    Attributes:
        text: as shown.
        confidence: 0..1; geometric mean of its words' probabilities, or what a calibration made of it.
        labels: findings that it names.
        supported: whether a reference case or the images speak for a finding that it calls present; None where it calls
            none present, or where nothing was calibrated.
        attention: where asked for.
    """

    text: str
    confidence: float
    labels: Mapping[str, Label] = field(default_factory=dict)
    supported: bool | None = None
    attention: Attention | None = None


@dataclass(frozen=True)
class ImageCheck:
    """What the calibrated checks say of one image.

    Attributes:
        view: as which it was read.
        frontal: probability that it is a frontal, as against a lateral, 0..1.
        unusual: share of the radiographs that the checks were calibrated on which look less unusual, 0..1.
    """

    view: View
    frontal: float
    unusual: float


@dataclass(frozen=True)
class ReferenceCase:
    """A training or added case near the study.

    ``findings`` is None where texts are not redistributed; ``images`` names views of which there is a small picture.
    """

    rank: int
    case_id: str
    similarity: float
    findings: str | None
    labels: dict[str, str | None]
    source_url: str | None
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A findings draft and the evidence beside it. ``timings_ms`` are those of the batch it was written in."""

    findings: str
    sentences: tuple[Sentence, ...]
    labels: dict[str, str | None]
    reference_cases: tuple[ReferenceCase, ...]
    warnings: tuple[DraftWarning, ...]
    timings_ms: dict[str, float]
    image_checks: tuple[ImageCheck, ...] = ()


@dataclass(frozen=True)
class CasesFound:
    """Retrieval is done: these will be the draft's ``reference_cases``."""

    cases: tuple[ReferenceCase, ...] = field(repr=False)


@dataclass(frozen=True)
class SentenceWritten:
    """Sentence ``index`` of the draft is final; its attention comes with the draft only."""

    index: int
    sentence: Sentence = field(repr=False)


News = CasesFound | SentenceWritten
Listener = Callable[[News], None]


class Drafter:
    """Writes drafts with one bundle on one device. Holds no state between calls."""

    def __init__(
        self, bundle: Bundle, index: CaseIndex | None, *, device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:  # fmt: skip
        """Join a loaded bundle and its index.

        Args:
            bundle: what writes.
            index: of the bundle; None for one without retrieval.
            device: where it runs.
            precision: ``bf16`` computes convolutions and matrix products in bfloat16: faster, and a word may differ.

        Raises:
            ValueError: the index and the bundle do not belong together.
        """
        retrieval = bundle.config.retrieval
        if (index is None) != (retrieval is None):
            raise ValueError(
                "the bundle needs its index: load it from <bundle>/index" if index is None
                else "this bundle was made without retrieval; do not pass an index"
            )  # fmt: skip
        if index is not None and retrieval is not None and index.dim != retrieval.dim:
            raise ValueError(
                f"the index holds vectors of width {index.dim}, the bundle needs {retrieval.dim}; "
                "index and weights come from different bundles, restore the bundle from its source"
            )
        self.bundle, self.index, self.device = bundle, index, torch.device(device)
        self.precision = precision
        self._model = bundle.model.to(self.device)

    @property
    def image_size(self) -> int:
        """S: side in pixels of the squares that ``draft`` takes."""
        return self.bundle.config.preprocessing.image_size

    @property
    def resample(self) -> Resample:
        """Filter of the squash to those squares."""
        return self.bundle.config.preprocessing.resample

    @torch.inference_mode()
    def draft(
        self, studies: Sequence[Sequence[StudyView]], options: DraftOptions = DraftOptions(), *,
        patches_of: Sequence[Sequence[StudyView]] | None = None, cases_of: Sequence[Sequence[StudyView]] | None = None,
        listeners: Sequence[Listener | None] | None = None,
    ) -> list[Draft]:  # fmt: skip
        """Write a draft for each study.

        Args:
            studies: views of each study, at least one each. In any order; for a bundle with ``view_order`` ``as_given``
                (an imported one) in that of the data set's files.
            options: the same for the whole batch.
            patches_of: for counterfactual checks: as many other studies; only the patch tokens are theirs.
            cases_of: likewise; only what retrieval gives is theirs: the reference cases, and the study embedding by
                which a choice among candidates weighs training cases.
            listeners: of each study who is told early of what is final in its draft, each part once and in order, or
                None. Called by this thread; must neither block nor raise. What nobody could be told early is in the
                draft.

        Raises:
            ValueError: a study without views, or pixels of another shape than (S, S) uint8.
        """
        if not studies:
            return []
        with products_in(torch.bfloat16 if self.precision == "bf16" else None):
            return self._draft(studies, options, patches_of, cases_of, listeners or [None] * len(studies))

    def _draft(
        self, studies: Sequence[Sequence[StudyView]], options: DraftOptions,
        patches_of: Sequence[Sequence[StudyView]] | None, cases_of: Sequence[Sequence[StudyView]] | None,
        listeners: Sequence[Listener | None],
    ) -> list[Draft]:  # fmt: skip
        clock: dict[str, float] = {}
        with self._timed("encode", clock):
            patches = self._encode(studies)
        with self._timed("retrieve", clock):
            asked = patches if cases_of is None else self._encode(cases_of)
            study = self._model.embed_study(asked) if self.index is not None else None
            cases, case_mask, references = self._retrieve(study, len(studies), options)
        for listener, found in zip(listeners, references, strict=True):
            if listener is not None:
                listener(CasesFound(found))
        with self._timed("decode", clock):
            seen = patches if patches_of is None else self._encode(patches_of)
            encoded = self._model.encode(seen, cases, case_mask)
            generated = generate(
                self._model,
                encoded,
                self.bundle.tokenizer,
                self.bundle.config.decoding,
                beam_size=options.beam_size,
                study=study,
                findings=self._model.findings(seen),
                consensus=self.bundle.consensus,
                progress=self._progress(listeners),
            )
            ids, log_probs = generated.ids.tolist(), generated.log_probs.tolist()
        drafts = [self._finish(studies[b], ids[b], log_probs[b], references[b], clock) for b in range(len(studies))]
        if not options.attention:
            return drafts
        with self._timed("attention", clock):
            looked = attention_of(self._model, encoded, seen, generated.ids, self.bundle.tokenizer.bos_id)
        shown = studies if patches_of is None else patches_of
        return [
            replace(draft, sentences=self._attentive(draft, looked, b, ids[b], shown[b]), timings_ms=dict(clock))
            for b, draft in enumerate(drafts)
        ]

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _encode(self, studies: Sequence[Sequence[StudyView]]) -> Patches:
        most = max(len(study) for study in studies)
        size = self.image_size
        pixels = np.zeros((len(studies), most, size, size), np.uint8)
        views = torch.zeros(len(studies), most, dtype=torch.int64)
        mask = torch.zeros(len(studies), most, dtype=torch.bool)
        for row, study in enumerate(studies):
            if not study:
                raise ValueError(f"study {row} has no image; give at least one view")
            for column, image in enumerate(self._ordered(study)):
                if image.pixels.shape != (size, size) or image.pixels.dtype != np.uint8:
                    raise ValueError(
                        f"study {row}: pixels are {image.pixels.shape} {image.pixels.dtype}, "
                        f"need ({size}, {size}) uint8"
                    )
                pixels[row, column] = image.pixels
                views[row, column], mask[row, column] = image.view.row, True
        images = torch.from_numpy(pixels).unsqueeze(2).to(self.device).float() / 255.0  # (B, V, 1, S, S)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            patches = self._model.encode_images(images, views.to(self.device), mask.to(self.device))
        return patches._replace(tokens=patches.tokens.float(), pooled=patches.pooled.float())

    def _ordered(self, study: Sequence[StudyView]) -> Sequence[StudyView]:
        """Frontals first, unless the bundle wants the order of the data set's files."""
        if self.bundle.config.preprocessing.view_order == "as_given":
            return study
        return sorted(study, key=lambda image: image.view.row)

    def _retrieve(
        self, study: torch.Tensor | None, count: int, options: DraftOptions
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, list[tuple[ReferenceCase, ...]]]:
        retrieval = self.bundle.config.retrieval
        if self.index is None or retrieval is None or study is None:
            return None, None, [()] * count
        shown = options.top_k or retrieval.k
        index = self.index.frozen()  # cases may be removed meanwhile
        similarity, rows = index.search(study.float().cpu().numpy(), shown)
        used = rows[:, : retrieval.k]
        vectors = torch.from_numpy(index.vectors(used)).to(self.device)  # (B, K, E)
        references = [
            tuple(
                _reference(rank, index.case(int(rows[b, rank])), float(similarity[b, rank]))
                for rank in range(shown)
                if rows[b, rank] >= 0
            )
            for b in range(len(rows))
        ]
        return vectors, torch.from_numpy(used >= 0).to(self.device), references

    def _finish(
        self, study: Sequence[StudyView], ids: list[int], log_probs: list[float],
        references: tuple[ReferenceCase, ...], clock: dict[str, float],
    ) -> Draft:  # fmt: skip
        sentences = self._sentences(ids, log_probs)
        return Draft(
            findings=" ".join(sentence.text for sentence in sentences),
            sentences=sentences,
            labels=dict(label_report(self.bundle.tokenizer.decode(ids))),
            reference_cases=references,
            warnings=tuple(self._warnings(study, references, bool(sentences))),
            timings_ms=dict(clock),
        )

    def _progress(self, listeners: Sequence[Listener | None]) -> Progress | None:
        """Makes sentences of certain words for those who listen; None where nobody does."""
        told = {row: 0 for row, listener in enumerate(listeners) if listener is not None}

        def tell(row: int, ids: list[int], log_probs: list[float]) -> None:
            listener = listeners[row]
            assert listener is not None
            for index, sentence in enumerate(self._sentences(ids, log_probs, told[row]), told[row]):
                listener(SentenceWritten(index, sentence))
                told[row] = index + 1

        tokenizer = self.bundle.tokenizer
        ends = {tokenizer.id_of(END_OF_SENTENCE), tokenizer.eos_id} - {tokenizer.unk_id}
        return Progress(told, ends, tell) if told else None

    def _sentences(self, ids: list[int], log_probs: list[float], first: int = 0) -> tuple[Sentence, ...]:
        """The sentences of a report from index ``first`` on; of one that is being written those that are complete."""
        words = self.bundle.tokenizer.decode(ids).split()
        return tuple(
            self._sentence(words[start:end], log_probs[start:end]) for start, end in split_sentences(words)[first:]
        )

    def _attentive(
        self, draft: Draft, looked: WordAttention, row: int, ids: list[int], study: Sequence[StudyView]
    ) -> tuple[Sentence, ...]:
        """The draft's sentences with where the decoder looked for each."""
        views = [image.view.value for image in self._ordered(study)]
        spans = split_sentences(self.bundle.tokenizer.decode(ids).split())
        return tuple(
            replace(sentence, attention=looked.of_sentence(row, start, end, views))
            for sentence, (start, end) in zip(draft.sentences, spans, strict=True)
        )

    def _sentence(self, words: list[str], log_probs: list[float]) -> Sentence:
        confidence = float(np.exp(np.mean(log_probs)))
        labels = {name: label for name, label in label_report(" ".join(words)).items() if label is not None}
        return Sentence(display_sentence(words), min(confidence, 1.0), labels)

    def _warnings(
        self, study: Sequence[StudyView], references: tuple[ReferenceCase, ...], written: bool
    ) -> Iterator[DraftWarning]:
        for image in self._ordered(study):
            yield from image.warnings
        present = {image.view for image in study}
        for view in View:
            if view not in present:
                yield DraftWarning(
                    "missing_view", f"No {view.value} image was given; the draft leans on what is there."
                )
        if self.index is None:
            yield DraftWarning(
                "no_retrieval", "This bundle has no reference cases; the draft has no evidence beside it."
            )
        elif references and all(case.findings is None for case in references):
            yield DraftWarning(
                "texts_not_available",
                "The texts of the reference cases are not in this bundle; python -m retrieval_index.hydrate adds them.",
            )
        if not written:
            yield DraftWarning("empty_draft", "The model wrote nothing for these images.")

    @contextmanager
    def _timed(self, name: str, clock: dict[str, float]) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        clock[name] = (time.perf_counter() - began) * 1000


def _reference(place: int, case: Case, similarity: float) -> ReferenceCase:
    return ReferenceCase(
        place + 1, case.case_id, similarity, case.findings, dict(case.labels), case.source_url, tuple(case.images)
    )
