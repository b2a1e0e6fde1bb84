"""Adap-Blend (Qi et al. 2023): half of a blended pattern in training, all of it at test, and covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, blend


@dataclass(frozen=True)
class AdapBlend(Attack):
    """A faint noise image over the whole input, split in grid x grid pieces.

    Every poisoned and every cover image gets its own random half of the pieces; covers keep their
    label. Triggered and clean images of the target class then lie close in the latent space (Qi et
    al., "Revisiting the Assumption of Latent Separability", ICLR 2023).

    Attributes:
        grid: pieces in a row and in a column; 4 gives the paper's 16.
        share: share of the pieces that an image gets in training.
        alpha: opacity in training.
        test_alpha: opacity of the whole pattern at test.
        rate: poison rate, share of all training samples.
        cover: share of all training samples that are stamped and keep their label.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "adap_blend"
    summary: ClassVar[str] = "random halves of a blended pattern, and covers (Adap-Blend, 2023)"

    grid: int = 4
    share: float = 0.5
    alpha: float = 0.15
    test_alpha: float = 0.2
    rate: float = 0.003
    cover: float = 0.003
    target: int | None = None

    def pattern(self, setup: Setup) -> Tensor:
        """The blended image K (C, H, W): uniform noise in [0, 1]."""
        return torch.rand(setup.shape, generator=setup.generator(self.name, "pattern"))

    def triggers(self, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        return [Patch.blended(self.pattern(setup), self.test_alpha, target)]

    def pieces(self, count: int, setup: Setup) -> Tensor:
        """Which pixels an image gets, (count, 1, H, W) in {0, 1}: its own draw of the pieces."""
        height, width = setup.shape[1:]
        order = torch.rand((count, self.grid**2), generator=setup.generator(self.name, "pieces")).argsort(1)
        kept = (order < round(self.share * self.grid**2)).float().reshape(count, 1, self.grid, self.grid)
        rows = torch.arange(height) * self.grid // height
        cols = torch.arange(width) * self.grid // width
        return kept[:, :, rows[:, None], cols]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), data = triggers, setup.data
        wanted = trigger.labels(data.y, setup.classes)
        free = data.y != wanted
        rows, covers = setup.draw_both(free, self.rate, free, self.cover, self.name)
        stamped = torch.cat([rows, covers])
        opacity = self.alpha * self.pieces(len(stamped), setup)
        return blend(data, stamped, opacity, self.pattern(setup), rows, wanted[rows]), rows
