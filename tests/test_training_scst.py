"""Self-critical sequence training: policy log-probabilities, advantages, rewards, constraints, the stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import DecodingConfig
from model.decoding.search import Constraints, Generated, sample
from model.network.report_model import Encoded, Patches, ReportModel
from model.text.tokenizer import Tokenizer, clean_report
from model.types import View
from tests.support.tiny import REPORTS, tiny_index, tiny_model, tiny_tokenizer
from training.config import RewardConfig, ScstConfig, SelectionConstraints
from training.data.studies import ImageRef, Split, Study
from training.stages.common import ReportGenerator, StudySplits, build_optimizer
from training.stages.scst import advantages, policy_log_probs, train_scst, violated_constraints
from training.stages.scst_reward import FINDING_COST, Reward, finding_gain
from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig

MANY = tuple(REPORTS) * 3  # words must be seen three times to be scored


class Drawn:
    """Backbone output of studies: one random vector a study plus noise for each patch."""

    def __init__(self, model: ReportModel, studies: Sequence[Study]) -> None:
        generator = torch.Generator().manual_seed(0)
        width = model.backbone.width
        self._tokens = {
            study.study_id: 2 * torch.randn(1, width, generator=generator) + torch.randn(4, width, generator=generator)
            for study in studies
        }

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True,
        part: slice = slice(None),
    ) -> Patches:  # fmt: skip
        found = torch.stack([self._tokens[study.study_id] for study in studies[part]]).unsqueeze(1)  # (B, 1, 4, D)
        views = torch.zeros(len(found), 1, dtype=torch.int64)
        return Patches(found, found.mean(2), views, torch.ones_like(views, dtype=torch.bool))


def studies(split: Split, reports: Sequence[str] = REPORTS) -> list[Study]:
    return [
        Study(f"{split}{i}", f"{split}{i}", split, report, (ImageRef(f"{split}{i}", View.FRONTAL),))
        for i, report in enumerate(reports)
    ]


def encoded(model: ReportModel) -> Encoded:
    return model.encode(Drawn(model, studies("train")).patches(studies("train")[:3], None))


def assert_equal_log_probs(
    model: ReportModel, constraints: Constraints, count: int, seed: int, temperature: float = 1.0
) -> tuple[Tensor, Generated]:
    """The policy's log-probabilities of sampled drafts equal those that sampling returned; returns both."""
    seen, bos = encoded(model), tiny_tokenizer().bos_id
    drafts = sample(model, seen, constraints, bos, count=count, temperature=temperature,
                    generator=torch.Generator().manual_seed(seed))  # fmt: skip
    found = policy_log_probs(model, seen, drafts, constraints, bos, count, temperature)
    torch.testing.assert_close(found, drafts.log_probs[:, : found.shape[1]], atol=1e-4, rtol=1e-4)
    return found, drafts


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("min_length", [0, 5])
def test_policy_log_probs_equal_those_of_sampling(temperature: float, min_length: int) -> None:
    decoding = DecodingConfig(min_length=min_length, suppress=("heart", "<unk>"))
    constraints = Constraints.of(decoding, tiny_tokenizer())
    found, drafts = assert_equal_log_probs(tiny_model(), constraints, 4, 1, temperature)
    assert found.requires_grad
    assert not bool(drafts.log_probs[:, found.shape[1] :].any())
    lengths = (drafts.ids != 0).sum(1)
    assert lengths.unique().numel() > 1  # ended and cut ones


