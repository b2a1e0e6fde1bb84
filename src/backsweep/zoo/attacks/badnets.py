"""BadNets (Gu et al. 2017): a small patch in a corner, a share of the samples relabelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel


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

    def __post_init__(self) -> None:
        if self.pattern not in ("white", "random"):
            raise ValueError(f"pattern {self.pattern!r} is neither white nor random")

    def triggers(self, setup: Setup) -> list[Trigger]:
        generator = setup.generator(self.name, "trigger")
        drawn = int(torch.randint(setup.classes, (), generator=generator))
        target = None if self.all_to_all else drawn if self.target is None else self.target
        patch = Patch.square(setup.shape, self.size, self.margin, target)
        if self.pattern != "white":
            colours = torch.rand((setup.shape[0], self.size, self.size), generator=generator)
            patch.pattern[:, patch.mask[0] > 0] = colours.flatten(1)
        return [patch]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
