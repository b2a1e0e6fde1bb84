"""Text as a picture: words in black on white, in lines, so that no page has to trust them."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFont

COLUMNS, LINES = 30, 8  # letters in a line, and lines, that are drawn
MARGIN = 4  # pixels


def drawn(text: str) -> Image.Image:
    """A picture of the first words of a text; letters that the font has not are boxes."""
    font = ImageFont.load_default(size=11)
    lines = textwrap.wrap(text, COLUMNS, break_long_words=True)[:LINES] or ["(nothing)"]
    boxes = [font.getbbox(line) for line in lines]
    width = max(8, int(max(b[2] for b in boxes))) + 2 * MARGIN
    step = 15
    image = Image.new("L", (width, step * len(lines) + 2 * MARGIN), 255)
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + step * i), line, fill=0, font=font)
    return image
