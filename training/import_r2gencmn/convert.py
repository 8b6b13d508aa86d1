"""Published R2GenCMN weights as parameters of our report model; every key is used or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision import models

from model.config import ModelConfig
from model.network.backbone import Backbone
from model.network.transformer import sinusoidal_positions
from model.network.writers.cmn import CrossModalMemoryNetwork
from model.text.tokenizer import SPECIALS, UNK
from training.r2gencmn import NEVER

_BACKBONES = (
    "resnet101", "resnet50", "resnet152", "resnet18", "resnet34",
    "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d",
)  # fmt: skip
_VISUAL, _WRITER = "visual_extractor.model.", "encoder_decoder."


@dataclass(frozen=True)
class Published:
    """Facts about a published model that its state dict does not contain."""

    heads: int = 8  # of attention and memory (``--num_heads``)
    top_k: int = 32  # memory slots a head keeps (``--topk``)
    max_length: int = 60  # words of the longest report written (``--max_seq_length``)


def import_model(
    state: Mapping[str, Tensor], words: Sequence[str], published: Published, *, backbone: nn.Module | None = None
) -> CrossModalMemoryNetwork:
    """A report model with the weights of a published state dict, in eval mode.

    ``words`` are the tokens of ids 1, 2, … (``Protocol.words``). ``backbone``, which has a ``width``, replaces
    the visual extractor in ``state``, which may then be absent.

    Raises:
        ValueError: names a key that is missing, unknown, of another shape or no copy of its original,
            or another size of the vocabulary.
    """
    visual = {key.removeprefix(_VISUAL): value for key, value in state.items() if key.startswith(_VISUAL)}
    rest = {key: value for key, value in state.items() if not key.startswith(_VISUAL)}
    writer = {key.removeprefix(_WRITER): value for key, value in rest.items()}
    if unknown := [key for key in rest if not key.startswith(_WRITER)]:
        raise ValueError(f"unknown key {unknown[0]!r} ({len(unknown)} such); this is no R2GenCMN checkpoint")
    layers = _layers(writer)
    names = _names(layers)
    copies = {f"model.{key}": key for key in names.values() if key.startswith("cmn.")}
    tables = {"model.src_embed.0.pe", "model.tgt_embed.1.pe"}
    rows = {"model.tgt_embed.0.lut.weight", "logit.weight", "logit.bias"}
    _same_keys(writer, {*names.values(), *copies, *tables, *rows})
    config = _model_config(writer, layers, len(words), published)
    if backbone is None:
        config = config.model_copy(update={"backbone": _backbone_of(visual)})
        backbone = Backbone(config.backbone)
    model = CrossModalMemoryNetwork(config, backbone=backbone)  # type: ignore[arg-type]
    for copy, original in copies.items():
        if not torch.equal(writer[copy], writer[original]):
            raise ValueError(f"{_WRITER}{copy} differs from {_WRITER}{original}; a published model has one memory")
    for name in sorted(tables):
        table = writer[name].float().cpu()
        expected = sinusoidal_positions(table.shape[1] if table.dim() == 3 else 1, config.d_model)[None]
        if table.shape != expected.shape or not torch.allclose(table, expected, atol=1e-3):
            raise ValueError(f"{_WRITER}{name} is not the sinusoidal table of published models")

    target = {key: writer[published_key] for key, published_key in names.items()}
    target |= {f"backbone.features.{key}": value for key, value in visual.items()}
    target |= _word_rows(writer, words)
    needed = model.state_dict()
    for key, value in target.items():
        if key in needed and needed[key].shape != value.shape:
            source = names.get(key, key)
            raise ValueError(f"{source} has the shape {tuple(value.shape)}, needed is {tuple(needed[key].shape)}")
    model.load_state_dict(target)
    return model.eval()


_PARTS = ("query", "key", "value", "out")  # linears.0 to linears.3


def _names(layers: int) -> dict[str, str]:
    """Our key -> published key without its first part, for all that is copied as it is."""
    names = {"memory.matrix": "memory_matrix"}

    def linear(to: str, published: str) -> None:
        names.update({f"{to}.{part}": f"{published}.{part}" for part in ("weight", "bias")})

    def norm(to: str, published: str) -> None:
        names.update({f"{to}.weight": f"{published}.a_2", f"{to}.bias": f"{published}.b_2"})

    linear("to_model.0", "att_embed.0")
    for i, part in enumerate(_PARTS):
        linear(f"memory.{part}", f"cmn.linears.{i}")
    stacks = {"encoder": {"attention": "self_attn"},
              "decoder": {"self_attention": "self_attn", "cross_attention": "src_attn"}}  # fmt: skip
    for stack, attentions in stacks.items():
        norm(f"{stack}.norm", f"model.{stack}.norm")
        for layer in range(layers):
            to, published = f"{stack}.layers.{layer}", f"model.{stack}.layers.{layer}"
            for name, published_name in attentions.items():
                for i, part in enumerate(_PARTS):
                    linear(f"{to}.{name}.{part}", f"{published}.{published_name}.linears.{i}")
            linear(f"{to}.feed_forward.0", f"{published}.feed_forward.w_1")
            linear(f"{to}.feed_forward.3", f"{published}.feed_forward.w_2")
            for i in range(len(attentions) + 1):
                norm(f"{to}.norm{i + 1}", f"{published}.sublayer.{i}.norm")
    return names


def _same_keys(writer: Mapping[str, Tensor], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(writer)), sorted(set(writer) - wanted)
    if missing:
        raise ValueError(f"key {_WRITER + missing[0]!r} is missing ({len(missing)} such); is the checkpoint complete?")
    if unknown:
        raise ValueError(f"unknown key {_WRITER + unknown[0]!r} ({len(unknown)} such); this importer reads the "
                         "published R2GenCMN without batch normalisation (--use_bn 0)")  # fmt: skip


def _layers(writer: Mapping[str, Tensor]) -> int:
    found = {int(match[1]) for key in writer if (match := re.match(r"model\.(?:en|de)coder\.layers\.(\d+)\.", key))}
    if not found:
        raise ValueError(f"key '{_WRITER}model.encoder.layers.0…' is missing; this is no R2GenCMN checkpoint")
    if missing := sorted(set(range(len(found))) - found):
        raise ValueError(f"layer {missing[0]} is missing before layer {max(found)}; is the checkpoint complete?")
    return len(found)


def _model_config(writer: Mapping[str, Tensor], layers: int, words: int, published: Published) -> ModelConfig:
    shapes = {}
    for key in ("memory_matrix", "att_embed.0.weight", "model.encoder.layers.0.feed_forward.w_1.weight",
                "model.tgt_embed.0.lut.weight"):  # fmt: skip
        if key not in writer or writer[key].dim() != 2:
            raise ValueError(f"key {_WRITER + key!r} is missing or no matrix; is the checkpoint complete?")
        shapes[key] = tuple(writer[key].shape)
    (slots, memory_dim), (d_model, _), (d_ff, _), (rows, _) = shapes.values()
    if rows != words + 1:
        raise ValueError(f"the checkpoint has {rows - 1} words, the annotation gives {words}; give the annotation "
                         "(and --min-count) that it was trained with")  # fmt: skip
    try:
        return ModelConfig(
            backbone="resnet101", vocab_size=words - 1 + len(SPECIALS), d_model=d_model, d_ff=d_ff,
            heads=published.heads, encoder_layers=layers, decoder_layers=layers, memory_slots=slots,
            memory_dim=memory_dim, memory_heads=published.heads, memory_top_k=published.top_k,
            max_length=published.max_length + 1, retrieval_k=0, norm="r2gen", patch_positions="sequence",
            view_embeddings=False, feature_norm=False,
        )  # fmt: skip
    except ValidationError as error:
        reasons = "; ".join(str(problem["msg"]) for problem in error.errors())
        raise ValueError(f"{reasons} (set --heads, --top-k and --max-length as in training)") from error


def _backbone_of(visual: Mapping[str, Tensor]) -> str:
    """The torchvision model whose children, up to ``layer4``, have just these keys and shapes."""
    if not visual:
        raise ValueError(f"key '{_VISUAL}0.weight' is missing; the checkpoint has no visual extractor")
    shapes = {key: tuple(value.shape) for key, value in visual.items()}
    differing: dict[str, list[str]] = {}  # backbone -> keys that differ
    for name in _BACKBONES:
        with torch.device("meta"):
            children = list(models.get_model(name, weights=None).children())[:-2]
        wanted = {key: tuple(value.shape) for key, value in nn.Sequential(*children).state_dict().items()}
        if wanted == shapes:
            return name
        differing[name] = sorted(key for key in {*wanted, *shapes} if wanted.get(key) != shapes.get(key))
    closest, keys = min(differing.items(), key=lambda item: len(item[1]))
    known = ", ".join(_BACKBONES)
    raise ValueError(f"the visual extractor is none of {known}; {closest} has another {_VISUAL}{keys[0]}")


def _word_rows(writer: Mapping[str, Tensor], words: Sequence[str]) -> dict[str, Tensor]:
    """Embedding and logit rows by our ids; published id 0 is begin, end and padding at once."""
    order = [words.index(UNK) + 1, *(i for i, word in enumerate(words, 1) if word != UNK)]
    keys = ("model.tgt_embed.0.lut.weight", "logit.weight", "logit.bias")
    embedding, weight, bias = (writer[key].float() for key in keys)
    for key, tensor, needed in zip(keys[1:], (weight, bias), (embedding.shape, embedding.shape[:1]), strict=True):
        if tensor.shape != needed:
            raise ValueError(f"{_WRITER}{key} has the shape {tuple(tensor.shape)}, needed is {tuple(needed)}")
    nothing, never = torch.zeros_like(embedding[:1]), torch.full_like(bias[:1], NEVER)
    return {
        "word_embedding.weight": torch.cat([nothing, embedding[:1], embedding[:1], embedding[order]]),
        "to_words.weight": torch.cat([torch.zeros_like(weight[:2]), weight[:1], weight[order]]),
        "to_words.bias": torch.cat([never, never, bias[:1], bias[order]]),
    }
