"""A run with decoded images and a built model: the input of ``training.pipeline``."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.bundle import write_bundle
from model.config import BundleConfig, ModelConfig, PreprocessingConfig, RetrievalConfig
from model.decoding.attested import MOST_WORDS
from model.decoding.mbr_table import MbrTable
from model.network.backbone import Backbone
from model.network.pretrained import weights_licence
from model.network.report_model import ReportModel, build_model, writer_class
from model.text.tokenizer import END_OF_SENTENCE, Tokenizer
from retrieval_index.cases import read_cases, write_cases
from retrieval_index.index import CASES_FILE, VECTORS_FILE, ReportIndex
from training.config import RunConfig
from training.config_changes import as_yaml
from training.data.comparisons import without_comparisons
from training.data.crops import CropCache, build_crop_cache
from training.data.features import CachedFeatures, OnlineFeatures, PatchSource, cache_features
from training.data.headings import TARGET_TEXT, with_headings
from training.data.pixel_cache import PixelCache, build_pixel_cache
from training.data.selection import CHOSEN_ON, Half, half_of, selection_record
from training.data.studies import Study
from training.data.targets import tag_names
from training.licence import licence_note
from training.model_card import CARD, model_card
from training.presets import PRESETS
from training.protocols import PROTOCOLS
from training.r2gencmn import reset_as_published
from training.run_manifest import differences
from training.stages.common import ReportGenerator, Rows, RunInputs, StudySplits
from training.stages.out_of_fold import load_cases
from training.trainer.context import RunContext

log = logging.getLogger("training")

CONFIG_DOCUMENT = "run_config.yaml"  # of a bundle: the configuration of its run, for --config


@dataclass(frozen=True)
class PreparedRun:
    """Configuration, data and model of a run; the stages train ``model`` in place."""

    config: RunConfig
    context: RunContext
    inputs: RunInputs
    cache: PixelCache
    studies: StudySplits
    tokenizer: Tokenizer
    model: ReportModel
    cache_dir: Path  # of decoded images and features
    crops: CropCache | None = None  # of the training images, for the augmentation by crops

    @classmethod
    def prepare(cls, config: RunConfig, inputs: RunInputs, context: RunContext) -> PreparedRun:
        """Decode the images, build vocabulary and model; raises ValueError without a readable training image."""
        if config.target_text == "headings":
            inputs = replace(inputs, source=with_headings(inputs.source))
        source = inputs.source
        wanted = [*source.split("train"), *source.split("val")]
        if config.pretrain is not None:
            wanted += source.extra
        cache_dir = inputs.cache_dir or context.work / "cache"
        with context.processes.main_process_first():
            cache = build_pixel_cache(source, wanted, config.image_size, cache_dir, resample=config.resample)
            crops = None
            if config.augmentation == "crops":
                crops = build_crop_cache(source, source.split("train"), config.image_size, cache_dir,
                                         resample=config.resample)  # fmt: skip
        train = cache.readable(source.split("train"))
        if config.without_comparisons:
            train = [replace(study, rewritten=without_comparisons(study.report)) for study in train]
            log.info("%d training reports rewritten without comparisons",
                     sum(study.training_text != study.report for study in train))  # fmt: skip
        half: Half | None = "choose" if config.validate_on == "choose" else None
        val = cache.readable(half_of(source.split("val"), half))
        if config.view_order == "as_given":
            train, val = ([replace(study, keeps_order=True) for study in split] for split in (train, val))
        studies = StudySplits(train, val)
        if not studies.train:
            raise ValueError("no training study has a readable image; check --root, or --annotation and --images")
        tokenizer = _vocabulary(config, studies.train)
        if config.decoding.language.attested and len(tokenizer) > MOST_WORDS:
            raise ValueError(f"decoding.language.attested takes {MOST_WORDS:,} words at most, and the reports have "
                             f"{len(tokenizer):,}; set it false")  # fmt: skip
        run = cls.build(config, inputs, context, cache, studies, tokenizer, cache_dir)
        return replace(run, crops=crops)

    @classmethod
    def build(
        cls, config: RunConfig, inputs: RunInputs, context: RunContext, cache: PixelCache, studies: StudySplits,
        tokenizer: Tokenizer, cache_dir: Path,
    ) -> PreparedRun:  # fmt: skip
        """A run on decoded images with a new model on the device."""
        torch.manual_seed(config.seed)
        backbone = Backbone(config.shape.backbone, weights=config.backbone_weights)
        end = tokenizer.id_of(END_OF_SENTENCE) if END_OF_SENTENCE in tokenizer.tokens else None
        tags = tag_names(studies.train) if writer_class(model_config(config, len(tokenizer))).uses_tags else ()
        model = build_model(model_config(config, len(tokenizer), sentence_end=end, tags=tags), backbone=backbone)
        if config.initial_weights == "r2gencmn":
            reset_as_published(model)
        model.to(context.device)
        model.backbone.to(memory_format=torch.channels_last)
        log.info("%d training and %d validation studies, %d words, %.1f million weights", len(studies.train),
                 len(studies.val), len(tokenizer), sum(p.numel() for p in model.parameters()) / 1e6)  # fmt: skip
        return cls(config, context, inputs, cache, studies, tokenizer, model, cache_dir)

    def frozen_features(self) -> CachedFeatures:
        """Cached features of the backbone as it is now."""
        with self.context.processes.main_process_first():
            return cache_features(
                self.model.backbone, self.cache, [*self.studies.train, *self.studies.val],
                self.config.feature_variants, self.context, self.cache_dir, view_dropout=self.config.ce.view_dropout,
                name="frozen",
            )  # fmt: skip

    def trained_features(self) -> PatchSource:
        """Features for cross-entropy: cached for a frozen backbone, else the backbone itself."""
        if self.config.ce.backbone_lr == 0:
            return self.frozen_features()
        return OnlineFeatures(self.model, self.cache, self.context.device, self.config.ce.view_dropout,
                              self.context.on_device, self.crops)  # fmt: skip

    def generator(self, patches: PatchSource) -> ReportGenerator:
        """The report generator, with the index and the MBR table that the index stage wrote."""
        index = ReportIndex.load(self.index_dir) if self.config.retrieval_k else None
        return ReportGenerator(self.model, self.tokenizer, patches, index, self.config.decoding, self._mbr_table(),
                               self.out_of_fold_cases(), self._target_ids(),
                               PROTOCOLS[self.config.protocol])  # fmt: skip

    def out_of_fold_cases(self) -> Rows | None:
        """The cases of the training studies that the retriever stage wrote; None for a run without folds."""
        folds = self.config.retriever.folds if self.config.retriever and self.config.retrieval_k else 0
        return load_cases(self.cases_file, len(self.studies.train)) if folds else None

    def _target_ids(self) -> int | None:
        most = PROTOCOLS[self.config.protocol].max_ids
        return min(most, self.config.shape.max_length) if self.config.published_text else None

    def _mbr_table(self) -> MbrTable | None:
        return MbrTable.load(self.mbr_file) if self.config.decoding.method == "consensus" else None

    @property
    def index_dir(self) -> Path:
        """The folder of the index that the index stage writes."""
        return self.context.work / "index" / "files"

    @property
    def cases_file(self) -> Path:
        """The cases of the training studies that the retriever stage writes."""
        return self.context.work / "retriever" / "cases.npy"

    @property
    def mbr_file(self) -> Path:
        """The MBR table that the index stage writes."""
        return self.context.work / "index" / "consensus.safetensors"

    def write_bundle(self, path: Path, *, keep_texts: bool, metrics: Mapping[str, Any]) -> None:
        """Write the model, with its index and MBR table, as a bundle; replaces one that exists."""
        config, inputs = self.config, self.inputs
        retrieval, index_dir = None, None
        if config.retrieval_k:
            index_dir, cases = self.index_dir, read_cases(self.index_dir / CASES_FILE)
            if not keep_texts:
                index_dir = self.context.work / "index-without-texts"
                index_dir.mkdir(exist_ok=True)
                write_cases(index_dir / CASES_FILE, [replace(case, findings=None) for case in cases])
                shutil.copyfile(self.index_dir / VECTORS_FILE, index_dir / VECTORS_FILE)
            retrieval = RetrievalConfig(k=config.retrieval_k, dim=config.shape.embedding_dim, cases=len(cases))
        bundle_config = BundleConfig(
            name=inputs.out.name,
            model=self.model.config,
            preprocessing=PreprocessingConfig(
                image_size=config.image_size, resample=config.resample, view_order=config.view_order
            ),
            decoding=config.decoding,
            retrieval=retrieval,
            protocol=config.protocol,
            trained_on={
                "dataset": inputs.source.name, "preset": config.preset,
                "changes": _changes(config), "seed": config.seed,
                "backbone_weights": Path(config.backbone_weights).name,
                "train_studies": len(self.studies.train), "val_studies": len(self.studies.val),
                "skipped_images": len(self.cache.skipped),
                **({} if config.target_text == "report" else {TARGET_TEXT: config.target_text}),
                "soft_scores": inputs.soft_scores.name if inputs.soft_scores else None,
                **({"external_images": len(inputs.external_labels.present)} if inputs.external_labels else {}),
            },
            licence=" ".join(filter(None, (
                licence_note(inputs.source.name, inputs.data_licence, holds_texts=keep_texts and retrieval is not None,
                             other_images=inputs.external_labels is not None),
                weights_licence(config.shape.backbone, config.backbone_weights),
            ))),
        )  # fmt: skip
        documents = {CONFIG_DOCUMENT: as_yaml(public(config)), CARD: model_card(bundle_config, metrics)}
        write_bundle(path, config=bundle_config, model=self.model, tokenizer=self.tokenizer, index_dir=index_dir,
                     metrics={**metrics, CHOSEN_ON: self._chosen_on()}, mbr_table=self._mbr_table(),
                     weights_dtype=config.weights_dtype, documents=documents, replace=True)  # fmt: skip

    def _chosen_on(self) -> list[dict[str, Any]]:
        if not self.studies.val:
            return []
        half: Half | None = "choose" if self.config.validate_on == "choose" else None
        return [selection_record("the epochs of training", self.inputs.source.name, half, self.studies.val)]


def _vocabulary(config: RunConfig, train: Sequence[Study]) -> Tokenizer:
    protocol, texts = PROTOCOLS[config.protocol], [study.training_text for study in train]
    if config.target_text == "headings" and config.retrieval_k:
        texts += [study.report for study in train]  # the retriever reads them
    if config.published_text:
        return protocol.tokenizer(protocol.words(texts))
    return Tokenizer.build(texts, min_count=protocol.min_count, commas=config.commas)


def public(config: RunConfig) -> RunConfig:
    """A configuration without the folder of its weights, for a bundle or a server."""
    return config.model_copy(update={"backbone_weights": Path(config.backbone_weights).name})


def _changes(config: RunConfig) -> dict[str, Any]:
    """The values that differ from those of the preset, without those that a bundle states elsewhere."""
    base = PRESETS.get(config.preset, config).model_dump(mode="json")
    changed = differences(base, config.model_dump(mode="json"))
    return {name: value for name, _, value in changed if name not in ("seed", "backbone_weights")}


def model_config(
    config: RunConfig, vocab_size: int, *, sentence_end: int | None = None, tags: Sequence[str] = ()
) -> ModelConfig:
    """Dimensions of the model that ``config`` describes."""
    shape = config.shape.model_dump()
    layers = shape.pop("layers")
    return ModelConfig(
        **shape, vocab_size=vocab_size, encoder_layers=layers, decoder_layers=layers, retrieval_k=config.retrieval_k,
        finding_head=config.pretrain is not None, sentence_end=sentence_end, tags=tuple(tags),
    )  # fmt: skip
