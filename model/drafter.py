"""The pipeline that service, command line and evaluation share: studies in, drafts with their evidence out.

One pass: pixels -> backbone once -> pooled embedding -> index -> K report embeddings beside the patch tokens ->
memory, encoder, beam search -> sentences with confidence, labels, reference cases. Nothing is kept between calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from model.bundle import Bundle
from model.calibration.ood import ViewAssessment, assess_views, unchecked
from model.calibration.sentence_confidence import (
    NEIGHBOURS,
    Evidence,
    confidence,
    named_findings,
    supported,
    unsupported,
)
from model.decoding.attention_maps import WordAttention, attention_of
from model.decoding.generate import generate
from model.decoding.progress import Progress
from model.network.linear import matmul_dtype
from model.network.report_model import Patches
from model.protocols import Case, CaseIndex
from model.text.labeler import label_report
from model.text.tokenizer import END_OF_SENTENCE, display_sentence, split_sentences
from model.types import (
    CasesFound,
    Draft,
    DraftOptions,
    DraftWarning,
    EventCallback,
    ImageCheck,
    Precision,
    ReferenceCase,
    Resample,
    Sentence,
    SentenceWritten,
    StudyView,
    View,
)

_DEFAULTS = DraftOptions()


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
        self, studies: Sequence[Sequence[StudyView]], options: DraftOptions = _DEFAULTS, *,
        counterfactual_patches: Sequence[Sequence[StudyView]] | None = None,
        counterfactual_retrieval: Sequence[Sequence[StudyView]] | None = None,
        callbacks: Sequence[EventCallback | None] | None = None,
    ) -> list[Draft]:  # fmt: skip
        """Write a draft for each study.

        Args:
            studies: views of each study, at least one each. In any order; for a bundle with ``view_order`` ``as_given``
                (an imported one) in that of the data set's files.
            options: the same for the whole batch.
            counterfactual_patches: for counterfactual checks: as many other studies; only the patch tokens are theirs.
            counterfactual_retrieval: likewise; only what retrieval gives is theirs: the reference cases, and the study
                embedding by which a choice among candidates weighs training cases.
            callbacks: of each study who is told early of what is final in its draft, each part once and in order, or
                None. Called by this thread; must neither block nor raise. What nobody could be told early is in the
                draft.

        Raises:
            ValueError: a study without views, or pixels of another shape than (S, S) uint8.
        """
        if not studies:
            return []
        with matmul_dtype(torch.bfloat16 if self.precision == "bf16" else None):
            return self._draft(
                studies, options, counterfactual_patches, counterfactual_retrieval, callbacks or [None] * len(studies)
            )

    def _draft(
        self, studies: Sequence[Sequence[StudyView]], options: DraftOptions,
        counterfactual_patches: Sequence[Sequence[StudyView]] | None,
        counterfactual_retrieval: Sequence[Sequence[StudyView]] | None,
        callbacks: Sequence[EventCallback | None],
    ) -> list[Draft]:  # fmt: skip
        clock: dict[str, float] = {}
        with self._timed("encode", clock):
            patches, readings = self._encode(studies)
        with self._timed("retrieve", clock):
            asked = patches if counterfactual_retrieval is None else self._encode(counterfactual_retrieval)[0]
            study = self._model.embed_study(asked) if self.index is not None else None
            cases, case_mask, references = self._retrieve(study, len(studies), options)
        for listener, found in zip(callbacks, references, strict=True):
            if listener is not None:
                listener(CasesFound(found))
        with self._timed("decode", clock):
            shown = studies if counterfactual_patches is None else counterfactual_patches
            seen, read = (patches, readings) if counterfactual_patches is None else self._encode(counterfactual_patches)
            findings = self._model.findings(seen)
            evidence: list[Evidence] | list[None] = [None] * len(studies)
            if self.bundle.calibration is not None:
                evidence = self._evidence(study, findings, len(studies))
            encoded = self._model.encode(seen, cases, case_mask)
            generated = generate(
                self._model,
                encoded,
                self.bundle.tokenizer,
                self.bundle.config.decoding,
                beam_size=options.beam_size,
                study=study,
                findings=findings,
                consensus=self.bundle.consensus,
                progress=self._progress(callbacks, evidence),
            )
            ids, log_probs = generated.ids.tolist(), generated.log_probs.tolist()
        drafts = [
            self._finish(
                self._ordered(studies[b]), readings[b], ids[b], log_probs[b], references[b], evidence[b], clock
            )
            for b in range(len(studies))
        ]
        if not options.attention:
            return drafts
        with self._timed("attention", clock):
            looked = attention_of(self._model, encoded, seen, generated.ids, self.bundle.tokenizer.bos_id)
        return [
            replace(
                draft, sentences=self._attentive(draft, looked, b, ids[b], shown[b], read[b]), timings_ms=dict(clock)
            )
            for b, draft in enumerate(drafts)
        ]

    @torch.inference_mode()
    def evidence(self, studies: Sequence[Sequence[StudyView]]) -> list[Evidence]:
        """What the images of each study say of the findings, apart from any draft; arguments as for ``draft``."""
        patches, _ = self._encode(studies)
        study = self._model.embed_study(patches) if self.index is not None else None
        return self._evidence(study, self._model.findings(patches), len(studies))

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _encode(self, studies: Sequence[Sequence[StudyView]]) -> tuple[Patches, list[ViewAssessment]]:
        """Patches of each study, and as what each of its images was read, in the order of ``_ordered``."""
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
        patches = patches._replace(tokens=patches.tokens.float(), pooled=patches.pooled.float())
        return self._read(studies, patches)

    def _read(self, studies: Sequence[Sequence[StudyView]], patches: Patches) -> tuple[Patches, list[ViewAssessment]]:
        """Check the images and put their views right; the patches come back frontals first again."""
        sent = [tuple(image.view for image in self._ordered(study)) for study in studies]
        calibration = self.bundle.calibration
        if calibration is None:
            return patches, [unchecked(views) for views in sent]
        pooled = patches.pooled.cpu().numpy()
        correct = self.bundle.config.preprocessing.view_order == "frontal_first"
        readings = [
            assess_views(
                calibration,
                views,
                pooled[row, : len(views)],
                np.stack([image.pixels for image in self._ordered(studies[row])]),
                correct=correct,
            )
            for row, views in enumerate(sent)
        ]
        if all(reading.views == views for reading, views in zip(readings, sent, strict=True)):
            return patches, readings
        return patches.with_views([reading.views for reading in readings]), readings

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
        index = self.index.snapshot()  # cases may be removed meanwhile
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

    def _evidence(self, study: torch.Tensor | None, findings: torch.Tensor | None, count: int) -> list[Evidence]:
        retrieval = self.bundle.config.retrieval
        heads = [None] * count if findings is None else list(findings.float().cpu().numpy())
        if self.index is None or retrieval is None or study is None:
            return [Evidence.of((), 0, head) for head in heads]
        index = self.index.snapshot()
        _, rows = index.search(study.float().cpu().numpy(), NEIGHBOURS)
        cases = [[index.case(int(row)).labels for row in found if row >= 0] for found in rows]
        return [Evidence.of(labels, retrieval.k, head) for labels, head in zip(cases, heads, strict=True)]

    def _finish(
        self, study: Sequence[StudyView], reading: ViewAssessment, ids: list[int], log_probs: list[float],
        references: tuple[ReferenceCase, ...], evidence: Evidence | None, clock: dict[str, float],
    ) -> Draft:  # fmt: skip
        sentences = self._sentences(ids, log_probs, evidence)
        return Draft(
            findings=" ".join(sentence.text for sentence in sentences),
            sentences=sentences,
            labels=dict(label_report(self.bundle.tokenizer.decode(ids))),
            reference_cases=references,
            warnings=tuple(self._warnings(study, reading, references, sentences)),
            timings_ms=dict(clock),
            image_checks=tuple(
                ImageCheck(view, frontal, unusual)
                for view, (frontal, unusual) in zip(reading.views, reading.checks, strict=False)
            ),
        )

    def _sentence(self, words: Sequence[str], log_probs: Sequence[float], evidence: Evidence | None) -> Sentence:
        mean = min(float(np.exp(np.mean(log_probs))), 1.0)
        labels = named_findings(" ".join(words))
        calibration = self.bundle.calibration
        if calibration is None or evidence is None:
            return Sentence(display_sentence(words), mean, labels)
        return Sentence(
            display_sentence(words),
            confidence(calibration.confidence, mean, labels, evidence),
            labels,
            supported(calibration.support, labels, evidence),
        )

    def _progress(
        self, callbacks: Sequence[EventCallback | None], evidence: Sequence[Evidence | None]
    ) -> Progress | None:
        """Makes sentences of certain words for those who listen; None where nobody does."""
        told = {row: 0 for row, listener in enumerate(callbacks) if listener is not None}

        def tell(row: int, ids: list[int], log_probs: list[float]) -> None:
            listener = callbacks[row]
            assert listener is not None
            for index, sentence in enumerate(self._sentences(ids, log_probs, evidence[row], told[row]), told[row]):
                listener(SentenceWritten(index, sentence))
                told[row] = index + 1

        tokenizer = self.bundle.tokenizer
        ends = {tokenizer.id_of(END_OF_SENTENCE), tokenizer.eos_id} - {tokenizer.unk_id}
        return Progress(told, ends, tell) if told else None

    def _sentences(
        self, ids: list[int], log_probs: list[float], evidence: Evidence | None, first: int = 0
    ) -> tuple[Sentence, ...]:
        """The sentences of a report from index ``first`` on; of one that is being written those that are complete."""
        words = self.bundle.tokenizer.decode(ids).split()
        return tuple(
            self._sentence(words[start:end], log_probs[start:end], evidence)
            for start, end in split_sentences(words)[first:]
        )

    def _attentive(
        self, draft: Draft, looked: WordAttention, row: int, ids: list[int], study: Sequence[StudyView],
        reading: ViewAssessment,
    ) -> tuple[Sentence, ...]:  # fmt: skip
        """The draft's sentences with where the decoder looked for each."""
        sent = tuple(image.view for image in self._ordered(study))
        places: Sequence[int] = range(len(sent))
        if reading.views != sent:  # the model saw them in the order of what they are
            places = sorted(places, key=lambda place: reading.views[place].row)
        views = [sent[place].value for place in places]
        spans = split_sentences(self.bundle.tokenizer.decode(ids).split())
        return tuple(
            replace(sentence, attention=looked.of_sentence(row, start, end, views))
            for sentence, (start, end) in zip(draft.sentences, spans, strict=True)
        )

    def _warnings(
        self, study: Sequence[StudyView], reading: ViewAssessment, references: tuple[ReferenceCase, ...],
        sentences: Sequence[Sentence],
    ) -> Iterator[DraftWarning]:  # fmt: skip
        for image, view in zip(study, reading.views, strict=True):
            resolved = view != image.view and view == image.header_view  # read as its header says
            yield from (one for one in image.warnings if not (resolved and one.code == "view_mismatch"))
        yield from reading.warnings
        for view in View:
            if view not in reading.views:
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
        if doubtful := sum(sentence.supported is False for sentence in sentences):
            yield unsupported(doubtful)
        if not sentences:
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
