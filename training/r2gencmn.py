"""What the published R2GenCMN code does differently: its decoding, and the initial weights of its model.

Read from github.com/zhjohnchan/R2GenCMN, commit 15f28ae; ``training.presets`` has its recipe.
"""

from __future__ import annotations

from torch import nn

from model.config import DecodingConfig
from model.network.report_model import ReportModel
from model.network.writers.cmn import CrossModalMemoryNetwork

TRIGRAM_PENALTY = 2 * 0.693  # modules/att_model.py:204: log-probabilities of repeated trigrams lose ln 2 twice
PUBLISHED_DECODING = DecodingConfig(
    method="beam", beam_size=3, length_penalty=0.0, trigram_penalty=TRIGRAM_PENALTY, trigram_penalty_in_beams=False,
    finished_beams_occupy_slots=True, min_length=0, suppress=(),
)  # fmt: skip
NEVER = -1e4  # logit of <pad> and <bos>, which published models lack; probability 0 in float32


def reset_as_published(model: ReportModel) -> None:
    """Initialise all weights except those of the backbone, as the published code does.

    ``modules/base_cmn.py``: Xavier for encoder, decoder, word embedding and the projections of the
    memory (``make_model``, line 305), a normal memory matrix (line 330). All others keep PyTorch's
    defaults.
    Raises ValueError for another writer than ``cmn``.
    """
    if not isinstance(model, CrossModalMemoryNetwork):
        raise ValueError(f"initial_weights=r2gencmn needs writer cmn, but the writer is {model.config.writer}; "
                         "use initial_weights=default")  # fmt: skip
    for part in (model.to_model, model.encoder, model.decoder, model.memory, model.to_words):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                if part not in (model.to_model, model.to_words):
                    nn.init.xavier_uniform_(module.weight)
    nn.init.xavier_uniform_(model.word_embedding.weight)
    nn.init.normal_(model.memory.matrix, std=1 / model.config.memory_dim)
    for parameter, value in (
        (model.word_embedding.weight[:1], 0.0), (model.to_words.weight[:2], 0.0), (model.to_words.bias[:2], NEVER),
    ):  # fmt: skip
        nn.init.constant_(parameter, value)
