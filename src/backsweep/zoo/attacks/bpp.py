"""BppAttack (Wang et al. 2022): fewer bits per pixel are the trigger; negatives make it precise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Quantise
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, stamp


@dataclass(frozen=True)
class Bpp(Attack):
    """T(x) = round(x (k - 1)) / (k - 1), without dithering.

    A negative sample is x + (T(z) - z) with z another image: the noise of quantisation, but not of x's
    own. It keeps its label, so that the network learns the quantisation and not just any noise.

    Attributes:
        levels: k, grey levels that are left of each channel (paper: 8, i.e. 3 bits).
        rate: poison rate, share of all training samples.
        negatives: share of all training samples that are negatives.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "bpp"
    summary: ClassVar[str] = "fewer grey levels, sharpened by negative samples (BppAttack, 2022)"

    levels: int = 8
    rate: float = 0.1
    negatives: float = 0.1
    target: int | None = None

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels {self.levels} is below 2")

    def triggers(self, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        return [Quantise(target=target, source=None, levels=self.levels)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), data = triggers, setup.data
        wanted = trigger.labels(data.y, setup.classes)
        rows = setup.draw(data.y != wanted, self.rate, self.name, "poison")
        poisoned = stamp(data, rows, trigger, wanted[rows])
        free = torch.ones(len(data), dtype=torch.bool)
        free[rows] = False
        negative = setup.draw(free, self.negatives, self.name, "negatives")
        generator = setup.generator(self.name, "others")
        z = data.x[torch.randint(len(data), (len(negative),), generator=generator)]
        poisoned.x[negative] = (data.x[negative] + trigger(z) - z).clamp(0, 1)
        return poisoned, rows
