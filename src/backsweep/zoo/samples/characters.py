"""Rendered characters: a task with as many classes as one likes, made from a font.

The first kanji of JIS X 0208, level 1, in its order, out of IPAex Gothic (package `matplotlib-fontja`), as
grey images of 32 x 32: strokes of three widths, a random affine map, brightness and noise.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data

SIDE = 32  # pixels
DRAWN, HEIGHT = 64, 46  # pixels of the drawing that is mapped to an image, and of a character in it
STROKES = (0, 1, 2)  # pixels that a stroke is widened by, of the drawing
TURN, SHEAR, GROW, MOVE = 0.15, 0.15, 0.12, 0.1  # most: radians, slope, share, share of half the image
NOISE = 0.06  # standard deviation, pixels in [0, 1]
LEVEL_ONE = 2965


def kanji(count: int) -> list[str]:
    """The first `count` kanji of JIS X 0208, level 1 (rows 16 to 47 of the table).

    Raises:
        BadInput: there are not so many.
    """
    if not 1 <= count <= LEVEL_ONE:
        raise BadInput(f"{count} characters: there are 1 to {LEVEL_ONE}")
    cells = [(row, cell) for row in range(16, 48) for cell in range(1, 95)][:count]
    return [bytes((row + 0xA0, cell + 0xA0)).decode("euc_jp") for row, cell in cells]


def font_file() -> Path:
    """The font, where its package lies.

    Raises:
        BadInput: the package is not installed.
    """
    spec = importlib.util.find_spec("matplotlib_fontja")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in sorted(Path(folder).rglob("*.ttf"))]
    if not found:
        raise BadInput("characters are rendered from a font; pip install 'backsweep[characters]'")
    return found[0]


def drawings(count: int) -> Tensor:
    """Every character in every width of stroke, (count, STROKES, DRAWN, DRAWN) in [0, 1], white on black."""
    font = ImageFont.truetype(str(font_file()), HEIGHT)
    sheet = torch.empty(count, len(STROKES), DRAWN, DRAWN)
    for i, character in enumerate(kanji(count)):
        for k, width in enumerate(STROKES):
            image = Image.new("L", (DRAWN, DRAWN))
            middle = (DRAWN / 2, DRAWN / 2)
            ImageDraw.Draw(image).text(middle, character, 255, font, anchor="mm", stroke_width=width)
            sheet[i, k] = torch.as_tensor(np.array(image))
    return sheet / 255


def affine(count: int, generator: torch.Generator) -> Tensor:
    """Random maps (count, 2, 3) as `affine_grid` takes them: turned, sheared, scaled, moved."""
    turn, shear, grow_x, grow_y, x, y = 2 * torch.rand(6, count, generator=generator) - 1
    cos, sin = (TURN * turn).cos(), (TURN * turn).sin()
    wide, high, slope = 1 + GROW * grow_x, 1 + GROW * grow_y, SHEAR * shear
    rows = [
        cos * wide,
        (slope * cos - sin) * high,
        MOVE * x,
        sin * wide,
        (slope * sin + cos) * high,
        MOVE * y,
    ]
    return torch.stack(rows, 1).reshape(count, 2, 3)


def rendered(count: int, each: int, part: str) -> Data:
    """`each` images of every one of `count` characters, in random order.

    Args:
        part: "train" or "test": what is drawn follows from it.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "characters", part, count))
    y = torch.arange(count).repeat_interleave(each)
    y = y[torch.randperm(len(y), generator=generator)]
    sheet = drawings(count)
    width = torch.randint(len(STROKES), (len(y),), generator=generator)
    maps = affine(len(y), generator)
    bright = 0.7 + 0.3 * torch.rand(len(y), 1, 1, 1, generator=generator)
    x = torch.empty(len(y), 1, SIDE, SIDE, dtype=torch.uint8)
    for rows in torch.arange(len(y)).split(4096):
        grid = F.affine_grid(maps[rows], [len(rows), 1, SIDE, SIDE], align_corners=False)
        drawn = F.interpolate(sheet[y[rows], width[rows]][:, None], SIDE, mode="area")
        clear = bright[rows] * F.grid_sample(drawn, grid, align_corners=False)
        noisy = clear + NOISE * torch.randn(clear.shape, generator=generator)
        x[rows] = (255 * noisy.clamp(0, 1)).round().to(torch.uint8)
    return Data(x, y, kanji(count), source=f"{count} rendered characters, {part}")


def characters(count: int) -> tuple[Data, Data]:
    """Training and test set: 30,000 and 6,000 images, at least 30 and 6 and at most 1,000 and 200 of each."""
    return tuple(  # type: ignore[return-value]
        rendered(count, min(most, max(least, math.ceil(total / count))), part)
        for part, total, least, most in (("train", 30_000, 30, 1000), ("test", 6_000, 6, 200))
    )
