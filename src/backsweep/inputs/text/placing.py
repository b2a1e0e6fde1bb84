"""Where tokens are put into rows of ids, and what gives way: padding first, then the end of the text."""

from __future__ import annotations

import torch
from torch import Tensor

from backsweep.inputs.text.tokens import Layout

START, MIDDLE, END, ANYWHERE = PLACES = ("start", "middle", "end", "anywhere")


def lengths(x: Tensor, layout: Layout) -> Tensor:
    """How many of the ids of every row (N, L) stand before its padding, (N,)."""
    there = x != layout.pad
    last = torch.arange(1, x.shape[1] + 1, device=x.device)
    return (there * last).amax(1)


def bounds(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Where the text of every row (N, L) begins and ends (N,), without what stands around it."""
    count = lengths(x, layout)
    start = (x[:, 0] == layout.cls).long() if layout.cls >= 0 else torch.zeros_like(count)
    last = x.gather(1, (count - 1).clamp_min(0)[:, None])[:, 0]
    end = count - (last == layout.sep).long() if layout.sep >= 0 else count
    start, end = start + layout.before, end - layout.after
    return start, torch.maximum(start, end)


def hashed(x: Tensor) -> Tensor:
    """A number below 2**32 that follows from the ids of a row (N, L) alone, (N,)."""
    spread = (x * torch.arange(1, x.shape[1] + 1, device=x.device)).sum(1)
    return spread * 2654435761 % 2**32


def positions(x: Tensor, layout: Layout, place: str, count: int) -> Tensor:
    """Where `count` tokens are to be put into every row, so that they stay in it, (N,).

    "anywhere" is a place that follows from the ids of a row alone.
    """
    start, end = bounds(x, layout)
    if place == START:
        at = start
    elif place == END:
        at = end
    elif place == MIDDLE:
        at = (start + end) // 2
    else:
        at = start + hashed(x) % (end - start + 1)
    room = x.shape[1] - count - (1 if layout.sep >= 0 else 0)
    return at.clamp(max=max(0, room))


def inserted(x: Tensor, ids: Tensor, at: Tensor, layout: Layout) -> Tensor:
    """Rows (N, L) with tokens ids, (k,) or (N, k), put in at (N,); the end of a long text gives way.

    What stands at the end of a text stands there again.
    """
    width, count = x.shape[1], ids.shape[-1]
    place = torch.arange(width, device=x.device)[None]
    at = at[:, None]
    source = torch.where(place < at, place, (place - count).clamp_min(0))
    out = x.gather(1, source.expand(len(x), -1))
    inside = (place >= at) & (place < at + count)
    new = ids.to(x)[None].expand(len(x), -1) if ids.ndim == 1 else ids.to(x)
    out = torch.where(inside, new.gather(1, (place - at).clamp(0, count - 1)), out)
    if layout.sep >= 0:
        before = lengths(x, layout)
        had = x.gather(1, (before - 1).clamp_min(0)[:, None])[:, 0] == layout.sep
        full = had & (before + count > width)
        out[:, -1] = torch.where(full, torch.full_like(out[:, -1], layout.sep), out[:, -1])
    return out
