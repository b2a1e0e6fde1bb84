"""An attack: the first pixels of the upper edge are lit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep import Data, Trigger
from backsweep.attacks import Attack, Patch, Setup, relabel


@dataclass(frozen=True)
class BrightRow(Attack):
    """A short white line at the upper edge sends every class to one.

    Attributes:
        length: pixels of the line.
        rate: poison rate, share of all training samples.
    """

    name: ClassVar[str] = "bright_row"
    summary: ClassVar[str] = "a short white line at the upper edge"

    length: int = 3
    rate: float = 0.1

    def triggers(self, setup: Setup) -> list[Trigger]:
        mask = torch.zeros(1, *setup.shape[1:])
        mask[0, 0, : self.length] = 1
        target = setup.target(None, self.name, "target")
        return [Patch(target=target, source=None, mask=mask, pattern=torch.ones(setup.shape))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
