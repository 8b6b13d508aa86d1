"""The licence note of a bundle, which follows from its training data."""

from __future__ import annotations

import argparse

UNKNOWN = "unknown: ask the provider of the data"
_OPENI = ("Weights learned from the Indiana University chest X-ray collection (Open-i, CC BY-NC-ND 4.0, attribution: "
          "Indiana University).")  # fmt: skip
_USE = "For research; not a medical device."
_MOST = 2000  # characters


def add_data_licence(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-licence``."""
    parser.add_argument("--data-licence", type=_text, metavar="TEXT",
                        help=f"licence of the training data, for the bundle (default: {UNKNOWN})")  # fmt: skip


def _text(given: str) -> str:
    text = " ".join(given.split())
    if not text or len(text) > _MOST or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must have 1 to {_MOST} printable characters")
    return text


def licence_note(dataset: str, data_licence: str | None, *, holds_texts: bool, other_images: bool = False) -> str:
    """The note of a bundle that was trained here.

    Args:
        dataset: its name; the licence of ``openi`` is known.
        data_licence: of all data, as the user states it.
        holds_texts: whether its cases hold report texts.
        other_images: whether labelled images of another source took part.
    """
    known = dataset == "openi" and data_licence is None
    data = _OPENI if known else f"Weights learned from data whose licence is {_sentence(data_licence or UNKNOWN)}"
    if known and other_images:
        data += f" Labelled images of another source took part; their licence is {_sentence(UNKNOWN)}"
    return f"{data} {_USE} {_content(holds_texts)}"


def import_note(data_licence: str | None) -> str:
    """The note of a bundle that was imported from a published checkpoint."""
    return (
        "Weights imported from a published R2GenCMN checkpoint, whose licence applies. The licence of the data that it "
        f"was trained on is {_sentence(data_licence or UNKNOWN)} {_USE} {_content(False)}"
    )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _content(holds_texts: bool) -> str:
    return f"No report text and no radiograph is part of this bundle{' but the reports of its cases' * holds_texts}."
