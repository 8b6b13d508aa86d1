"""Frozen, validated configuration, stored in ``config.json`` of a bundle."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, JsonValue, model_validator

from model.registry import WRITERS, decoder_name
from model.types import Resample

Count = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=1, le=64)]
Tokens = Annotated[int, Field(ge=2, le=1024)]
Cases = Annotated[int, Field(ge=0, le=64)]
ImageSize = Annotated[int, Field(ge=32, le=2048)]
BUNDLE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Share = Annotated[float, Field(ge=0, lt=1)]
Norm = Literal["layer", "r2gen"]
ProtocolName = Literal["iu-xray", "mimic-cxr"]  # ``training.protocols``


class Frozen(BaseModel):
    """Base of every configuration: immutable, no unknown keys, finite numbers.

    A renamed field accepts both names and is written under the old one, so that older software
    reads new files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


def _renamed(old: str, new: str) -> Any:
    """A field ``new`` that files call ``old``."""
    return Field(validation_alias=AliasChoices(old, new), serialization_alias=old)


def check_dimensions(sizes: BaseModel) -> None:
    """Raise ValueError where the dimensions of a model do not fit together."""
    of = dict(sizes)
    fits = [("d_model", "heads"), ("d_model", "memory_heads"), ("memory_dim", "memory_heads")]
    if of["writer"] == "r2gen":
        fits.append(("d_model", "relational_heads"))
    for width, heads in fits:
        if of[width] % of[heads]:
            raise ValueError(f"{width}={of[width]} is not divisible by {heads}={of[heads]}")
    if of["memory_top_k"] > of["memory_slots"]:
        raise ValueError(f"memory_top_k={of['memory_top_k']} exceeds memory_slots={of['memory_slots']}")


class ModelConfig(Frozen):
    """Dimensions of the report model (Chen et al. 2021, "Cross-modal Memory Networks for Radiology Report Generation").

    Attributes:
        writer: what turns patch tokens and cases into words (``model.registry.WRITERS``).
        backbone: name of the visual extractor (``model.network.backbone``).
        vocab_size: number of token ids, special tokens included.
        d_model: width of the Transformer and the memory responses.
        d_ff: width of the feed-forward layers.
        heads: attention heads of encoder and decoder.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        memory_slots: rows of the shared memory matrix.
        memory_dim: width of a memory row.
        memory_heads: heads of the memory addressing.
        memory_top_k: slots that each head reads for a token.
        relational_slots: rows of the relational memory of writer ``r2gen``.
        relational_heads: attention heads of its update.
        dropout: share of activations dropped in training.
        feature_dropout: the same of the patch tokens mapped to d_model; None: ``dropout``.
        memory_dropout: the same of the weights of the memory slots.
        max_length: longest report in tokens, end token included.
        retrieval_k: report embeddings appended to the patch tokens; 0 for none.
        embedding_dim: width of image and report embeddings (the index); needed if ``retrieval_k``
            is not 0.
        text_layers: layers of the text tower.
        norm: ``layer``, or ``r2gen``, the normalisation of published R2Gen and R2GenCMN
            checkpoints.
        patch_positions: count patches within each ``view``, or through the whole ``sequence`` (as
            published).
        view_embeddings: add an embedding of its view to each patch token (published models do not).
        feature_norm: standardise backbone features by running statistics (published models do not).
        finding_head: add a linear layer that predicts the labeler's 14 findings from the pooled
            features.
        case_norm: scale a projected case to the length of a standardised patch token; else patches
            dominate.
        sentence_end: id of "." in the vocabulary, for writers that write by sentences.
        tags: names of the tags that writer ``coattention`` predicts.
    """

    writer: Annotated[str, AfterValidator(WRITERS.check)] = "cmn"
    backbone: str = "densenet121"
    vocab_size: Annotated[int, Field(ge=5)]
    d_model: Count = 512
    d_ff: Count = 512
    heads: Count = 8
    encoder_layers: Layers = 3
    decoder_layers: Layers = 3
    memory_slots: Count = 2048
    memory_dim: Count = 512
    memory_heads: Count = 8
    memory_top_k: Count = 32
    relational_slots: Count = 3
    relational_heads: Count = 8
    dropout: Share = 0.1
    feature_dropout: Share | None = None
    memory_dropout: Share = 0.0
    max_length: Tokens = 60
    retrieval_k: Cases = 5
    embedding_dim: Count = 256
    text_layers: Layers = 2
    norm: Norm = "layer"
    patch_positions: Literal["view", "sequence"] = "view"
    view_embeddings: bool = True
    feature_norm: bool = True
    finding_head: bool = False
    case_norm: bool = False
    sentence_end: Annotated[int, Field(ge=4)] | None = None
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        check_dimensions(self)
        return self


