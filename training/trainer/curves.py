"""The curves of a stage as a PNG file, drawn with Pillow.

Matplotlib takes half a second to import and as long again to draw the panels, longer than an epoch of a small model.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from model.files import write_atomic

# Pixels of a panel, of its frame (left, top, right, bottom), and of the title above all panels.
PANEL, FRAME, HEAD = (462, 308), (76, 38, 440, 246), 44
_LINE, _DOT, _SMOOTH = 1.2, 2.4, 4  # half the width of a curve, radius of its points, and times enlarged to be smoothed
_VALIDATION, _TRAINING, _INK, _GRID = "#1f6f8b", "#8a5a2b", "black", "#e4e4e4"

Point = tuple[float, float]


def plot_history(rows: Sequence[dict[str, float]], path: Path, *, title: str) -> None:
    """Draw one small panel for each logged metric over epochs into ``path``."""
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in {"epoch", "seconds"}]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    picture = Image.new("RGB", (PANEL[0] * columns, PANEL[1] * lines + HEAD), "white")
    ImageDraw.Draw(picture).text((picture.width / 2, HEAD / 2), title, _INK, _font(17), "mm")
    for number, name in enumerate(names):
        line, column = divmod(number, columns)
        panel = _panel(name, [(row["epoch"], row[name]) for row in rows if name in row])
        picture.paste(panel, (PANEL[0] * column, PANEL[1] * line + HEAD))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=2)
    write_atomic(path, file.getvalue())


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _panel(name: str, points: Sequence[Point]) -> Image.Image:
    """The curve of one metric, (epoch, value) each; the axes show the smallest and the largest numbers."""
    panel = Image.new("RGB", PANEL, "white")
    draw, small = ImageDraw.Draw(panel), _font(12)
    left, top, right, bottom = FRAME
    finite = [point for point in points if math.isfinite(point[1])] or [(points[0][0], 0.0)]
    ticks = [sorted({epoch for epoch, _ in points}), sorted({value for _, value in finite})]
    x, y = (_Scale(own[0], own[-1], *ends) for own, ends in zip(ticks, ((left, right), (bottom, top)), strict=True))
    for epoch in {x.low, x.high}:
        draw.line((x(epoch), top, x(epoch), bottom + 5), _GRID)
        draw.line((x(epoch), bottom, x(epoch), bottom + 5), _INK)
        draw.text((x(epoch), bottom + 9), f"{epoch:g}", _INK, small, "ma")
    for value in {y.low, y.high}:
        draw.line((left, y(value), right, y(value)), _GRID)
        draw.line((left - 5, y(value), left, y(value)), _INK)
        draw.text((left - 9, y(value)), f"{value:.3g}", _INK, small, "rm")
    draw.rectangle(FRAME, outline=_INK)
    draw.text(((left + right) / 2, top - 8), name, _INK, _font(15), "ms")
    draw.text(((left + right) / 2, bottom + 28), "epoch", _INK, small, "ma")
    placed = [(x(epoch), y(value)) if math.isfinite(value) else None for epoch, value in points]
    panel.paste(_VALIDATION if name.startswith("val_") else _TRAINING, mask=_curve(placed))
    return panel


class _Scale:
    """Pixels of the numbers of an axis, whose ends lie 5 % within the frame."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._start, self._length = start, end - start

    def __call__(self, number: float) -> float:
        share = (number - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self._start + self._length * (0.05 + 0.9 * share)


def _curve(points: Sequence[Point | None]) -> Image.Image:
    """The mask of a line through ``points``, in pixels of a panel; None interrupts it."""
    mask = Image.new("L", (PANEL[0] * _SMOOTH, PANEL[1] * _SMOOTH))
    draw = ImageDraw.Draw(mask)
    large = [point and (point[0] * _SMOOTH, point[1] * _SMOOTH) for point in points]
    for one, following in pairwise(large):
        if one and following:
            draw.line((*one, *following), 255, round(2 * _LINE * _SMOOTH))
    for point in large:
        if point:
            draw.circle(point, _DOT * _SMOOTH, 255)
    return mask.reduce(_SMOOTH)
