"""Which stages of a run are done: ``<stage>/result.pt`` holds the weights and metrics after it."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.network.report_model import ReportModel
from training.config import RunConfig
from training.trainer.checkpoints import first_line, save_atomically
from training.trainer.context import RunContext

log = logging.getLogger("training")

STAGES = ("pretrain", "retriever", "index", "ce", "scst", "evaluate", "bundle")
_PRETRAINED = ("backbone.", "finding_head.")  # what stage pretrain changes
SHARED = STAGES[:5]  # all processes take part in these; the others run on process 0 alone


class StageResults:
    """Starts and ends the stages of a run; loads the weights and metrics of those that are done.

    ``metrics`` has those of all stages so far.

    Raises:
        ValueError: a stage that is not selected has no result, and a selected one needs it.
    """

    def __init__(self, config: RunConfig, context: RunContext, model: ReportModel, selected: Sequence[str]) -> None:
        self._config, self._context, self._model, self._selected = config, context, model, selected
        self.metrics: dict[str, Any] = {}
        self._done = context.processes.from_main(lambda: done_stages(context.work))
        check_prerequisites(config, context.work, selected, self._done)

    def begin(self, name: str) -> bool:
        """Whether this process has to run a stage now; loads one that is done."""
        if name in self._done:
            self._load(name)
            log.info("%s: done before", name)
            return False
        if name not in self._selected:
            return False
        log.info("stage %s", name)
        main = self._context.processes.main
        if name not in SHARED and not main:
            self._context.processes.wait()  # for process 0, which runs it
            return False
        if name in SHARED and main:  # these metrics are of weights that are about to change
            evaluation_file(self._context.work).unlink(missing_ok=True)
        if name not in _stages_of(self._config):
            log.info("%s: not part of preset %s", name, self._config.preset)
            self.finish(name, {})
            return False
        return True

    def finish(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Save the weights and metrics of a stage; all processes continue with those weights."""
        self.metrics |= metrics
        if name in SHARED and self._context.processes.main:
            path = _result_file(self._context.work, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_atomically({"model": self._model.state_dict(), "metrics": json.dumps(dict(metrics))}, path)
        self._context.processes.wait()
        if not self._context.processes.main:
            self._load(name)  # bit for bit what a resumed run loads

    def _load(self, name: str) -> None:
        path = _result_file(self._context.work, name)
        try:
            content = torch.load(path, map_location=self._context.device, weights_only=True)
            state = content["model"]
            if name == "pretrain":  # perhaps of a row with another writer; the rest is as it was built
                state = self._model.state_dict() | {k: v for k, v in state.items() if k.startswith(_PRETRAINED)}
            self._model.load_state_dict(state)
            self.metrics |= json.loads(content["metrics"])
        except Exception as error:
            raise ValueError(f"{path} cannot be used ({first_line(error)}). Remove it to repeat stage {name} from its "
                             "last checkpoint, or resume with the version that wrote it.") from error  # fmt: skip


def _result_file(work: Path, name: str) -> Path:
    return work / name / "result.pt"


def done_stages(work: Path) -> set[str]:
    """The stages with a result in a work directory."""
    return {name for name in SHARED if _result_file(work, name).exists()}


def check_prerequisites(config: RunConfig, work: Path, selected: Sequence[str], done: Collection[str]) -> None:
    """Raise ValueError where a stage is not selected and has no result, and a selected one needs it."""
    for name, user in missing_prerequisites(config, selected, done):
        raise ValueError(f"stage {name} was left out and has no result in {work / name}, and stage {user} "
                         "needs it; add it to --stages")  # fmt: skip


def missing_prerequisites(
    config: RunConfig, selected: Sequence[str], done: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Stages that are neither selected nor done, each with the first selected stage that needs it.

    A stage needs the weights of the stages before it, which are also part of any later result, and
    the files of the index. ``scst`` may always be left out.
    """
    required = _stages_of(config) & {"retriever", "index", "ce"}
    if config.pretrain is not None and config.backbone_weights == "none":
        required.add("pretrain")
    to_run = [name for name in STAGES if name in selected and name not in done]
    for position, name in enumerate(STAGES):
        if name not in required or name in done or name in selected:
            continue
        users = [user for user in STAGES[position + 1 :] if user in to_run or (name != "index" and user in done)]
        if users and users[0] in to_run:
            yield name, users[0]


def evaluation_file(work: Path) -> Path:
    """Metrics of stage ``evaluate``, for a bundle that a later command writes; no report text."""
    return work / "evaluate" / "metrics.json"


def _stages_of(config: RunConfig) -> set[str]:
    """The stages that a configuration has."""
    stages = {"ce", "evaluate", "bundle"}
    if config.pretrain is not None:
        stages.add("pretrain")
    if config.retrieval_k:
        stages |= {"index", "retriever"} if config.retriever is not None else {"index"}
    if config.scst is not None:
        stages.add("scst")
    return stages
