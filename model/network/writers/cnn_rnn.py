"""CNN-RNN: an LSTM whose state starts as the embedding of the images (Shin et al. 2016, CVPR).

"Learning to Read Chest X-Rays: Recurrent Neural Cascade Model for Automated Image Annotation", section 5::

    sequence (B, S, D) -> mean of its tokens (B, D) -> d_model = CNN(I) -> source (B, 1, d_model)
    h_0 = c_0 = CNN(I) in every layer; words -> embedding -> LSTM -> logits                  (1)

The paper writes the context of one disease, at most five words, and starts from the name of the disease; this writes a
report, and starts from ``bos``. Where the published code (github.com/rsummers11/CADLab, ``learning-to-read``) says
more than the paper, this follows it: the cell starts as the hidden state does, and the forget gates start open. Its
PCA to the width of the state is a linear layer here, which learns with the rest. A retrieved case is one more token of
the mean. There is no attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.cpu_kernels import Dropout, Linear
from model.network.hypotheses import rows_of_parents, rows_of_studies
from model.network.report_model import DecoderState, Encoded, Patches, ReportModel

_WEIGHT_RANGE = 0.08  # of the initial weights of LSTM and output, as published


@dataclass
class CnnRnnState(DecoderState):
    """Hidden state and cell of each hypothesis, (layers, N, d_model) each."""

    model: CnnRnn
    state: tuple[Tensor, Tensor]
    hypotheses: int

    def step(self, ids: Tensor) -> Tensor:
        """Feed one token of each hypothesis: ids (N,) -> logits (N, vocabulary) of the next."""
        logits, self.state = self.model.advance(ids.unsqueeze(1), self.state)
        return logits.squeeze(1)

    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each study from its hypothesis ``parents[:, j]`` (B, k)."""
        self._take(rows_of_parents(parents))

    def keep(self, studies: Tensor) -> None:
        """Keep only some studies (B',), with all their hypotheses."""
        self._take(rows_of_studies(studies, self.hypotheses))

    def _take(self, rows: Tensor) -> None:
        hidden, cell = self.state
        self.state = hidden[:, rows], cell[:, rows]


class CnnRnn(ReportModel):
    """Writer ``cnn-rnn``: an LSTM that starts from the mean of the sequence."""

    title = "CNN-RNN, an LSTM that starts from the mean image feature (Shin et al. 2016)"

    @classmethod
    def least_weights(cls, config: ModelConfig) -> int:
        """A lower bound of the number of weights behind the backbone, without building the model."""
        c = config
        return super().least_weights(c) + 8 * c.decoder_layers * c.d_model**2 + 2 * c.vocab_size * c.d_model

    @classmethod
    def dimensions(cls, config: ModelConfig) -> str:
        """The dimensions of this writer in words, for the model card."""
        return f"{super().dimensions(config)}, {config.decoder_layers} LSTM layers"

    def build_writer(self, config: ModelConfig, width: int) -> None:
        """Make projection, embedding and LSTM."""
        c = config
        self.to_state = Linear(width, c.d_model)
        self.word_embedding = nn.Embedding(c.vocab_size, c.d_model, padding_idx=0)
        self.lstm = nn.LSTM(c.d_model, c.d_model, c.decoder_layers, batch_first=True)
        self.to_words = Linear(c.d_model, c.vocab_size)
        self.drop = Dropout(c.dropout)
        for parameter in (*self.lstm.parameters(), *self.to_words.parameters()):
            nn.init.uniform_(parameter, -_WEIGHT_RANGE, _WEIGHT_RANGE)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.constant_(parameter[c.d_model : 2 * c.d_model], 1.0)  # gates are in the order i, f, g, o

    def encode(self, patches: Patches, cases: Tensor | None = None, case_mask: Tensor | None = None) -> Encoded:
        """CNN(I), the projected mean of the real tokens, as a sequence of one token."""
        sequence, mask = self.sequence(patches, cases, case_mask)
        real = mask.unsqueeze(2).to(sequence.dtype)  # (B, S, 1)
        mean = (sequence * real).sum(1) / real.sum(1)  # (B, D)
        return Encoded(self.to_state(mean).unsqueeze(1), torch.ones_like(mask[:, :1]))

    def forward(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Teacher-forced logits: ids (B, T), bos first -> (B, T, vocabulary)."""
        return self.advance(ids, self._initial(encoded))[0]

    def start(self, encoded: Encoded, hypotheses: int, *, branching: bool = False) -> CnnRnnState:
        """A decode of ``hypotheses`` per study; they may continue from each other."""
        hidden, cell = (part.repeat_interleave(hypotheses, 1) for part in self._initial(encoded))
        return CnnRnnState(self, (hidden, cell), hypotheses)

    def advance(self, ids: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Feed words ids (N, T) to a state -> logits (N, T, vocabulary) and the next state."""
        hidden, state = self.lstm(self.drop(self.word_embedding(ids)), state)
        return self.to_words(self.drop(hidden)), state

    def _initial(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """h_0 and c_0: (layers, B, d_model) each."""
        layers = self.config.decoder_layers
        image = encoded.source[:, 0].to(self.word_embedding.weight.dtype)
        image = image.expand(layers, -1, -1).contiguous()
        return image, image
