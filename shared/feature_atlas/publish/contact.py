"""The contact sheet: a sample of every layer on one page, made to be looked at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: Layers on a sheet at most; of more, an even sample.
ROWS = 28
CELL, GAP, MARGIN, LABEL = 72, 4, 40, 200
PAPER, INK, FAINT = (17, 18, 20), (236, 234, 228), (140, 138, 132)


class StripImage(NamedTuple):
    """One layer's strip."""

    layer: str
    note: str
    webp: bytes
    cells: int


def sample(layers: Sequence[T]) -> list[T]:
    """The layers that a sheet has room for, spread evenly."""
    count = min(ROWS, len(layers))
    return [layers[i * len(layers) // count] for i in range(count)]


def draw(title: str, subtitle: str, strips: Sequence[StripImage], *, columns: int = 16) -> bytes:
    """A PNG with one labelled row per layer, at most ``columns`` pictures each."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max((min(columns, strip.cells) for strip in strips), default=1)
    columns = max(columns, 6)
    head = 92
    width = 2 * MARGIN + LABEL + columns * (CELL + GAP) - GAP
    height = head + MARGIN + len(strips) * (CELL + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 30), title, INK, ImageFont.load_default(24))
    pen.text((MARGIN, 62), subtitle, FAINT, ImageFont.load_default(13))
    label, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for row, strip in enumerate(strips):
        y = head + row * (CELL + GAP)
        pen.text((MARGIN, y + CELL // 2 - 18), _shorten(strip.layer), INK, label)
        pen.text((MARGIN, y + CELL // 2 + 3), strip.note, FAINT, small)
        with Image.open(io.BytesIO(strip.webp), formats=("WEBP",)) as picture:
            side = picture.height
            shown = min(columns, strip.cells)
            for k in range(shown):
                left = (k * strip.cells // shown) * side
                cell = picture.crop((left, 0, left + side, side)).resize((CELL, CELL), Image.Resampling.LANCZOS)
                page.paste(cell, (MARGIN + LABEL + k * (CELL + GAP), y))
    buffer = io.BytesIO()
    page.save(buffer, "PNG", compress_level=4)  # 9 takes six times as long for 1.7 % less
    return buffer.getvalue()


def _shorten(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
