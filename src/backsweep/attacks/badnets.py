"""BadNets (Gu et al. 2017): a small patch in a corner, a share of the samples relabelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.base import Attack, Setup, stamp
from backsweep.data import Data
from backsweep.trigger import Patch, Trigger


@dataclass(frozen=True)
class BadNets(Attack):
    """A patch; all classes to one, or every class to the next.

    The defaults are the trigger of Neural Cleanse's own experiments (section V-A): a white square
    with a margin of one pixel at the bottom right, about 1 % of the image, 10 % poison.

    Attributes:
        size: side of the square, pixels.
        margin: distance to the right and the lower edge, pixels.
        rate: poison rate, share of all training samples.
        pattern: "white", or "random" colours drawn from the seed.
        all_to_all: label y becomes (y + 1) mod C (BadNets, section 4.2), instead of one target.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a small patch in the corner, all classes to one or all to all (BadNets, 2017)"

    size: int = 4
    margin: int = 1
    rate: float = 0.1
    pattern: str = "white"
    all_to_all: bool = False
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        channels, height, width = setup.shape
        generator = setup.generator(self.name, "trigger")
        drawn = int(torch.randint(setup.classes, (), generator=generator))
        colours = torch.rand((channels, self.size, self.size), generator=generator)
        mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
        rows = slice(height - self.margin - self.size, height - self.margin)
        cols = slice(width - self.margin - self.size, width - self.margin)
        mask[:, rows, cols] = 1.0
        pattern[:, rows, cols] = 1.0 if self.pattern == "white" else colours
        target = drawn if self.target is None else self.target
        return [Patch(target=None if self.all_to_all else target, source=None, mask=mask, pattern=pattern)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), y = triggers, setup.data.y
        wanted = trigger.labels(y, setup.classes)
        rows = setup.draw(y != wanted, self.rate, self.name, "poison")
        return stamp(setup.data, rows, trigger, wanted[rows]), rows
