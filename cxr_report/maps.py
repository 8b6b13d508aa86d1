"""Attention and evidence maps of a draft as arrays, with the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from cxr_report.pictures import Picture, displayed
from model.types import Draft, Grid

Kind = Literal["evidence", "attention"]
_MAX_OPACITY, _GAMMA = 0.75, 1.6  # as service/static/overlay.js
_WARM, _COLD = np.array([255, 176, 59], np.float32), np.array([74, 168, 255], np.float32)


def heatmap(
    draft: Draft, sentence: int, view: str = "frontal", *, kind: Kind = "evidence", size: tuple[int, int] | None = None
) -> npt.NDArray[np.float32]:
    """The map of one sentence over one image.

    Args:
        draft: made with ``evidence=True`` or ``attention=True``.
        sentence: its number, from 0.
        view: the view as which the image was given.
        kind: ``evidence``: contributions to the finding's logit, positive ones speak for it.
            ``attention``: weights of the decoder.
        size: (height, width) of the map, interpolated; None: the grid of patches.

    Returns:
        (height, width), rows from top to bottom. The map covers the whole image.

    Raises:
        ValueError: the draft has no such map; the message says why.
    """
    grids = _grids(draft, sentence, kind)
    if view not in grids:
        raise ValueError(f"view {view!r} has no map; this draft has {', '.join(grids)}")
    values = np.array(grids[view], np.float32)
    if size is None:
        return values
    image = Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def overlay(
    draft: Draft, sentence: int, picture: Picture, view: str = "frontal", *, kind: Kind = "evidence"
) -> npt.NDArray[np.uint8]:
    """The map of one sentence drawn over its image, as the page draws it.

    Evidence for the finding is orange, evidence against it blue; one scale for the whole draft.

    Args:
        draft: made with ``evidence=True`` or ``attention=True``.
        sentence: its number, from 0.
        picture: the image: a path or the bytes of a file, a PIL image, or an array (H, W) or
            (H, W, 3) uint8.
        view: the view as which it was given.
        kind: as for ``heatmap``.

    Returns:
        (H, W, 3) uint8; a file is reduced to a longer side of 1,024 pixels.

    Raises:
        ValueError: the draft has no such map, or the picture is no image; the message says why.
    """
    grey = displayed(picture).astype(np.float32)  # (H, W, 3)
    heat = heatmap(draft, sentence, view, kind=kind, size=grey.shape[:2])
    if kind == "evidence":
        maps = [part.evidence.patches for part in draft.sentences if part.evidence is not None]
        largest = max(abs(_values(each)).max() for each in maps)
        strength = np.abs(heat) / largest if largest else np.zeros_like(heat)
    else:
        weights = _values(_grids(draft, sentence, kind))
        low, high = weights.min(), weights.max()
        strength = ((heat - low) / (high - low)).clip(0) ** _GAMMA if high > low else np.zeros_like(heat)
    opacity = _MAX_OPACITY * strength.clip(0, 1)[..., None]  # (H, W, 1)
    colour = np.where(heat[..., None] < 0, _COLD, _WARM)  # (H, W, 3)
    return (grey * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def _grids(draft: Draft, sentence: int, kind: Kind) -> Mapping[str, Grid]:
    if not 0 <= sentence < len(draft.sentences):
        raise ValueError(f"sentence {sentence}: the draft has {len(draft.sentences)}, counted from 0")
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
    part = draft.sentences[sentence]
    found = part.attention if kind == "attention" else part.evidence
    if found is not None:
        return found.patches
    if kind == "evidence" and any(each.evidence for each in draft.sentences):
        why = "it names no finding; choose another sentence or kind='attention'"
    elif kind == "evidence":
        why = "draft with evidence=True; a bundle without a finding classifier has none"
    else:
        why = "draft with attention=True; a bundle whose writer has no attention has none"
    raise ValueError(f"sentence {sentence} has no {kind} map: {why}")


def _values(grids: Mapping[str, Grid]) -> npt.NDArray[np.float32]:
    """All values of some grids, in one dimension."""
    return np.concatenate([np.array(grid, np.float32).ravel() for grid in grids.values()])
