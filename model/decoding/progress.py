"""What is certain of a report while it is still being written, up to the end of a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Tell = Callable[[int, list[int], list[float]], None]


class Progress:
    """Follows a search and tells of the words that no later step can change.

    They are the words that all hypotheses share which may still become the report. Asking costs a wait for the device
    at each step, so a search that nobody listens to has no ``Progress``.
    """

    def __init__(self, studies: Iterable[int], ends: Iterable[int], tell: Tell) -> None:
        """Nothing is certain yet.

        Args:
            studies: rows of the batch that somebody listens to.
            ends: ids that end a sentence, eos among them.
            tell: called with a row of the batch and the ids and natural log-probabilities of its certain words, from
                the first to one of ``ends``; again whenever they reach a later one.
        """
        self._told = dict.fromkeys(studies, 0)
        self._ends = tuple(ends)
        self._tell = tell

    def update(self, studies: Tensor, ids: Tensor, log_probs: Tensor, able: Tensor, length: int) -> None:
        """Look at the hypotheses after a step.

        Args:
            studies: (N,) rows of the batch.
            ids: (N, h, T) of their hypotheses, 0 behind an end.
            log_probs: (N, h, T) of each id.
            able: (N, h), True where a hypothesis, or one that begins with it, may become the study's report.
            length: positions that are written.
        """
        first = able.int().argmax(dim=1)[:, None, None]
        one = ids.take_along_dim(first, dim=1)[:, 0, :length]  # (N, length)
        same = (ids[..., :length] == one.unsqueeze(1)) | ~able.unsqueeze(2)
        shared = same.all(dim=1).int().cumprod(dim=1)
        closed = shared * torch.isin(one, one.new_tensor(self._ends))
        certain = (closed * torch.arange(1, length + 1, device=ids.device)).amax(dim=1)
        for row, (study, count) in enumerate(zip(studies.tolist(), certain.tolist(), strict=True)):
            if count > self._told.get(study, count):
                self._told[study] = count
                gained = log_probs[row, int(first[row]), :count]
                self._tell(study, one[row, :count].tolist(), gained.tolist())
