"""``include=evidence``: maps of the findings that sentences name, alone or with the attention."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from benchmarks.raw_http import events
from model.config import DecodingConfig
from model.text.labeler import FINDINGS
from tests.support.service import png, ready_client
from tests.support.tiny import IMAGE_SIZE, write_tiny_bundle

FILES = {"frontal": ("f", png()), "lateral": ("l", png(70, 70))}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    decoding = DecodingConfig(min_length=14, block_trigrams=True)
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    with ready_client(
        write_tiny_bundle(path, decoding=decoding, full_stops=5.0, finding_head=True), warm_up=False
    ) as client:
        yield client


def test_evidence_comes_with_the_report_alone_or_with_the_attention(client: httpx.Client) -> None:
    answers = {
        include: client.post("/report", files=FILES, data={"include": include}).json()["sentences"]
        for include in ("attention", "evidence", "attention,evidence", " evidence, attention")
    }
    both = answers["attention,evidence"]
    assert answers[" evidence, attention"] == both
    for attention, evidence, sentence in zip(answers["attention"], answers["evidence"], both, strict=True):
        assert attention == {**sentence, "evidence": None}
        assert evidence == {**sentence, "attention": None}
        assert (sentence["evidence"] is None) == (sentence["labels"] == {})
    found = [sentence["evidence"] for sentence in both if sentence["evidence"] is not None]
    assert found
    for one in found:
        assert one["finding"] in FINDINGS
        assert list(one["patches"]) == ["frontal", "lateral"]
        assert [len(row) for grid in one["patches"].values() for row in grid] == [IMAGE_SIZE // 32] * 4


def test_only_the_report_of_a_stream_has_evidence(client: httpx.Client) -> None:
    plain = client.post("/report", files=FILES, data={"include": "evidence"}).json()
    with client.stream("POST", "/report", files=FILES, data={"include": "evidence", "stream": "true"}) as answer:
        *early, (_, report) = events(answer.iter_lines())
    assert any(name == "sentence" for name, _ in early)
    assert all(event["sentence"]["evidence"] is None for name, event in early if name == "sentence")
    assert report["sentences"] == plain["sentences"]


def test_a_report_with_all_maps_can_be_exported(client: httpx.Client) -> None:
    report = client.post("/report", files=FILES, data={"include": "attention,evidence"}).json()
    answer = client.post("/export", json={"report": report}, headers={"Accept": "text/plain"})
    assert answer.status_code == 200, answer.text
    assert report["sentences"][0]["text"] in answer.text


@pytest.mark.parametrize("include", ["evidence,maps", "evidence,", "", ",", "Evidence"])
def test_refuses_other_words(client: httpx.Client, include: str) -> None:
    problem = client.post("/report", files=FILES, data={"include": include}).json()
    assert problem["code"] == "unknown_value"
    assert problem["detail"].endswith("Send attention, evidence or attention,evidence, or leave it out.")
