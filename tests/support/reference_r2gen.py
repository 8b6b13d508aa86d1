"""R2Gen as published, without its visual extractor: the reference implementation of the tests.

Chen et al. 2020, "Generating Radiology Reports via Memory-driven Transformer", and its
``modules/encoder_decoder.py``. It reads a state dict with the published key names; nothing is cached, fused or shared
with ``model/``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_RENAMED = (  # in this order
    (r"^to_model\.0", "att_embed.0"),
    (r"^to_words", "logit"),
    (r"^word_embedding", "model.tgt_embed.0.lut"),
    (r"^memory\.attention", "model.rm.attn"),
    (r"^memory\.gates_of_word", "model.rm.W"),
    (r"^memory\.gates_of_memory", "model.rm.U"),
    (r"^memory", "model.rm"),
    (r"^(encoder|decoder)", r"model.\1"),
    (r"\.(self_)?attention\.", ".self_attn."),
    (r"\.cross_attention\.", ".src_attn."),
    (r"\.feed_forward\.0\.", ".feed_forward.w_1."),
    (r"\.feed_forward\.3\.", ".feed_forward.w_2."),
    (r"\.norm1\.", ".sublayer.0.norm."),
    (r"\.norm2\.", ".sublayer.1.norm."),
    (r"\.norm3\.", ".sublayer.2.norm."),
    (r"\.norm\.weight_hidden\.", ".norm.mlp_gamma.0."),
    (r"\.norm\.weight_change\.", ".norm.mlp_gamma.2."),
    (r"\.norm\.bias_hidden\.", ".norm.mlp_beta.0."),
    (r"\.norm\.bias_change\.", ".norm.mlp_beta.2."),
    (r"\.norm\.weight$", ".norm.gamma"),
    (r"\.norm\.bias$", ".norm.beta"),
    *((rf"(attn)\.{name}\.", rf"\1.linears.{row}.") for row, name in enumerate(("query", "key", "value", "out"))),
)


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of writer ``r2gen`` under the names of the published code."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in _RENAMED:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


@dataclass(frozen=True)
class ReferenceR2Gen:
    """A published model: its state, heads of its attention and of its memory, rows of its memory, its layers."""

    state: Mapping[str, Tensor]
    heads: int
    memory_heads: int
    slots: int
    layers: int

    def log_probs(self, features: Tensor, ids: Tensor) -> Tensor:
        """Of the word after every prefix: patch features (B, S, D), ids (B, T) -> (B, T, vocabulary)."""
        source = F.relu(self._linear("att_embed.0", features))
        for layer in range(self.layers):
            name = f"model.encoder.layers.{layer}"
            y = self._norm(f"{name}.sublayer.0.norm", source)
            source = source + self._attention(f"{name}.self_attn", y, y, self.heads)
            source = source + self._feed_forward(name, self._norm(f"{name}.sublayer.1.norm", source))
        source = self._norm("model.encoder.norm", source)

        embedding = self.state["model.tgt_embed.0.lut.weight"]
        x = embedding[ids] * math.sqrt(embedding.shape[1]) + _positions(ids.shape[1], embedding.shape[1])
        memory = self._memories(x)
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        for layer in range(self.layers):
            name = f"model.decoder.layers.{layer}"
            y = self._conditional_norm(f"{name}.sublayer.0.norm", x, memory)
            x = x + self._attention(f"{name}.self_attn", y, y, self.heads, causal)
            y = self._conditional_norm(f"{name}.sublayer.1.norm", x, memory)
            x = x + self._attention(f"{name}.src_attn", y, source, self.heads)
            x = x + self._feed_forward(name, self._conditional_norm(f"{name}.sublayer.2.norm", x, memory))
        return self._linear("logit", self._norm("model.decoder.norm", x)).log_softmax(-1)

    def _memories(self, words: Tensor) -> Tensor:
        """The memory after each word, its rows joined: (B, T, d_model) -> (B, T, slots * d_model)."""
        batch, length, width = words.shape
        memory = torch.zeros(batch, self.slots, width)
        for slot in range(min(self.slots, width)):
            memory[:, slot, slot] = 1.0
        states = []
        for t in range(length):
            word = words[:, t : t + 1]
            both = torch.cat([memory, word], dim=1)
            following = memory + self._attention("model.rm.attn", memory, both, self.memory_heads)
            mlp = F.relu(self._linear("model.rm.mlp.2", F.relu(self._linear("model.rm.mlp.0", following))))
            following = following + mlp
            gates = self._linear("model.rm.W", word) + self._linear("model.rm.U", torch.tanh(memory))
            input_gate, forget_gate = torch.sigmoid(gates[..., :width]), torch.sigmoid(gates[..., width:])
            memory = input_gate * torch.tanh(following) + forget_gate * memory
            states.append(memory.reshape(batch, self.slots * width))
        return torch.stack(states, dim=1)

    def _conditional_norm(self, name: str, x: Tensor, memory: Tensor) -> Tensor:
        change = {
            part: self._linear(f"{name}.mlp_{part}.2", F.relu(self._linear(f"{name}.mlp_{part}.0", memory)))
            for part in ("gamma", "beta")
        }
        standard = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
        gamma, beta = self.state[f"{name}.gamma"] + change["gamma"], self.state[f"{name}.beta"] + change["beta"]
        return gamma * standard + beta

    def _norm(self, name: str, x: Tensor) -> Tensor:
        standard = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
        return self.state[f"{name}.gamma"] * standard + self.state[f"{name}.beta"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _attention(self, name: str, x: Tensor, source: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        queries, keys, values = (
            self._linear(f"{name}.linears.{row}", y).view(len(y), y.shape[1], heads, -1).transpose(1, 2)
            for row, y in enumerate((x, source, source))
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        read = (scores.softmax(-1) @ values).transpose(1, 2).reshape(x.shape)
        return self._linear(f"{name}.linears.3", read)

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.feed_forward.w_2", F.relu(self._linear(f"{name}.feed_forward.w_1", x)))


def _positions(length: int, width: int) -> Tensor:
    table = torch.zeros(length, width)
    for position in range(length):
        for column in range(0, width, 2):
            angle = position / 10_000 ** (column / width)
            table[position, column], table[position, column + 1] = math.sin(angle), math.cos(angle)
    return table