class PreprocessingConfig(Frozen):
    """Preparation of pixels: grey, resized to a square of ``image_size``, normalised by buffers of the backbone.

    Attributes:
        image_size: S, side of the squares in pixels.
        resample: resize filter; published R2Gen models were trained with ``bilinear``.
        view_order: ``frontal_first``; or ``as_given``, the order of the data set's files, with
            which published R2Gen models were trained. The service puts the frontal first in both.
    """

    image_size: ImageSize = 224
    resample: Resample = "bicubic"
    view_order: Literal["frontal_first", "as_given"] = "frontal_first"


class ConsensusConfig(Frozen):
    """Reward and search of MBR decoding (``model.decoding.mbr``).

    Attributes:
        temperature: of the softmax that weights the training cases by similarity.
        cider: weight of the expected CIDEr-D, 0 to 10.
        bleu4: weight of the expected BLEU-4, 0 to 1.
        rouge: weight of the mean ROUGE-L with the candidates, 0 to 1, each candidate weighted by
            its expected CIDEr-D; n-gram vectors ignore the order of sentences, ROUGE-L does not.
        finding: weight of a named finding: its probability less ``finding_threshold``.
        finding_threshold: probability above which naming a finding adds reward (``finding_cost`` in
            ``config.json``).
        classifier_weight: share of the finding classifier in that probability; the rest is the
            share of the similar cases (``head``).
        sentence_pool: maximum number of sentences that may be inserted, the most frequent first
            (``pool``).
        sentences_per_finding: of each finding whose naming adds reward, this many sentences more that name it may be
            inserted, the most frequent first; few candidates name a rare finding.
        max_edits: maximum number of edits, each of one sentence (``moves``).
    """

    temperature: Annotated[float, Field(gt=0, le=10)] = 0.05
    cider: Annotated[float, Field(ge=0)] = 1.0
    bleu4: Annotated[float, Field(ge=0)] = 2.0
    rouge: Annotated[float, Field(ge=0)] = 0.0
    finding: Annotated[float, Field(ge=0)] = 1.0
    finding_threshold: Annotated[float, Field(ge=0, le=1), _renamed("finding_cost", "finding_threshold")] = 0.2
    classifier_weight: Annotated[float, Field(ge=0, le=1), _renamed("head", "classifier_weight")] = 0.0
    sentence_pool: Annotated[int, Field(ge=0, le=256), _renamed("pool", "sentence_pool")] = 40
    sentences_per_finding: Annotated[int, Field(ge=0, le=32)] = 0
    max_edits: Annotated[int, Field(ge=0, le=32), _renamed("moves", "max_edits")] = 8


class LanguageConfig(Frozen):
    """Which sentences a draft may hold; all off for bundles of 0.2 and older.

    Attributes:
        attested: ``beam`` and sampling continue with words that complete a 4-gram of a training report, and
            ``consensus`` takes sentences of training reports only. Needs the table of ``consensus``.
        no_priors: no sentence compares with an earlier study, is a fragment, or has a singular verb before a plural.
        consistent: no two sentences give heart, lungs, their volume, air spaces or bones different states
            (``consensus``).
        ordered: heart, mediastinum, lungs, pleura, bones, devices (``consensus``).
    """

    attested: bool = False
    no_priors: bool = False
    consistent: bool = False
    ordered: bool = False


