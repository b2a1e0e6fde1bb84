"""Random changes of images.

Square patches and faint overlays to search with where there are no gradients; and changes after which a
person still sees what it was, to teach a network that they mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.image.triggers import Patch


def _patch(shape: Sequence[int], row: int, column: int, inner: Tensor) -> Patch:
    side = inner.shape[-1]
    mask, pattern = torch.zeros(1, *shape[1:]), torch.zeros(*shape)
    mask[:, row : row + side, column : column + side] = 1
    pattern[:, row : row + side, column : column + side] = inner
    return Patch(None, None, mask, pattern)


def drawn(shape: Sequence[int], level: float, count: int, seed: int) -> list[Patch]:
    """Changes to begin with: patches in black, white, colour or random; overlays of noise and waves.

    Args:
        shape: of an image.
        level: from 1 on the side of a patch, below it the strength of an overlay.
        count: how many.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape

    def whole(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    found = []
    if level >= 1:
        side = int(level)
        places = [(i, j) for i in range(height - side + 1) for j in range(width - side + 1)]
        few = 2 * len(places) <= count  # then every place is tried in black and in white
        for n in range(count):
            row, column = places[n // 2 % len(places) if few else int(whole(len(places), 1))]
            flat = (torch.ones(channels, 1, 1), torch.zeros(channels, 1, 1), whole(2, channels, 1, 1).float())
            kind = n % (2 if few else 4)
            inner = flat[kind].expand(-1, side, side) if kind < 3 else whole(2, channels, side, side).float()
            found.append(_patch(shape, row, column, inner))
        return found
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    for n in range(count):
        if n % 3 == 2:  # waves
            a, b, c = torch.rand(3, generator=generator).tolist()
            pattern = 0.5 + 0.5 * torch.sin(2 * math.pi * ((8 * a - 4) * rows + (8 * b - 4) * columns + c))
            pattern = pattern.expand(channels, -1, -1).clone()
        else:  # squares of any size
            cells = max(height, width) if n % 3 == 0 else 2 + int(whole(4, 1))
            coarse = whole(2, 1, channels, cells, cells).float()
            pattern = F.interpolate(coarse, (height, width), mode="nearest")[0]
        found.append(Patch(None, None, torch.full((1, height, width), level), pattern))
    return found


def changed(old: Patch, level: float, generator: torch.Generator) -> Patch:
    """A change of the same size that is a little different."""

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    channels, height, width = old.pattern.shape
    pattern, colour = old.pattern.clone(), torch.randint(2, (channels, 1, 1), generator=generator).float()
    if level < 1:  # a square of another colour
        size = max(1, round(min(height, width) * (0.1 + 0.3 * float(torch.rand((), generator=generator)))))
        row, column = whole(0, height - size), whole(0, width - size)
        pattern[:, row : row + size, column : column + size] = colour
        return Patch(None, None, old.mask, pattern)
    side = int(level)
    row, column = (int(n) for n in old.mask[0].nonzero()[0])
    inner = pattern[:, row : row + side, column : column + side].clone()
    kind = whole(0, 9)
    if kind < 4:  # to the side, by one pixel or by several
        far = max(1, height // 8) if kind < 2 else 1
        row = min(max(0, row + whole(-far, far)), height - side)
        column = min(max(0, column + whole(-far, far)), width - side)
    elif kind < 5:  # somewhere else
        row, column = whole(0, height - side), whole(0, width - side)
    else:  # a square in it of another colour
        size = whole(1, side)
        i, j = whole(0, side - size), whole(0, side - size)
        inner[:, i : i + size, j : j + size] = colour
    return _patch(old.pattern.shape, row, column, inner)


FADE, BLEED, LIFT = (0.4, 1.3), 0.2, 0.3  # of colours: contrast, between channels, brightness
STRENGTH, OVER = (0.05, 0.4), (0.1, 0.45)  # of what is added, and of what is blended in
GRID, WAVES = 8, 8.0  # cells of a smooth pattern at most; waves across an image


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), all changed in one way that is drawn, each by as much as it draws itself.

    Other colours; a smooth or a rough pattern on top; waves; another image or noise blended in; a patch.
    """
    count, channels, height, width = x.shape
    g = generator

    def draw(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=g)

    def coin() -> bool:
        return bool(torch.rand((), generator=g) < 0.5)

    each = (count, 1, 1, 1)
    kind = int(torch.randint(5, (), generator=g))
    if kind == 0:
        own = torch.eye(channels)
        matrix = draw(*FADE, count, 1, 1) * own + draw(-BLEED, BLEED, count, channels, channels) * (1 - own)
        new = torch.einsum("nij,njhw->nihw", matrix.to(x), x) + draw(-LIFT, LIFT, count, channels, 1, 1).to(x)
    elif kind == 1:
        cells = int(torch.randint(2, GRID + 1, (), generator=g))
        rough = bool(torch.rand((), generator=g) < 0.25)
        size = (height, width) if rough else (cells, cells)
        p = torch.randn((count, channels, *size), generator=g)
        p = p if rough else F.interpolate(p, (height, width), mode="bicubic", align_corners=False)
        new = x + (draw(*STRENGTH, *each) * p / p.abs().amax((1, 2, 3), keepdim=True)).to(x)
    elif kind == 2:
        rows, columns = torch.meshgrid(
            torch.arange(height) / height, torch.arange(width) / width, indexing="ij"
        )
        slant = draw(-WAVES, WAVES, *each) * (torch.rand(each, generator=g) < 0.5)
        turns = slant * rows + draw(-WAVES, WAVES, *each) * columns + draw(0, 1, *each)
        new = x + (draw(*STRENGTH, *each) * torch.sin(2 * math.pi * turns)).to(x)
    elif kind == 3:
        other = x[torch.randperm(count, generator=g).to(x.device)] if coin() else draw(0, 1, *x.shape).to(x)
        new = torch.lerp(x, other, draw(*OVER, *each).to(x))
    else:
        side = int(torch.randint(2, max(3, min(height, width) // 4 + 1), (), generator=g))
        row = int(torch.randint(height - side + 1, (), generator=g))
        column = int(torch.randint(width - side + 1, (), generator=g))
        flat = draw(0, 1, count, channels, 1, 1)
        dots = torch.randint(2, (1, channels, side, side), generator=g).float()
        new = x.clone()
        new[..., row : row + side, column : column + side] = (flat if coin() else dots).to(x)
    return new.clamp(0, 1)
