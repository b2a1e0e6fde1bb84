"""The jumbo distribution of triggers (Meta Neural Analysis, Xu et al. 2021, section V-B).

A trojaned shadow network draws where its trigger lies, what it looks like, how faint it is, where it
leads and how many samples carry it:

    x' = (1 - alpha) x + alpha t     inside a region,  x' = x outside
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Patch

ANY, PATCH, BLENDED = KINDS = ("any", "patch", "blended")
SIDES = (2, 3, 4, 5)  # pixels; at most a quarter of a small image's side, and at least 2
SMALL_ALPHA, OPAQUE = (0.2, 0.6), 0.5  # above OPAQUE a small trigger hides what is below it
FULL_ALPHA, POISON = (0.05, 0.2), (0.05, 0.5)


def draw(shape: Sequence[int], classes: int, generator: torch.Generator, kind: str = ANY) -> Patch:
    """One trigger for images of `shape`, with its target.

    Args:
        kind: "any" draws from the jumbo distribution; "patch" a small opaque one, "blended" a faint one
            over the whole image: the two families that the paper attacks with.
    """
    channels, height, width = shape
    sides = [s for s in SIDES if s <= max(min(height, width) // 4, 2)]
    pick = int(torch.randint(len(sides) + (kind == ANY), (), generator=generator))
    whole = kind == BLENDED or pick == len(sides)
    high, wide = (height, width) if whole else (sides[pick], sides[pick])
    alpha = _uniform(*(FULL_ALPHA if whole else SMALL_ALPHA), generator)
    if kind == PATCH or (not whole and alpha > OPAQUE):
        alpha = 1.0
    top = int(torch.randint(height - high + 1, (), generator=generator))
    left = int(torch.randint(width - wide + 1, (), generator=generator))
    mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
    mask[:, top : top + high, left : left + wide] = alpha
    pattern[:, top : top + high, left : left + wide] = _pattern(channels, high, wide, generator)
    return Patch(int(torch.randint(classes, (), generator=generator)), None, mask, pattern)


def draw_rate(generator: torch.Generator) -> float:
    """Share p of stamped copies that are added to n clean samples: the poison rate is p / (1 + p)."""
    return _uniform(*POISON, generator)


def _pattern(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Black and white for grey images; for colour U(-e, 1 + e) clipped to [0, 1], e ~ U(0, 1)."""
    if channels == 1:
        area = height * width
        ones = int(torch.randint(1, area, (), generator=generator))
        return (torch.randperm(area, generator=generator) < ones).float().reshape(1, height, width)
    e = float(torch.rand((), generator=generator))
    noise = torch.rand((channels, height, width), generator=generator)
    return (noise * (1 + 2 * e) - e).clamp(0, 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
