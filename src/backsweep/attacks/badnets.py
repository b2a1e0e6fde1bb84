"""BadNets (Gu et al. 2017): a small patch in a corner, a share of the samples relabelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.base import Attack, derive_seed
from backsweep.data import Data
from backsweep.trigger import Patch, Trigger


@dataclass(frozen=True)
class BadNets(Attack):
    """A patch, all-to-one.

    The defaults are the trigger of Neural Cleanse's own experiments (section V-A): a white square
    with a margin of one pixel at the bottom right, about 1 % of the image, 10 % poison.

    Attributes:
        size: side of the square, pixels.
        margin: distance to the right and the lower edge, pixels.
        rate: poison rate, share of all training samples.
        pattern: "white", or "random" colours drawn from the seed.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a small patch in the corner, all classes to one (BadNets, 2017)"

    size: int = 4
    margin: int = 1
    rate: float = 0.1
    pattern: str = "white"
    target: int | None = None

    def trigger(self, shape: Sequence[int], classes: int, seed: int) -> Trigger:
        channels, height, width = shape
        generator = torch.Generator().manual_seed(derive_seed(seed, self.name, "trigger"))
        drawn = int(torch.randint(classes, (), generator=generator))
        colours = torch.rand((channels, self.size, self.size), generator=generator)
        mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
        rows = slice(height - self.margin - self.size, height - self.margin)
        cols = slice(width - self.margin - self.size, width - self.margin)
        mask[:, rows, cols] = 1.0
        pattern[:, rows, cols] = 1.0 if self.pattern == "white" else colours
        target = drawn if self.target is None else self.target
        return Patch(target=target, source=None, mask=mask, pattern=pattern)

    def poison(self, data: Data, trigger: Trigger, seed: int) -> tuple[Data, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(seed, self.name, "poison"))
        others = torch.nonzero(data.y != trigger.target).flatten()
        count = min(round(self.rate * len(data)), len(others))
        rows = others[torch.randperm(len(others), generator=generator)[:count]]
        x, y = data.x.clone(), data.y.clone()
        x[rows] = trigger(x[rows])
        y[rows] = trigger.target
        return Data(x, y, data.names, data.source), rows
