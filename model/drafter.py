"""The pipeline of the service, the command line and the evaluation: studies in, drafts with their evidence out.

One pass: pixels -> backbone once -> pooled embedding -> index -> K report embeddings next to the
patch tokens -> memory, encoder, decoder -> sentences with confidence, labels, reference cases. No
state is kept between calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

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
from model.calibration.track_record import calibrated_findings, not_assessed, shows_confidence
from model.decoding.attention_maps import WordAttention, attention_of
from model.decoding.evidence_maps import FindingEvidence, evidence_of
from model.decoding.generate import generate
from model.devices import use_exact_float32
from model.network.cpu_kernels import matmul_dtype
from model.network.report_model import Patches
from model.protocols import Case, CaseIndex
from model.spinning import SPINNING
from model.text.labeler import FINDINGS, label_report
from model.text.tokenizer import display_sentence, split_sentences
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
    StudyView,
    View,
)

Study = Sequence[StudyView]
_DEFAULTS = DraftOptions()


@dataclass(frozen=True)
class _Images:
    """Encoded images of a batch: ``studies`` in the order of encoding, their patches and view assessments."""

    studies: Sequence[Study]
    patches: Patches
    assessments: Sequence[ViewAssessment]


@dataclass(frozen=True)
class _Retrieved:
    """Cases of a batch: embeddings (B, K, E) and mask (B, K), None without an index; ``references`` of each study."""

    vectors: Tensor | None
    mask: Tensor | None
    references: Sequence[tuple[ReferenceCase, ...]]


class Drafter:
    """Writes drafts with one bundle on one device. Keeps no state between calls."""

    def __init__(
        self, bundle: Bundle, index: CaseIndex | None, *, device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:  # fmt: skip
        """Check that bundle and index belong together.

        Args:
            bundle: the model with its vocabulary and configuration.
            index: of the bundle; None without retrieval.
            device: where the model runs.
            precision: ``bf16`` computes convolutions and matrix products in bfloat16: faster, but a
                word may differ.

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
        if precision == "fp32":
            use_exact_float32(self.device)
        self._model = bundle.model.to(self.device)

    @property
    def image_size(self) -> int:
        """S: side in pixels of the square images that ``draft`` takes."""
        return self.bundle.config.preprocessing.image_size

    @property
    def resample(self) -> Resample:
        """Resize filter of these images."""
        return self.bundle.config.preprocessing.resample

    @torch.inference_mode()
    def draft(
        self, studies: Sequence[Study], options: DraftOptions = _DEFAULTS, *,
        counterfactual_patches: Sequence[Study] | None = None,
        counterfactual_retrieval: Sequence[Study] | None = None,
        callbacks: Sequence[EventCallback | None] | None = None,
    ) -> list[Draft]:  # fmt: skip
        """Write a draft for each study.

        Args:
            studies: one or more views of each study, in any order; with ``view_order`` ``as_given``
                (imported bundles) in the order of the data set's files.
            options: for the whole batch.
            counterfactual_patches: other studies (B), whose patch tokens replace those of
                ``studies``.
            counterfactual_retrieval: other studies (B), with which cases are retrieved and
                candidates are scored.
            callbacks: one per study or None, called on this thread with the retrieved cases; must
                neither block nor raise.

        Raises:
            ValueError: a study has no views, or pixels are not (S, S) uint8.
        """
        if not studies:
            return []
        clock: dict[str, float] = {}
        timed = partial(self._timed, clock)
        with SPINNING.watch(), matmul_dtype(torch.bfloat16 if self.precision == "bf16" else None):
            with timed("encode"):
                images = self._encode(studies)
            with timed("retrieve"):
                queries = images if counterfactual_retrieval is None else self._encode(counterfactual_retrieval)
                embeddings = self._embed(queries)
                retrieved = self._retrieve(embeddings, len(studies), options)
            _emit_cases(callbacks, retrieved.references)
            with timed("decode"):
                source = images if counterfactual_patches is None else self._encode(counterfactual_patches)
                findings = self._model.findings(source.patches)
                evidence: Sequence[Evidence | None] = [None] * len(studies)
                if self.bundle.calibration is not None:
                    evidence = self._evidence(embeddings, findings, len(studies))
                encoded = self._model.encode(source.patches, retrieved.vectors, retrieved.mask)
                generated = generate(
                    self._model,
                    encoded,
                    self.bundle.tokenizer,
                    self.bundle.config.decoding,
                    beam_size=options.beam_size,
                    study=embeddings,
                    findings=findings,
                    mbr_table=self.bundle.mbr_table,
                )
                ids, log_probs = generated.ids.tolist(), generated.log_probs.tolist()
            probabilities = [None] * len(studies) if findings is None else findings.tolist()
            drafts = [
                self._finish(images.studies[b], images.assessments[b], ids[b], log_probs[b], references, evidence[b],
                             probabilities[b])
                for b, references in enumerate(retrieved.references)
            ]  # fmt: skip
            if options.attention:
                with timed("attention"):
                    weights = attention_of(
                        self._model, encoded, source.patches, generated.ids, self.bundle.tokenizer.bos_id
                    )
                    if weights is not None:
                        drafts = [
                            replace(draft, sentences=self._with_attention(draft, weights, b, ids[b], source))
                            for b, draft in enumerate(drafts)
                        ]
            if options.evidence:
                with timed("evidence"):
                    maps = evidence_of(self._model, source.patches)
                    drafts = [_with_evidence(draft, maps, b, source) for b, draft in enumerate(drafts)]
        return [replace(draft, timings_ms=dict(clock)) for draft in drafts]

    @torch.inference_mode()
    def evidence(self, studies: Sequence[Study]) -> list[Evidence]:
        """Evidence of each study's images for the findings, without a draft; arguments as for ``draft``."""
        images = self._encode(studies)
        return self._evidence(self._embed(images), self._model.findings(images.patches), len(studies))

    # -- images ------------------------------------------------------------------------------------------------------

    def _encode(self, studies: Sequence[Study]) -> _Images:
        """Run the backbone and the image checks."""
        ordered = [self._in_order(study) for study in studies]
        most, size = max(len(study) for study in ordered), self.image_size
        pixels = np.zeros((len(ordered), most, size, size), np.uint8)
        views = torch.zeros(len(ordered), most, dtype=torch.int64)
        mask = torch.zeros(len(ordered), most, dtype=torch.bool)
        for row, study in enumerate(ordered):
            if not study:
                raise ValueError(f"study {row} has no image; give at least one view")
            for column, image in enumerate(study):
                if image.pixels.shape != (size, size) or image.pixels.dtype != np.uint8:
                    raise ValueError(
                        f"study {row}: pixels are {image.pixels.shape} {image.pixels.dtype}, "
                        f"expected ({size}, {size}) uint8"
                    )
                pixels[row, column] = image.pixels
                views[row, column], mask[row, column] = image.view.row, True
        grey = torch.from_numpy(pixels).unsqueeze(2).to(self.device).float() / 255.0  # (B, V, 1, S, S)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            patches = self._model.encode_images(grey, views.to(self.device), mask.to(self.device))
        patches = patches._replace(tokens=patches.tokens.float(), pooled=patches.pooled.float())
        return self._assess(ordered, patches)

    def _in_order(self, study: Study) -> Study:
        """Frontals first, unless the bundle keeps the order of the data set's files."""
        if self.bundle.config.preprocessing.view_order == "as_given":
            return study
        return sorted(study, key=lambda image: image.view.row)

    def _assess(self, studies: Sequence[Study], patches: Patches) -> _Images:
        """Check the images and correct their views; the patches are returned with the frontals first."""
        sent = [tuple(image.view for image in study) for study in studies]
        headers = [tuple(image.header_view for image in study) for study in studies]
        correct = self.bundle.config.preprocessing.view_order == "frontal_first"
        calibration = self.bundle.calibration
        if calibration is None:
            assessments = [unchecked(*pair, correct=correct) for pair in zip(sent, headers, strict=True)]
        else:
            pooled = patches.pooled.cpu().numpy()
            assessments = [
                assess_views(
                    calibration,
                    views,
                    pooled[row, : len(views)],
                    np.stack([image.pixels for image in studies[row]]),
                    correct=correct,
                    headers=headers[row],
                )
                for row, views in enumerate(sent)
            ]
        views = [assessment.views for assessment in assessments]
        return _Images(studies, patches if views == sent else patches.with_views(views), assessments)

    # -- cases -------------------------------------------------------------------------------------------------------

    def _embed(self, images: _Images) -> Tensor | None:
        """Study embeddings (B, E); None without an index."""
        return None if self.index is None else self._model.embed_study(images.patches)

    def _retrieve(self, embeddings: Tensor | None, count: int, options: DraftOptions) -> _Retrieved:
        retrieval = self.bundle.config.retrieval
        if self.index is None or retrieval is None or embeddings is None:
            return _Retrieved(None, None, [()] * count)
        shown = options.top_k or retrieval.k
        index = self.index.snapshot()  # cases may be removed concurrently
        similarity, rows = index.search(embeddings.float().cpu().numpy(), max(shown, retrieval.k))
        used = rows[:, : retrieval.k]  # the draft does not depend on the number of shown cases
        vectors = torch.from_numpy(index.vectors(used)).to(self.device)  # (B, K, E)
        references = [
            tuple(
                _reference(rank, index.case(int(rows[b, rank])), float(similarity[b, rank]))
                for rank in range(shown)
                if rows[b, rank] >= 0
            )
            for b in range(len(rows))
        ]
        return _Retrieved(vectors, torch.from_numpy(used >= 0).to(self.device), references)

    def _evidence(self, embeddings: Tensor | None, findings: Tensor | None, count: int) -> list[Evidence]:
        retrieval = self.bundle.config.retrieval
        classified = [None] * count if findings is None else list(findings.float().cpu().numpy())
        if self.index is None or retrieval is None or embeddings is None:
            return [Evidence.of((), 0, probabilities) for probabilities in classified]
        index = self.index.snapshot()
        _, rows = index.search(embeddings.float().cpu().numpy(), NEIGHBOURS)
        labels = [[index.case(int(row)).labels for row in found if row >= 0] for found in rows]
        return [Evidence.of(near, retrieval.k, each) for near, each in zip(labels, classified, strict=True)]

    # -- the draft ---------------------------------------------------------------------------------------------------

    def _finish(
        self, study: Study, assessment: ViewAssessment, ids: list[int], log_probs: list[float],
        references: tuple[ReferenceCase, ...], evidence: Evidence | None, probabilities: list[float] | None,
    ) -> Draft:  # fmt: skip
        """The draft of one study, without its timings."""
        report = self.bundle.tokenizer.decode(ids)
        words = report.split()
        labels: dict[str, str | None] = dict(label_report(report))
        record = None if self.bundle.calibration is None else self.bundle.calibration.track_record
        unassessed = not_assessed(record, labels)
        unusual = any(warning.code == "unusual_image" for warning in assessment.warnings)
        drafted = [
            self._sentence(words[start:end], log_probs[start:end], evidence) for start, end in split_sentences(words)
        ]
        sentences = tuple(
            replace(one, show_confidence=shows_confidence(record, one.labels, unassessed, unusual=unusual))
            for one in drafted
        )
        return Draft(
            findings=" ".join(sentence.text for sentence in sentences),
            sentences=sentences,
            labels=labels,
            reference_cases=references,
            warnings=tuple(self._warnings(study, assessment, references, sentences)),
            timings_ms={},
            image_checks=tuple(
                ImageCheck(view, frontal, unusual)
                for view, (frontal, unusual) in zip(assessment.views, assessment.checks, strict=False)
            ),
            finding_probabilities=None if probabilities is None else dict(zip(FINDINGS, probabilities, strict=True)),
            calibrated_findings=None if evidence is None else calibrated_findings(record, evidence.images),
            not_assessed=unassessed,
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

    def _with_attention(
        self, draft: Draft, weights: WordAttention, row: int, ids: list[int], images: _Images
    ) -> tuple[Sentence, ...]:
        """The draft's sentences with their attention over ``images``."""
        views = _views_as_sent(images, row)
        spans = split_sentences(self.bundle.tokenizer.decode(ids).split())
        return tuple(
            replace(sentence, attention=weights.of_sentence(row, start, end, views))
            for sentence, (start, end) in zip(draft.sentences, spans, strict=True)
        )

    def _warnings(
        self, study: Study, assessment: ViewAssessment, references: tuple[ReferenceCase, ...],
        sentences: Sequence[Sentence],
    ) -> Iterator[DraftWarning]:  # fmt: skip
        for image, view in zip(study, assessment.views, strict=True):
            resolved = view != image.view and view == image.header_view  # the header is right
            yield from (one for one in image.warnings if not (resolved and one.code == "view_mismatch"))
        yield from assessment.warnings
        for view in View:
            if view not in assessment.views:
                yield DraftWarning("missing_view", f"No {view.value} image was given; the draft uses one view.")
        if self.index is None:
            yield DraftWarning(
                "no_retrieval", "This bundle has no reference cases; the draft is based on the images alone."
            )
        elif references and all(case.findings is None for case in references):
            yield DraftWarning(
                "texts_not_available",
                "This bundle has no texts of the reference cases; python -m retrieval_index.hydrate adds them.",
            )
        if doubtful := sum(sentence.supported is False for sentence in sentences):
            yield unsupported(doubtful)
        if not sentences:
            yield DraftWarning("empty_draft", "The model wrote nothing for these images.")

    @contextmanager
    def _timed(self, clock: dict[str, float], name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        clock[name] = (time.perf_counter() - began) * 1000


def _with_evidence(draft: Draft, maps: FindingEvidence | None, row: int, images: _Images) -> Draft:
    """The draft with the evidence maps of its sentences over ``images``."""
    if maps is None:
        return draft
    views = _views_as_sent(images, row)
    sentences = (replace(part, evidence=maps.of_sentence(row, part.labels, views)) for part in draft.sentences)
    return replace(draft, sentences=tuple(sentences))


def _views_as_sent(images: _Images, row: int) -> list[str]:
    """The views in which the images of a study were sent, in the order of its patches."""
    sent = tuple(image.view for image in images.studies[row])
    read = images.assessments[row].views
    order: Sequence[int] = range(len(sent))
    if read != sent:  # the patches are in the order of the corrected views
        order = sorted(order, key=lambda position: read[position].row)
    return [sent[position].value for position in order]


def _reference(position: int, case: Case, similarity: float) -> ReferenceCase:
    return ReferenceCase(
        position + 1, case.case_id, similarity, case.findings, dict(case.labels), case.source_url, tuple(case.images)
    )


def _emit_cases(
    callbacks: Sequence[EventCallback | None] | None, references: Sequence[tuple[ReferenceCase, ...]]
) -> None:
    for callback, found in zip(callbacks or (), references, strict=callbacks is not None):
        if callback is not None:
            callback(CasesFound(found))
