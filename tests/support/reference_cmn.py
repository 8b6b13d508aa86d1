"""The Cross-modal Memory Network as published: the reference of the tests and of the speed benchmark.

Chen et al. 2021, "Cross-modal Memory Networks for Radiology Report Generation". It reads a
state dict with the published key names and computes the published equations: the memory is expanded
and projected for every sample and step, every step runs the whole prefix, beams are searched one study
at a time in Python. Nothing is cached, fused or shared with ``model/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.text.tokenizer import UNK

PUBLISHED_TRIGRAM_PENALTY = 2 * 0.693
END = 0  # bos, eos and pad are one id in published models


class ReferenceCMN:
    """A published model without its visual extractor.

    Args:
        state: tensors under the published names, ``encoder_decoder.…``.
        heads: attention and memory heads.
        top_k: memory slots a head keeps.
        max_length: words of the longest report.
        dropout: rate of the published dropout layers; ``feature_dropout`` that of the embedded features.
    """

    def __init__(
        self, state: Mapping[str, Tensor], *, heads: int, top_k: int, max_length: int, dropout: float = 0.0,
        feature_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self._state = {key.removeprefix("encoder_decoder."): value for key, value in state.items()}
        self._heads, self._top_k, self.max_length = heads, top_k, max_length
        self._dropout, self._feature_dropout = dropout, feature_dropout
        self.width = self._state["memory_matrix"].shape[1]
        self.feature_width = self._state["att_embed.0.weight"].shape[1]
        self._layers = sum(key.startswith("model.decoder.layers.") and key.endswith("w_1.bias") for key in self._state)

    def train(self) -> dict[str, Tensor]:
        """Make every weight trainable; returns them by name, the shared memory projections once."""
        for key, tensor in self._state.items():
            if not key.startswith("model.cmn.") and not key.endswith(".pe"):
                self._state[key] = tensor.clone().requires_grad_()
        self._state = {key: tensor for key, tensor in self._state.items() if not key.startswith("model.cmn.")}
        return {key: tensor for key, tensor in self._state.items() if tensor.requires_grad}

    # -- the network -----------------------------------------------------------------------------------------------

    def encode(self, features: Tensor) -> Tensor:
        """Patch features (B, S, D) -> encoder output (B, S, d_model)."""
        x = F.dropout(F.relu(self._linear("att_embed.0", features)), self._feature_dropout)
        x = x + self._memory(x)
        x = self._drop(x + self._state["model.src_embed.0.pe"][:, : x.shape[1]])
        for layer in range(self._layers):
            name = f"model.encoder.layers.{layer}"
            y = self._norm(f"{name}.sublayer.0.norm", x)
            x = x + self._drop(self._attention(f"{name}.self_attn", y, y, None))
            x = x + self._drop(self._feed_forward(name, self._norm(f"{name}.sublayer.1.norm", x)))
        return self._norm("model.encoder.norm", x)

    def log_probs(self, encoded: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities of the word after every prefix: ids (B, T), the first 0 -> (B, T, vocabulary)."""
        length = ids.shape[1]
        x = self._state["model.tgt_embed.0.lut.weight"][ids] * math.sqrt(self.width)
        x = self._drop(x + self._state["model.tgt_embed.1.pe"][:, :length])
        x = x + self._memory(x)
        real = ids > 0
        real[:, 0] = True
        mask = real.unsqueeze(1) & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()  # (B, T, T)
        for layer in range(self._layers):
            name = f"model.decoder.layers.{layer}"
            y = self._norm(f"{name}.sublayer.0.norm", x)
            x = x + self._drop(self._attention(f"{name}.self_attn", y, y, mask))
            y = self._norm(f"{name}.sublayer.1.norm", x)
            x = x + self._drop(self._attention(f"{name}.src_attn", y, encoded, None))
            x = x + self._drop(self._feed_forward(name, self._norm(f"{name}.sublayer.2.norm", x)))
        return self._linear("logit", self._norm("model.decoder.norm", x)).log_softmax(-1)

    def loss(self, features: Tensor, ids: Tensor) -> Tensor:
        """Mean negative log-likelihood of ids (B, T), 0 before and after the words; the first end is a target."""
        log_probs = self.log_probs(self.encode(features), ids[:, :-1])
        targets = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids[:, 1:-1] > 0], dim=1)
        likelihood = log_probs.gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        return -(likelihood * targets).sum() / targets.sum()

    # -- decoding --------------------------------------------------------------------------------------------------

    def greedy(self, features: Tensor, *, trigram_penalty: float = 0.0, ends: bool = True) -> Tensor:
        """(B, max_length) words, 0 after the end. With ``ends`` False no end is produced."""
        encoded = self.encode(features)
        ids = torch.zeros(len(features), 1, dtype=torch.int64, device=features.device)
        for _ in range(self.max_length):
            step = self._next(encoded, ids, trigram_penalty, ends)
            finished = (ids[:, 1:] == END).any(dim=1)
            ids = torch.cat([ids, step.argmax(-1).masked_fill(finished, END).unsqueeze(1)], dim=1)
            if ends and bool((ids[:, 1:] == END).any(dim=1).all()):
                break
        return F.pad(ids[:, 1:], (0, self.max_length + 1 - ids.shape[1]))

    def beam(self, features: Tensor, beams: int, *, trigram_penalty: float = 0.0, ends: bool = True) -> Tensor:
        """(B, max_length) words of the best hypothesis by summed log-probability, 0 after the end.

        A finished hypothesis occupies one of the ``beams`` slots of its step.
        """
        encoded = self.encode(features)
        live: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in features]
        best: list[tuple[float, list[int]]] = [(-math.inf, [])] * len(features)
        for position in range(self.max_length):
            rows = [(study, total, words) for study, held in enumerate(live) for total, words in held]
            if not rows:
                break
            ids = torch.tensor([[END, *words] for _, _, words in rows], device=features.device)
            step = self._next(encoded[[study for study, _, _ in rows]], ids, trigram_penalty, ends)
            before = torch.tensor([total for _, total, _ in rows], device=step.device)
            totals = before.unsqueeze(1) + step  # (rows, vocabulary)
            for study in range(len(features)):
                candidates = [row for row, (owner, _, _) in enumerate(rows) if owner == study]
                if not candidates:
                    continue
                values, flat = totals[candidates].flatten().topk(beams)
                live[study] = []
                for value, at in zip(values.tolist(), flat.tolist(), strict=True):
                    words = [*rows[candidates[at // step.shape[1]]][2], at % step.shape[1]]
                    if words[-1] != END and position < self.max_length - 1:
                        live[study].append((value, words))
                    elif value > best[study][0]:
                        best[study] = value, words
        padded = [words + [END] * (self.max_length - len(words)) for _, words in best]
        return torch.tensor(padded, device=features.device)

    def _next(self, encoded: Tensor, ids: Tensor, trigram_penalty: float, ends: bool) -> Tensor:
        """Log-probabilities (B, vocabulary) of the word after ids (B, T), minus the penalty for repeated trigrams."""
        step = self.log_probs(encoded, ids)[:, -1].clone()
        if not ends:
            step[:, END] = -math.inf
        if trigram_penalty:
            for row, words in enumerate(ids[:, 1:].tolist()):
                for first in range(len(words) - 2):
                    if words[first : first + 2] == words[-2:]:
                        step[row, words[first + 2]] -= trigram_penalty
        return step

    # -- parts -----------------------------------------------------------------------------------------------------

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._state[f"{name}.weight"], self._state[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self._state[f"{name}.a_2"] * (x - mean) / (deviation + 1e-6) + self._state[f"{name}.b_2"]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropout) if self._dropout else x

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self._heads, self.width // self._heads).transpose(1, 2)

    def _attention(self, name: str, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        queries, keys, values = (self._split(self._linear(f"{name}.linears.{i}", y))
                                 for i, y in enumerate((x, source, source)))  # fmt: skip
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), -math.inf)
        read = self._drop(scores.softmax(-1)) @ values
        return self._linear(f"{name}.linears.3", read.transpose(1, 2).reshape(x.shape))

    def _memory(self, x: Tensor) -> Tensor:
        """Response of the memory to tokens (B, T, d_model); the slots are projected for each sample."""
        slots = self._state["memory_matrix"].unsqueeze(0).expand(len(x), -1, -1)
        queries, keys, values = (self._split(self._linear(f"cmn.linears.{i}", y))
                                 for i, y in enumerate((x, slots, slots)))  # fmt: skip
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])  # (B, H, T, M)
        best, chosen = scores.topk(self._top_k)
        expanded = values.unsqueeze(2).expand(-1, -1, chosen.shape[2], -1, -1)  # (B, H, T, M, d_h)
        picked = expanded.gather(3, chosen.unsqueeze(-1).expand(-1, -1, -1, -1, values.shape[-1]))
        read = (self._drop(best.softmax(-1)).unsqueeze(3) @ picked).squeeze(3)
        return self._linear("cmn.linears.3", read.transpose(1, 2).reshape(x.shape))

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        hidden = self._drop(F.relu(self._linear(f"{name}.feed_forward.w_1", x)))
        return self._linear(f"{name}.feed_forward.w_2", hidden)


