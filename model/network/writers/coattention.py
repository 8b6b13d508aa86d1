"""Co-attention and a hierarchical LSTM: one LSTM makes the topics of sentences, one their words (Jing et al. 2018).

Jing, Xie, Xing 2018, ACL, "On the Automatic Generation of Medical Imaging Reports"; sections and equations:

    sequence v (B, S, D) -> tags (3.2, eq. 1) -> a (B, 10, d), embeddings of the most probable tags
    v, a, last state of the sentence LSTM -> context (3.3, eq. 2 and 3) -> topic and stop (3.4, eq. 4 and 5)
    topic, words of the sentence so far -> word LSTM -> next word (3.5, eq. 6)

The sentence LSTM reads no words: topics and stop probabilities of a study depend on its images alone. A report is one
sequence of tokens, in which "." ends a sentence. Where sentence s + 1 may begin, with the stop probability p of s,

    log p(eos) = log p,    log p(word) = log(1 - p) + log-softmax of the word LSTM,

and the end token has no probability elsewhere. So the cross-entropy of the sequence is the stop and word loss (3.6,
eq. 7), and a search over tokens is one over topics and stops. Tags add ``auxiliary_losses``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.cpu_kernels import Dropout, Linear
from model.network.hypotheses import rows_of_parents, rows_of_studies
from model.network.report_model import DecoderState, Encoded, Patches, ReportModel
from model.text.tokenizer import Tokenizer

SEMANTIC_TAGS = 10  # M, most probable tags with semantic features, as published
NEVER = -30.0  # logit of a stop that cannot happen: probability 1e-13, and the loss of an open last sentence is finite


@dataclass(frozen=True)
class CoAttentionEncoded(Encoded):
    """Logits of the tags (B, tags); keys of v (B, S, d) and of a (B, M, d), and their parts of the context.

    The context is linear in what is attended to, so v and a are projected once and not for each sentence: ``source``
    is W v.
    """

    tag_logits: Tensor
    visual_keys: Tensor
    semantic_keys: Tensor
    semantic: Tensor

    def select(self, rows: Tensor) -> CoAttentionEncoded:
        """The encoding of some of the studies."""
        return replace(
            super().select(rows), tag_logits=self.tag_logits[rows], visual_keys=self.visual_keys[rows],
            semantic_keys=self.semantic_keys[rows], semantic=self.semantic[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """The first n sentences of B studies.

    Attributes:
        encoded: of the studies.
        state: of the sentence LSTM after them, (B, d) twice.
        topics: (B, n, d).
        stops: (B, n) logits of p(STOP) after each.
        weights: (B, n, S) visual attention.
    """

    encoded: CoAttentionEncoded
    state: tuple[Tensor, Tensor]
    topics: Tensor
    stops: Tensor
    weights: Tensor

    def select(self, rows: Tensor) -> Outline:
        """The outlines of some of the studies."""
        hidden, cell = self.state
        return Outline(self.encoded.select(rows), (hidden[rows], cell[rows]), self.topics[rows], self.stops[rows],
                       self.weights[rows])  # fmt: skip


@dataclass
class CoAttentionState(DecoderState):
    """A decode in progress: the sentence of each hypothesis (N,), -1 before the first, and its word LSTM (1, N, d).

    ``openings`` (2, B, n, d) are the states of the word LSTM after topic and start token of each sentence.
    """

    model: CoAttentionNetwork
    outline: Outline
    openings: Tensor
    sentence: Tensor
    words: tuple[Tensor, Tensor]

    def step(self, ids: Tensor) -> Tensor:
        """Feed one token of each hypothesis: ids (N,) -> logits (N, vocabulary) of the next."""
        begins = (ids == self.model.config.sentence_end) | (self.sentence < 0)
        self.sentence = self.sentence + begins
        self._outline_to(int(self.sentence.max()) + 1)
        study = torch.arange(len(ids), device=ids.device) // (len(ids) // len(self.outline.stops))
        _, state = self.model.word_lstm(self.model.word_embedding(ids).unsqueeze(1), self.words)
        opened = self.openings[:, study, self.sentence].to(state[0].dtype)  # (2, N, d)
        hidden, cell = (torch.where(begins.unsqueeze(1), new, old) for new, old in zip(opened, state, strict=True))
        self.words = hidden, cell
        stops = self.outline.stops[study, (self.sentence - 1).clamp(min=0)]
        return self.model.logits(hidden.squeeze(0), stops, begins & (self.sentence > 0))

    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each study from its hypothesis ``parents[:, j]`` (B, k)."""
        self._take(rows_of_parents(parents))

    def keep(self, studies: Tensor) -> None:
        """Keep only some studies (B',), with all their hypotheses."""
        self._take(rows_of_studies(studies, len(self.sentence) // len(self.outline.stops)))
        self.outline, self.openings = self.outline.select(studies), self.openings[:, studies]

    def _take(self, rows: Tensor) -> None:
        hidden, cell = self.words
        self.sentence, self.words = self.sentence[rows], (hidden[:, rows], cell[:, rows])

    def _outline_to(self, count: int) -> None:
        known = self.outline.topics.shape[1]
        if count > known:
            self.outline = self.model.extended(self.outline, count)
            new = self.model.openings(self.outline.topics[:, known:])
            self.openings = torch.cat([self.openings.to(new.dtype), new], dim=2)


class CoAttentionNetwork(ReportModel):
    """Writer ``coattention``: tags, co-attention, a sentence LSTM with stop control and a word LSTM."""

    title = "co-attention and hierarchical LSTM (Jing et al. 2018)"
    uses_tags = True

    @classmethod
    def least_weights(cls, config: ModelConfig) -> int:
        """A lower bound of the number of weights behind the backbone, without building the model."""
        width = config.d_model
        return super().least_weights(config) + width * (24 * width + 2 * config.vocab_size + len(config.tags))

    def build_writer(self, config: ModelConfig, width: int) -> None:
        """Make tag classifier, attention, LSTMs and embeddings; raises ValueError without tags or ``sentence_end``."""
        c = config
        if c.sentence_end is None or not c.tags:
            missing = "sentence_end, the id of '.' in the vocabulary" if c.tags else "tags, the names that it predicts"
            raise ValueError(f"writer {c.writer!r} needs {missing}; set it in the model configuration")
        self.drop_features = Dropout(c.dropout if c.feature_dropout is None else c.feature_dropout)
        self.drop = Dropout(c.dropout)
        self.tag_classifier = Linear(width, len(c.tags))
        self.tag_embedding = nn.Embedding(len(c.tags), c.d_model)
        self.visual_key, self.visual_query = Linear(width, c.d_model), Linear(c.d_model, c.d_model)
        self.semantic_key, self.semantic_query = Linear(c.d_model, c.d_model), Linear(c.d_model, c.d_model)
        self.visual_score, self.semantic_score = nn.Linear(c.d_model, 1), nn.Linear(c.d_model, 1)
        self.visual_context, self.semantic_context = Linear(width, c.d_model), Linear(c.d_model, c.d_model)
        self.sentence_lstm = nn.LSTMCell(c.d_model, c.d_model)
        self.topic = Linear(2 * c.d_model, c.d_model)
        self.stop = nn.Sequential(Linear(2 * c.d_model, c.d_model), nn.Tanh(), nn.Linear(c.d_model, 1))
        self.word_embedding = nn.Embedding(c.vocab_size, c.d_model, padding_idx=Tokenizer.pad_id)
        self.word_lstm = nn.LSTM(c.d_model, c.d_model, batch_first=True)
        self.to_words = Linear(c.d_model, c.vocab_size)
        for lstm in (self.sentence_lstm, self.word_lstm):  # else topics hardly differ, and all sentences are one
            for name, weights in lstm.named_parameters():
                for gate in weights.chunk(4) if "weight" in name else ():
                    (nn.init.orthogonal_ if "hh" in name else nn.init.xavier_uniform_)(gate)

    def encode(
        self, patches: Patches, cases: Tensor | None = None, case_mask: Tensor | None = None
    ) -> CoAttentionEncoded:
        """Predict the tags from the patch tokens, look up the most probable ones, and project what is attended to."""
        sequence, mask = self.sequence(patches, cases, case_mask)
        count = patches.tokens.shape[1] * patches.tokens.shape[2]
        real = mask[:, :count].unsqueeze(2)
        mean = (sequence[:, :count] * real).sum(1) / real.sum(1)  # (B, D), of the patch tokens
        tag_logits = self.tag_classifier(mean)  # eq. 1, a softmax over the tags
        likely = tag_logits.topk(min(SEMANTIC_TAGS, len(self.config.tags)), dim=1).indices  # (B, M)
        semantic = self.drop(self.tag_embedding(likely))
        source = self.drop_features(self.visual_context(sequence))
        return CoAttentionEncoded(source, mask, tag_logits, self.visual_key(sequence), self.semantic_key(semantic),
                                  self.semantic_context(semantic))  # fmt: skip

    def auxiliary_losses(self, encoded: Encoded, tags: Tensor) -> dict[str, Tensor]:
        """``tags``: cross-entropy between the softmax and the tags (B, tags), divided by their number (3.6)."""
        assert isinstance(encoded, CoAttentionEncoded)
        shares = tags / tags.sum(1, keepdim=True).clamp(min=1)
        return {"tags": -(shares * encoded.tag_logits.float().log_softmax(1)).sum()}

    def forward(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Teacher-forced logits: ids (B, T), bos first -> (B, T, vocabulary); zeros where ``ids`` are padding.

        The word LSTM runs once, over the sentences of all reports as one batch.
        """
        begins, sentence = self._sentences(ids)
        outline = self.extended(self._outline(encoded), int(sentence.max()) + 1)
        study, position = ids.nonzero(as_tuple=True)  # (P,) of the tokens, by study
        begins, sentence = begins[study, position], sentence[study, position]
        first = begins.nonzero().squeeze(1)  # (sentences,)
        row = begins.cumsum(0) - 1  # (P,) sentence of each token
        column = torch.arange(len(row), device=ids.device) - first[row] + 1  # behind the topic
        words = self.drop(self.word_embedding(ids[study, position].masked_fill(begins, Tokenizer.bos_id)))
        x = words.new_zeros(len(first), int(column.max()) + 1, self.config.d_model)
        x[:, 0] = outline.topics[study[first], sentence[first]]
        x[row, column] = words
        hidden, _ = self.word_lstm(x)
        stops = outline.stops[study, (sentence - 1).clamp(min=0)]
        logits = self.logits(self.drop(hidden[row, column]), stops, begins & (sentence > 0))
        return logits.new_zeros(*ids.shape, logits.shape[1]).index_put((study, position), logits)

    def attention(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Visual attention of the sentence of each position: (B, T, S) float32, rows sum to 1."""
        _, sentence = self._sentences(ids)
        outline = self.extended(self._outline(encoded), int(sentence.max()) + 1)
        return outline.weights[torch.arange(len(ids), device=ids.device).unsqueeze(1), sentence].float()

    def start(self, encoded: Encoded, hypotheses: int, *, branching: bool = False) -> CoAttentionState:
        """An empty decode of ``hypotheses`` per study; all may continue from each other."""
        outline = self._outline(encoded)
        rows = len(encoded.source) * hypotheses
        zeros = outline.topics.new_zeros(1, rows, self.config.d_model)
        nothing = outline.topics.new_zeros(2, len(encoded.source), 0, self.config.d_model)
        sentence = torch.full((rows,), -1, device=zeros.device)
        return CoAttentionState(self, outline, nothing, sentence, (zeros, zeros))

    def extended(self, outline: Outline, count: int) -> Outline:
        """The outline with ``count`` sentences or more."""
        encoded, (hidden, cell) = outline.encoded, outline.state
        mask = encoded.masked
        topics, stops, weights = list(outline.topics.unbind(1)), list(outline.stops.unbind(1)), []
        while len(topics) < count:
            visual = _weights(encoded.visual_keys, self.visual_query(hidden), self.visual_score, mask)  # eq. 2
            semantic = _weights(encoded.semantic_keys, self.semantic_query(hidden), self.semantic_score)  # eq. 3
            context = _weighted(visual, encoded.source) + _weighted(semantic, encoded.semantic)  # (B, d)
            before = hidden
            hidden, cell = self.sentence_lstm(context, (hidden, cell))
            topics.append(self.topic(torch.cat([hidden, context], dim=1)).tanh())  # eq. 4
            stops.append(self.stop(torch.cat([before, hidden], dim=1)).squeeze(1))  # eq. 5
            weights.append(visual)
        known = outline.weights
        return Outline(encoded, (hidden, cell), torch.stack(topics, 1), torch.stack(stops, 1),
                       torch.cat([known, torch.stack(weights, 1)], dim=1) if weights else known)  # fmt: skip

    def openings(self, topics: Tensor) -> Tensor:
        """States of the word LSTM after topics (B, n, d) and the start token: (2, B, n, d)."""
        start = self.word_embedding.weight[Tokenizer.bos_id].expand_as(topics)
        _, state = self.word_lstm(torch.stack([topics.to(start.dtype), start], dim=2).flatten(0, 1))
        return torch.cat(state).view(2, *topics.shape)

    def logits(self, hidden: Tensor, stops: Tensor, may_stop: Tensor) -> Tensor:
        """Log-probabilities (P, vocabulary) float32 of P tokens.

        Args:
            hidden: (P, d) of the word LSTM; eq. 6.
            stops: (P,) logits of p(STOP) of the sentence before.
            may_stop: (P,) whether the token is the first of a sentence after another one.
        """
        stop = stops.float().masked_fill(~may_stop, NEVER).unsqueeze(1)
        words = self.to_words(hidden).float()
        is_end = torch.arange(words.shape[1], device=words.device) == Tokenizer.eos_id
        log_probs = words.masked_fill(is_end, float("-inf")).log_softmax(1)
        return torch.where(is_end, F.logsigmoid(stop), F.logsigmoid(-stop) + log_probs)

    def _outline(self, encoded: Encoded) -> Outline:
        """No sentence yet: the sentence LSTM starts from zeros."""
        assert isinstance(encoded, CoAttentionEncoded)
        (batch, length), keys = encoded.mask.shape, encoded.visual_keys
        zeros = keys.new_zeros(batch, self.config.d_model)
        return Outline(encoded, (zeros, zeros), keys.new_zeros(batch, 0, self.config.d_model),
                       keys.new_zeros(batch, 0), keys.new_zeros(batch, 0, length))  # fmt: skip

    def _sentences(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a sentence begins after each token of ids (B, T), bos first, and the sentence of the next, from 0."""
        begins = torch.eq(ids, self.config.sentence_end or 0)
        begins[:, 0] = True
        return begins, begins.cumsum(1) - 1


def _weights(keys: Tensor, query: Tensor, score: nn.Linear, mask: Tensor | None = None) -> Tensor:
    """softmax(W tanh(keys + query)): keys (B, S, d), query (B, d) -> (B, S)."""
    scores: Tensor = score(torch.tanh(keys + query.unsqueeze(1))).squeeze(2)
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(1)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Sum of values (B, S, d) by weights (B, S): (B, d)."""
    return torch.einsum("bs,bsd->bd", weights.to(values.dtype), values)