class DecodingConfig(Frozen):
    """Defaults of report generation; a request may change ``beam_size``.

    Attributes:
        method: ``beam``; ``greedy`` (``beam`` of size 1 is greedy); ``rerank``: the beam's report
            and ``candidates`` sampled ones, ranked by probability and similarity to the images; or
            ``consensus`` (or ``mbr``), MBR decoding: the report of the highest expected reward that the
            sentences of these candidates can form. Packages add others (``model.registry``).
        beam_size: live hypotheses.
        length_penalty: alpha; finished hypotheses are ranked by log-probability / length**alpha. 0
            ranks by the sum.
        block_trigrams: never repeat a trigram.
        trigram_penalty: subtracted from the log-probability of a word for each earlier occurrence
            of the trigram that it would complete; published R2Gen models use 2 × 0.693.
        trigram_penalty_in_beams: whether beam search uses it too; that of published R2Gen does not.
        finished_beams_occupy_slots: a finished hypothesis takes one of the ``beam_size`` slots of
            its step (published R2Gen); else the best ``beam_size`` unfinished ones stay live.
            ``ended_keep_place`` in ``config.json``.
        min_length: tokens before the end token is allowed.
        suppress: words that are never generated (the archive's redaction mark ``xxxx``, ``<unk>``).
        candidates: reports sampled for ``rerank`` and ``consensus``.
        temperature: of this sampling.
        similarity_weight: in ``rerank``, weight of the cosine between study and report embedding,
            added to the mean log-probability of a word.
        consensus: reward and search of ``consensus``.
        language: which sentences a draft may hold.
    """

    method: Annotated[str, AfterValidator(decoder_name)] = "beam"
    beam_size: Annotated[int, Field(ge=1, le=8)] = 3
    length_penalty: Annotated[float, Field(ge=0, le=5)] = 1.0
    block_trigrams: bool = False
    trigram_penalty: Annotated[float, Field(ge=0)] = 0.0
    trigram_penalty_in_beams: bool = True
    finished_beams_occupy_slots: Annotated[bool, _renamed("ended_keep_place", "finished_beams_occupy_slots")] = False
    min_length: Annotated[int, Field(ge=0)] = 4
    suppress: tuple[str, ...] = ("xxxx", "<unk>")
    candidates: Annotated[int, Field(ge=1, le=128)] = 12
    temperature: Annotated[float, Field(gt=0, le=2)] = 0.7
    similarity_weight: Annotated[float, Field(ge=0)] = 8.0
    consensus: ConsensusConfig = ConsensusConfig()
    language: LanguageConfig = LanguageConfig()


class RetrievalConfig(Frozen):
    """The index of the bundle: ``cases`` vectors of width ``dim``, of which ``k`` condition the model."""

    k: Annotated[int, Field(ge=1, le=64)] = 5
    dim: Count = 256
    cases: Count


class BundleConfig(Frozen):
    """``config.json`` of a bundle: everything needed to rebuild the model, and its provenance.

    Attributes:
        schema_version: of the bundle's layout.
        name: of the bundle.
        model: dimensions.
        preprocessing: how images are prepared.
        decoding: defaults of report generation.
        retrieval: None for a bundle without an index.
        protocol: published protocol of its training data: cleaning, length and words of reports.
        trained_on: facts about data, stages and seeds.
        licence: note on the licence of weights and data.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=BUNDLE_NAME)]
    model: ModelConfig
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    decoding: DecodingConfig = DecodingConfig()
    retrieval: RetrievalConfig | None = None
    protocol: ProtocolName = "iu-xray"
    trained_on: dict[str, JsonValue] = {}
    licence: str = ""

    @model_validator(mode="after")
    def _retrieval_fits(self) -> Self:
        if self.retrieval is not None and self.model.retrieval_k == 0:
            raise ValueError("retrieval is set, but model.retrieval_k is 0: the model takes no cases")
        if self.decoding.method in ("rerank", "consensus") and self.retrieval is None:
            method = self.decoding.method
            raise ValueError(f"decoding.method is {method!r}, but the bundle has no retrieval; use 'beam'")
        if self.retrieval is not None and self.retrieval.dim != self.model.embedding_dim:
            raise ValueError(
                f"retrieval.dim={self.retrieval.dim} differs from model.embedding_dim={self.model.embedding_dim}"
            )
        return self