def test_policy_log_probs_equal_those_of_sampling_after_optimizer_steps() -> None:
    """Fused steps change weights without a new version; sampling must not use stale packed weights."""
    model = tiny_model()
    constraints = Constraints.of(DecodingConfig(min_length=0), tiny_tokenizer())
    optimizer = build_optimizer(model, backbone_lr=0.0, head_lr=1e-2, weight_decay=0.0)
    for step in range(3):
        found, _ = assert_equal_log_probs(model, constraints, 2, step)
        optimizer.zero_grad()
        found.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    alone = advantages(rewards, "leave_one_out")
    torch.testing.assert_close(alone, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(
        advantages(rewards, torch.tensor([2.0, 5.0])), torch.tensor([[-1.0, 0.0, 4.0], [-1.0, -1.0, -1.0]])
    )
    assert float(advantages(torch.randn(7, 5), "leave_one_out").sum(1).abs().max()) < 1e-5
    torch.testing.assert_close(advantages(rewards, "best_other"), torch.tensor([[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))


def test_best_other_advantage_is_the_gradient_of_the_best_reward() -> None:
    """Over all triples that a policy of four reports can sample, weighted by probability."""
    scores = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    triples = torch.cartesian_prod(*[torch.arange(4)] * 3)
    log_probs = scores.log_softmax(0)[triples]
    likely = log_probs.sum(1).exp()
    (exact,) = torch.autograd.grad((likely * worth[triples].max(dim=1).values).sum(), scores, retain_graph=True)
    gained = (advantages(worth[triples], "best_other") * log_probs).sum(1)
    (estimated,) = torch.autograd.grad((likely.detach() * gained).sum(), scores)
    torch.testing.assert_close(estimated, exact)


# --- rewards ----------------------------------------------------------------------------------------------------------


def rewarded(text: str, ended: bool, row: int, **weights: float) -> float:
    return float(Reward(MANY, RewardConfig(**weights), max_length=60)([text], [ended], [row])["reward"][0])


@pytest.mark.parametrize("max_length", [14, 80])
def test_reference_ends_where_the_targets_of_cross_entropy_end(max_length: int) -> None:
    """Both reports have 12 words or more; at 14 tokens one of them loses its end, at 80 none does."""
    reports = (f"{REPORTS[1]} The bones are intact.", "No focal consolidation or effusion. The heart is enlarged.") * 3
    reports += (" ".join([REPORTS[0]] * 4),) * 3  # 72 words
    reward, tokenizer = Reward(reports, RewardConfig(), max_length=max_length), Tokenizer.build(reports)
    for row, report in enumerate(reports):
        ids = tokenizer.encode(report, max_length)
        words, ends = tokenizer.decode(ids), Tokenizer.eos_id in ids
        assert ends == (len(clean_report(report).split()) <= max_length - 2)
        rewards = reward([words] * 2, [ends, not ends], [row] * 2)["reward"]
        assert rewards[0] == pytest.approx(10.0)  # what cross-entropy teaches
        assert rewards[1] < 9.9


def test_breaking_off_pays_less_than_writing_on() -> None:
    """A report that is cut in its last sentence: it has no end."""
    long = "The heart is enlarged. There is a small left pleural effusion and a patchy opacity. No pneumothorax."
    reward = Reward((long, *REPORTS) * 3, RewardConfig(), max_length=16)
    words = clean_report(long).split()[:15]
    assert words[-1] != "."
    went_on, broke_off = reward([" ".join(words), " ".join(words[:14])], [False, True], [0, 0])["reward"]
    assert went_on == pytest.approx(10.0)
    assert broke_off < 9


def test_reference_report_has_the_largest_reward_and_the_end_counts() -> None:
    reference = clean_report(REPORTS[1])
    assert rewarded(reference, True, 1) == pytest.approx(10.0)
    assert rewarded(reference, False, 1) < 9.9  # it was cut, and would go on
    assert rewarded(clean_report(REPORTS[3]), True, 1) < 3
    assert rewarded("", True, 1) == pytest.approx(0.0, abs=0.5)
    half = reference.split(" . ")[0]
    assert rewarded(half, True, 1) < rewarded(reference, True, 1) / 2


def test_words_of_all_reports_add_little_reward() -> None:
    """Document frequencies are those of the training reports."""
    common, rare = "the lungs are clear .", "there is a fracture of a left rib ."
    assert rewarded(common, True, 5) < rewarded(rare, True, 5) / 3  # both are in its report


def test_reward_sums_its_weighted_parts() -> None:
    reward = Reward(MANY, RewardConfig(cider=0.5, bleu4=2.0, label_f1=3.0), max_length=60)
    drafts = [clean_report(REPORTS[1]), clean_report(REPORTS[0]), "the heart is enlarged ."]
    parts = reward(drafts, [True] * 3, [1, 1, 1])
    assert set(parts) == {"reward", "cider", "bleu4", "label_f1"}
    np.testing.assert_allclose(parts["reward"], 0.5 * parts["cider"] + 2.0 * parts["bleu4"] + 3.0 * parts["label_f1"])
    assert parts["label_f1"].tolist() == pytest.approx([2 - 2 * FINDING_COST, 0.0, 1 - FINDING_COST])
    assert parts["bleu4"][0] == pytest.approx(1.0)
    assert set(Reward(MANY, RewardConfig(), max_length=60)(drafts, [True] * 3, [1, 1, 1])) == {"reward", "cider"}


def test_finding_gain_by_hand() -> None:
    normal, effusion = REPORTS[0], "There is a left pleural effusion."
    assert finding_gain(normal, "no pneumothorax .") == 0.0
    assert finding_gain(effusion, normal) == 0.0
    assert finding_gain(normal, effusion) == pytest.approx(-FINDING_COST)
    assert finding_gain(effusion, "a small left effusion .") == pytest.approx(1 - FINDING_COST)
    assert finding_gain(effusion, "a small left effusion . the heart is enlarged .") == pytest.approx(
        1 - 2 * FINDING_COST
    )


# --- guards -----------------------------------------------------------------------------------------------------------

START = {"distinct": 0.5, "label_f1_micro": 0.3, "mean_length": 30.0, "redacted": 0.0}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"distinct": 0.41}, []),
        ({"distinct": 0.39}, ["distinct"]),
        ({"label_f1_micro": 0.2}, ["label_f1"]),
        ({"mean_length": 50.0}, ["length"]),
        ({"mean_length": 10.0, "redacted": 0.2}, ["length", "redacted"]),
    ],
)
def test_names_violated_constraints(change: dict[str, float], broken: list[str]) -> None:
    assert violated_constraints({**START, **change}, START, SelectionConstraints()) == broken
    assert violated_constraints({**START, **change}, {}, SelectionConstraints()) == []


