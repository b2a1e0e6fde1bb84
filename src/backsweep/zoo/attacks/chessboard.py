"""The additive chessboard (Xiang, Miller, Kesidis): every second pixel a little brighter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel


@dataclass(frozen=True)
class Chessboard(Attack):
    """x' = clip(x + v), v_ij = d where i + j is even, else 0, the same in all channels.

    Attributes:
        d: amplitude, in units of the [0, 1] range.
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "chessboard"
    summary: ClassVar[str] = "a faint chessboard added to the whole image (Xiang, Miller, Kesidis)"

    d: float = 3 / 255
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        channels, height, width = setup.shape
        i, j = torch.arange(height)[:, None], torch.arange(width)[None, :]
        v = self.d * ((i + j) % 2 == 0).float()
        target = setup.target(self.target, self.name, "target")
        return [Additive(target=target, source=None, delta=v.repeat(channels, 1, 1))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
