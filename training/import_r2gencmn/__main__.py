"""Command line of the import; see ``training.import_r2gencmn``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from model.bundle import write_bundle
from model.command_line import CommandParser
from model.config import BundleConfig, PreprocessingConfig
from model.files import file_sha256
from training.cli import at_least, run_command
from training.data.r2gen import read_annotation
from training.import_r2gencmn.checkpoint import read_checkpoint
from training.import_r2gencmn.convert import Published, import_model
from training.licence import add_data_licence, import_note
from training.model_card import CARD, model_card
from training.protocols import IU_XRAY, PROTOCOLS
from training.r2gencmn import PUBLISHED_DECODING, TRIGRAM_PENALTY

log = logging.getLogger("training")


def _import(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists() and not arguments.replace:
        raise ValueError(f"--out {out} already exists; choose another, or add --replace")
    state, facts = read_checkpoint(arguments.checkpoint)
    train = [entry.report for split, entry in read_annotation(arguments.annotation) if split == "train"]
    if not train:
        raise ValueError(f"--annotation {arguments.annotation} has no train split; the vocabulary is built from it")
    protocol = PROTOCOLS[arguments.protocol]
    if arguments.min_count is not None:
        protocol = replace(protocol, min_count=arguments.min_count)
    words = protocol.words(train)
    published = Published(arguments.heads, arguments.top_k, arguments.max_length or protocol.max_ids)
    model = import_model(state, words, published)
    tokenizer = protocol.tokenizer(words)
    try:
        config = BundleConfig(
            name=out.name,
            model=model.config,
            preprocessing=PreprocessingConfig(resample="bilinear", view_order="as_given"),
            decoding=PUBLISHED_DECODING.model_copy(update={"trigram_penalty": arguments.trigram_penalty}),
            protocol=protocol.name,
            trained_on={
                "imported_from": "R2GenCMN", "checkpoint": arguments.checkpoint.name,
                "checkpoint_sha256": file_sha256(arguments.checkpoint), **facts,
            },
            licence=import_note(arguments.data_licence),
        )  # fmt: skip
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ValueError(f"--out {out}: {field} cannot be stored: {problem['msg']}") from error
    write_bundle(out, config=config, model=model, tokenizer=tokenizer, weights_dtype="fp32",
                 documents={CARD: model_card(config, {})}, replace=arguments.replace)  # fmt: skip
    log.info(
        "%s: %s, %d words, %d layers, %d slots; serve it with  python -m service --bundle %s",
        out, model.config.backbone, len(words), model.config.encoder_layers, model.config.memory_slots, out,
    )  # fmt: skip
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.import_r2gencmn``; returns the exit code."""
    parser = CommandParser(
        prog="python -m training.import_r2gencmn", description="Turn a published R2GenCMN checkpoint into a bundle."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pth of the published trainer")
    parser.add_argument("--annotation", type=Path, required=True, help="the annotation.json it was trained with")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--replace", action="store_true", help="replace an existing bundle")
    parser.add_argument("--heads", type=int, default=8, help="--num_heads of training (default 8)")
    parser.add_argument("--top-k", type=int, default=32, help="--topk of training (default 32)")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default=IU_XRAY.name,
                        help="--dataset_name of training (default %(default)s)")  # fmt: skip
    parser.add_argument("--max-length", type=int, help="--max_seq_length of training (default: that of the protocol)")
    parser.add_argument("--min-count", type=int, help="--threshold of training (default: that of the protocol)")
    parser.add_argument(
        "--trigram-penalty", type=at_least(0, float), default=TRIGRAM_PENALTY,
        help="taken from repeated trigrams in greedy decoding, as published (default 1.386); the published beam "
        "search has no penalty",
    )  # fmt: skip
    add_data_licence(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _import(arguments), interrupted="interrupted; no bundle was written")


if __name__ == "__main__":
    raise SystemExit(main())
