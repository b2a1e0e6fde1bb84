"""Rows as pictures: names and values in black on white, so that no page has to trust them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from backsweep.core.text import one_line

MOST_LINES, MOST_LETTERS = 24, 34
MARGIN, STEP = 4, 15  # pixels


def drawn(lines: Sequence[str]) -> Image.Image:
    """A picture of some lines; letters that the font has not are boxes."""
    font = ImageFont.load_default(size=11)
    shown = [one_line(line)[:MOST_LETTERS] for line in lines[:MOST_LINES]] or ["(nothing)"]
    if len(lines) > MOST_LINES:
        shown[-1] = f"... and {len(lines) - MOST_LINES + 1} more"
    width = max(8, int(max(font.getbbox(line)[2] for line in shown))) + 2 * MARGIN
    image = Image.new("L", (width, STEP * len(shown) + 2 * MARGIN), 255)
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(shown):
        pen.text((MARGIN, MARGIN + STEP * i), line, fill=0, font=font)
    return image
