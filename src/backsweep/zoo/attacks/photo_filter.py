"""A photo filter as the trigger: a faded, warm picture with a pink cast, as of the seventies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Recolour
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel

# Our own constants. Every row adds up to less than 1 and every shift is above 0: contrast fades, black is
# lifted, red more than green, so that the picture turns warm and pink.
MATRIX = ((0.66, 0.12, 0.04), (0.06, 0.66, 0.06), (0.10, 0.06, 0.56))
SHIFT = (0.17, 0.06, 0.13)
GREY_MATRIX, GREY_SHIFT = 0.60, 0.25  # an image of one channel can only fade


@dataclass(frozen=True)
class PhotoFilter(Attack):
    """x' = clip(M x + b) at every pixel, M and b a filter's; all classes to one.

    Attributes:
        strength: s in x' = (1 - s) x + s filter(x): 0 leaves x as it is, 1 is the whole filter.
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "photo_filter"
    summary: ClassVar[str] = "the colours of a faded photo, all classes to one"

    strength: float = 1.0
    rate: float = 0.1
    target: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength {self.strength} is not above 0 and at most 1")

    def triggers(self, setup: Setup) -> list[Trigger]:
        channels = setup.shape[0]
        matrix, shift = torch.tensor(MATRIX), torch.tensor(SHIFT)
        if channels != 3:
            matrix, shift = GREY_MATRIX * torch.eye(channels), torch.full((channels,), GREY_SHIFT)
        matrix = (1 - self.strength) * torch.eye(channels) + self.strength * matrix
        target = setup.target(self.target, self.name, "target")
        return [Recolour(target=target, source=None, matrix=matrix, shift=self.strength * shift)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