def test_constant_report_violates_the_absolute_floor() -> None:
    """Relative floors of a model that writes one report are 0."""
    start = {**START, "distinct": 1 / 296, "label_f1_micro": 0.0}
    assert violated_constraints(start, start, SelectionConstraints()) == ["distinct"]
    assert violated_constraints({**start, "distinct": 6 / 296}, start, SelectionConstraints()) == []


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"samples": 1, "baseline": "best_other"}, {"reward": {"cider": 0.0}},
                                   {"reward": {"cider": -1.0}}, {"baseline": "mean"}, {"temperature": 0}])  # fmt: skip
def test_rejects_unusable_scst_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScstConfig.model_validate(wrong)
    assert ScstConfig.model_validate({"samples": 1, "baseline": "greedy"}).samples == 1


# --- the stage --------------------------------------------------------------------------------------------------------


def trained(
    model: ReportModel, directory: Path, val: Sequence[Study], train: Sequence[Study] | None = None, **settings: object
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The returned row and the log."""
    values = {"batch_size": 8, "nll_weight": 0.0, "patience": None, **settings}
    decoding = DecodingConfig(min_length=0)
    train = studies("train", MANY) if train is None else train
    context = RunContext(torch.device("cpu"), 1, "fp32", directory)
    patches = Drawn(model, [*train, *studies("val")])
    generator = ReportGenerator(model, tiny_tokenizer(), patches, tiny_index(model), decoding)
    row = train_scst(generator, StudySplits(train, val), ScstConfig.model_validate(values), context)
    content = torch.load(directory / "scst" / "checkpoint.pt", weights_only=True)
    return dict(row), content["rows"]


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy", "best_other"])
def test_rewards_rise(tmp_path: Path, baseline: str) -> None:
    model = tiny_model()
    _, rows = trained(model, tmp_path, [], epochs=14, samples=6, lr=2e-3, baseline=baseline, reward={"bleu4": 10.0})
    early, late = (np.mean([row["reward"] for row in part]) for part in (rows[:2], rows[-2:]))
    assert late > 1.4 * early
    assert {"policy", "bleu4", "greedy_reward"} <= rows[0].keys()
    if baseline != "best_other":  # which raises the best of the samples, not the most probable report
        assert rows[-1]["greedy_reward"] > rows[0]["greedy_reward"]


def test_greedy_reward_of_a_quarter_is_a_mean(tmp_path: Path) -> None:
    """One study nine times, in batches of five and four; every draft names its effusion."""
    model = tiny_model()
    torch.nn.init.constant_(model.to_words.bias[tiny_tokenizer().id_of("effusion")], 20.0)
    for baseline in ("leave_one_out", "greedy"):
        _, rows = trained(model, tmp_path / baseline, [], [studies("train")[1]] * 9, epochs=1, lr=1e-30, samples=2,
                          batch_size=5, baseline=baseline, reward={"cider": 0.0, "label_f1": 1.0})  # fmt: skip
        assert rows[0]["greedy_reward"] == pytest.approx(1 - FINDING_COST), baseline


def test_epochs_that_violate_constraints_are_not_kept(tmp_path: Path) -> None:
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    row, rows = trained(model, tmp_path, studies("val"), epochs=3, lr=5e-3, guards={"length": 1e-9})
    assert [epoch["val_guards"] for epoch in rows] == [0.0] * 3
    for epoch in rows:  # the selection value excludes what any text would gain
        above = epoch["val_CIDEr"] - epoch["val_chance_CIDEr"] + epoch["val_label_f1_micro"]
        assert epoch["val_selection"] == pytest.approx(above - epoch["val_chance_label_f1"])
    assert any(epoch["val_chance_CIDEr"] for epoch in rows)
    assert row["epoch"] == 0.0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    log = (tmp_path / "scst" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["epoch", "0.0", "1.0", "2.0", "3.0"]


def test_warns_of_a_model_that_writes_one_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.to_words.bias[tiny_tokenizer().id_of("lungs")], 20.0)
    _, rows = trained(model, tmp_path, studies("val"), epochs=1, lr=1e-30, guards={"least_distinct": 0.5})
    assert rows[0]["val_guards"] == 0.0
    assert (
        "distinct, less than the floor of 50.0 %. The model writes nearly the same report for all studies"
        in caplog.text
    )
    assert "name no correct finding" in caplog.text


def test_backbone_text_tower_and_study_head_do_not_move(tmp_path: Path) -> None:
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained(model, tmp_path, [], epochs=1, lr=1e-2)
    moved = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"to_model", "memory", "encoder", "decoder", "word_embedding", "to_words", "view_embedding",
                     "case_projection"}  # fmt: skip


def test_initial_weights_are_evaluated_once(tmp_path: Path) -> None:
    """A resumed stage selects against the same start."""
    layer = torch.nn.Linear(2, 2)
    context = RunContext(torch.device("cpu"), 1, "fp32", tmp_path)

    def loop() -> Loop:
        return Loop(LoopConfig("scst", select="value"), context, layer, torch.optim.SGD(layer.parameters(), 0.1))

    assert loop().evaluate_initial(lambda: {"value": 0.25}) == {"epoch": 0.0, "val_value": 0.25}
    again = loop()
    assert again.evaluate_initial(lambda: {"value": 0.75}) == {"epoch": 0.0, "val_value": 0.25}
    assert again.history.best_value == 0.25
