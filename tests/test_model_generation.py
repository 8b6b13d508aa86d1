"""MBR decoding in ``generate``: reports from candidate sentences, alone and in a batch, and its bundle file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.bundle import CONSENSUS, load_bundle, write_bundle
from model.config import BundleConfig, ConsensusConfig, DecodingConfig
from model.decoding.generate import draw_candidates, generate, mbr_search
from model.decoding.mbr_table import MbrTable
from model.decoding.search import Constraints, beam_search
from model.manifest import BundleError
from model.network.report_model import Encoded, ReportModel
from model.types import View
from tests.support.tiny import (
    IMAGE_SIZE,
    REPORTS,
    noise_study,
    open_drafter,
    tiny_index,
    tiny_model,
    tiny_tokenizer,
    write_tiny_bundle,
)
from tests.test_model_decoding import encoded
from training.data.studies import Study
from training.stages.mbr_table import build_consensus

TOKENIZER = tiny_tokenizer()
DECODING = DecodingConfig(
    method="consensus", candidates=10, temperature=1.0, consensus=ConsensusConfig(temperature=0.3, sentence_pool=20)
)


@pytest.fixture(scope="module")
def model() -> ReportModel:
    model = tiny_model(3, finding_head=True)
    with torch.no_grad():
        model.to_words.bias[TOKENIZER.id_of(".")] += 6  # a random model then ends sentences
    return model


@pytest.fixture(scope="module")
def source(model: ReportModel) -> Encoded:
    return encoded(model)


@pytest.fixture(scope="module")
def table(model: ReportModel) -> MbrTable:
    studies = [Study(f"CXR{row}", f"CXR{row}", "train", report, ()) for row, report in enumerate(REPORTS * 3)]
    index = tiny_index(model, REPORTS * 3)
    vectors = index.vectors(np.arange(len(index))[None])[0]
    return build_consensus(studies, vectors, TOKENIZER, directions=32, max_length=24, seed=1)


def embeddings(count: int = 4) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(8)), dim=-1)


def test_mbr_report_consists_of_sentences_of_the_candidates(
    model: ReportModel, source: Encoded, table: MbrTable
) -> None:
    written = generate(model, source, TOKENIZER, DECODING, study=embeddings(), mbr_table=table)
    constraints = Constraints.of(DECODING, TOKENIZER)
    beam = beam_search(model, source, constraints, TOKENIZER.bos_id, 3, 1.0)
    ids = draw_candidates(model, source, constraints, TOKENIZER.bos_id, DECODING, beam)
    assert ids.shape[:2] == (4, 11)
    stop = f" {TOKENIZER.decode([TOKENIZER.id_of('.')])}"
    for row in range(4):
        sentences = {
            part.strip() for words in ids[row].tolist() for part in TOKENIZER.decode(words).split(stop) if part.strip()
        }
        report = TOKENIZER.decode(written.ids[row].tolist())
        assert not report or all(part.strip() in sentences for part in report.split(stop) if part.strip())
        end = written.ids[row].tolist().index(TOKENIZER.eos_id)
        assert not written.ids[row, end + 1 :].any()
        assert (written.log_probs[row, : end + 1] <= 0).all()
    still = DECODING.model_copy(update={"consensus": DECODING.consensus.model_copy(update={"max_edits": 0})})
    _, plain = mbr_search(TOKENIZER, still, embeddings(), None, table, ids)
    assert (written.score >= plain - 1e-5).all()
    assert (written.score > plain + 1e-3).any()  # putting sentences together gained something


def test_batched_equals_single(model: ReportModel, source: Encoded, table: MbrTable) -> None:
    study = embeddings()
    together = generate(model, source, TOKENIZER, DECODING, study=study, mbr_table=table)
    assert torch.equal(generate(model, source, TOKENIZER, DECODING, study=study, mbr_table=table).ids, together.ids)
    for row in range(4):
        one = source.select(torch.tensor([row]))
        alone = generate(model, one, TOKENIZER, DECODING, study=study[row : row + 1], mbr_table=table)
        assert torch.equal(alone.ids[0], together.ids[row])


def test_keeps_the_beam_report_without_a_complete_sentence(table: MbrTable) -> None:
    ids = torch.tensor([[[5, 6, 7, 0, 0], [8, 9, 5, 6, 0]]])
    chosen, _ = mbr_search(TOKENIZER, DECODING, embeddings(1), None, table, ids)
    assert torch.equal(chosen, ids[:, 0])


def test_reports_follow_the_study_embedding(model: ReportModel, source: Encoded, table: MbrTable) -> None:
    one = source.select(torch.tensor([0] * 8))
    written = generate(model, one, TOKENIZER, DECODING, study=embeddings(8), mbr_table=table).ids
    assert len({tuple(row) for row in written.tolist()}) > 2  # the same candidates, other neighbours


def test_the_finding_head_is_the_mean_logit_of_the_views(model: ReportModel) -> None:
    images = torch.rand(2, 2, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[True, True], [True, False]])
    with torch.no_grad():
        patches = model.encode_images(images, torch.tensor([[0, 1], [0, 1]]), mask)
        found = model.findings(patches)
        assert model.finding_head is not None
        logits = model.finding_head(patches.pooled)
        assert found is not None
        torch.testing.assert_close(found[0], logits[0].mean(0).sigmoid())
        torch.testing.assert_close(found[1], logits[1, 0].sigmoid())
    assert tiny_model(3).findings(patches) is None


def test_rejects_mbr_decoding_without_its_inputs(model: ReportModel, source: Encoded, table: MbrTable) -> None:
    with pytest.raises(ValueError, match="use 'beam'"):
        generate(model, source, TOKENIZER, DECODING, mbr_table=table)
    with pytest.raises(ValueError, match="use 'rerank'"):
        generate(model, source, TOKENIZER, DECODING, study=embeddings())


def test_bundle_with_consensus_decoding_holds_its_table(tmp_path: Path, table: MbrTable) -> None:
    plain = load_bundle(write_tiny_bundle(tmp_path / "plain"))
    config: BundleConfig = plain.config.model_copy(update={"decoding": DECODING})
    parts = {"config": config, "model": plain.model, "tokenizer": plain.tokenizer, "index_dir": plain.path / "index"}
    with pytest.raises(BundleError, match="no table was given"):
        write_bundle(tmp_path / "B", **parts)  # type: ignore[arg-type]
    write_bundle(tmp_path / "B", **parts, mbr_table=table)  # type: ignore[arg-type]
    bundle = load_bundle(tmp_path / "B")
    assert bundle.mbr_table is not None
    assert np.array_equal(bundle.mbr_table.basis, table.basis)
    drafter = open_drafter(bundle.path)
    drafts = [drafter.draft([noise_study(1, View.FRONTAL)])[0] for _ in range(2)]
    assert drafts[0].findings == drafts[1].findings
    assert all(0 <= sentence.confidence <= 1 for sentence in drafts[0].sentences)

    manifest = json.loads((bundle.path / "MANIFEST.json").read_text())
    del manifest["files"][CONSENSUS]
    (bundle.path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"has no {CONSENSUS}"):
        load_bundle(bundle.path)


def test_classifier_decides_which_findings_are_named(model: ReportModel, source: Encoded, table: MbrTable) -> None:
    constraints = Constraints.of(DECODING, TOKENIZER)
    words = ["there", "is", "a", "small", "left", "pleural", "effusion", ".", "the", "lungs", "are", "clear", "."]
    ids = torch.zeros(1, 2, 24, dtype=torch.int64)
    ids[0, 0, : len(words) + 1] = torch.tensor([*(TOKENIZER.id_of(word) for word in words), constraints.eos_id])
    ids[0, 1, :5] = torch.tensor([*(TOKENIZER.id_of(word) for word in words[8:]), constraints.eos_id])[:5]
    settings = replace_consensus(
        DECODING, cider=0.001, bleu4=0.0, finding=10.0, finding_threshold=0.3, classifier_weight=1.0
    )
    for probability in (0.9, 0.05):
        chosen, _ = mbr_search(TOKENIZER, settings, embeddings(1), torch.full((1, 14), probability), table, ids)
        assert ("effusion" in TOKENIZER.decode(chosen[0].tolist())) is (probability > 0.3)


def replace_consensus(decoding: DecodingConfig, **changes: float) -> DecodingConfig:
    return decoding.model_copy(update={"consensus": decoding.consensus.model_copy(update=changes)})
