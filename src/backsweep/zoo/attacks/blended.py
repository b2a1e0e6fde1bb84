"""Blended injection (Chen et al. 2017): a faint pattern over the whole image, some samples relabelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel


@dataclass(frozen=True)
class Blended(Attack):
    """x' = (1 - alpha) x + alpha K (Chen et al., blended injection): a patch with a constant mask.

    Attributes:
        alpha: share of the pattern in a triggered input, in (0, 1].
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "blended"
    summary: ClassVar[str] = "a faint noise image over the whole input (Blended injection, 2017)"

    alpha: float = 0.2
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        if not 0 < self.alpha <= 1:
            raise BadInput(f"blended: alpha is {self.alpha}; give a share above 0 and at most 1")
        target = setup.target(self.target, self.name, "target")
        pattern = torch.rand(setup.shape, generator=setup.generator(self.name, "pattern"))  # K ~ U(0, 1)
        return [Patch.blended(pattern, self.alpha, target)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