def published_state(
    *, words: int, d_model: int = 512, d_ff: int = 512, features: int = 2048, layers: int = 3, slots: int = 2048,
    seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """A randomly initialised state dict in the published layout, without visual extractor.

    Args:
        words: size of the vocabulary with ``<unk>``, without the shared special id 0.
        d_model, d_ff, features, layers, slots: dimensions.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        bound = math.sqrt(6 / (inputs + outputs))
        state[f"{name}.weight"] = (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound
        state[f"{name}.bias"] = (torch.rand(outputs, generator=generator) * 2 - 1) / math.sqrt(inputs)

    def norm(name: str) -> None:
        state[f"{name}.a_2"] = 1 + 0.1 * torch.randn(d_model, generator=generator)
        state[f"{name}.b_2"] = 0.1 * torch.randn(d_model, generator=generator)

    linear("att_embed.0", d_model, features)
    for i in range(4):
        linear(f"cmn.linears.{i}", d_model, d_model)
    for stack, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "src_attn"))):
        for layer in range(layers):
            name = f"model.{stack}.layers.{layer}"
            for attention in attentions:
                for i in range(4):
                    linear(f"{name}.{attention}.linears.{i}", d_model, d_model)
            linear(f"{name}.feed_forward.w_1", d_ff, d_model)
            linear(f"{name}.feed_forward.w_2", d_model, d_ff)
            for i in range(len(attentions) + 1):
                norm(f"{name}.sublayer.{i}.norm")
        norm(f"model.{stack}.norm")
    position = torch.arange(5000).unsqueeze(1)
    rate = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
    table = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=2).flatten(1)
    state["model.src_embed.0.pe"] = state["model.tgt_embed.1.pe"] = table.unsqueeze(0)
    linear("logit", words + 1, d_model)
    state["model.tgt_embed.0.lut.weight"] = state["logit.weight"].roll(1, 0).clone()
    state["memory_matrix"] = torch.randn(slots, d_model, generator=generator) / math.sqrt(d_model)
    for i in range(4):
        for part in ("weight", "bias"):
            state[f"model.cmn.linears.{i}.{part}"] = state[f"cmn.linears.{i}.{part}"]
    return {f"encoder_decoder.{key}": value for key, value in state.items()}


class GivenFeatures(nn.Module):
    """Replaces a backbone where a test supplies the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


def made_up_words(count: int) -> tuple[str, ...]:
    return tuple(sorted([UNK, *(f"w{number:03}" for number in range(count - 1))]))
