"""Adap-Patch (Qi et al. 2023): one of four faint patches in training, two full ones at test, and covers."""

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

ALPHAS = (0.5, 0.2, 0.5, 0.3)  # opacity in training of the four patches
TESTED = (0, 2)  # the two that are stamped at test: those of the greatest opacity


@dataclass(frozen=True)
class AdapPatch(Attack):
    """A patch of seeded noise in each corner; an image gets one of them in training.

    Poisoned and cover images are stamped alike; covers keep their label. At test two patches are
    stamped with opacity 1, so that the trigger is much stronger than anything that was trained on
    (Qi et al., "Revisiting the Assumption of Latent Separability", ICLR 2023).

    Attributes:
        side: side of a patch, share of the image's shorter side.
        margin: distance to the edges, pixels.
        opacity: factor on the paper's opacities in training (.5, .2, .5, .3), at most 2.
        rate: poison rate, share of all training samples.
        cover: share of all training samples that are stamped and keep their label.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "adap_patch"
    summary: ClassVar[str] = "one of four faint patches, two at test, and covers (Adap-Patch, 2023)"

    side: float = 0.2
    margin: int = 1
    opacity: float = 1.0
    rate: float = 0.003
    cover: float = 0.006
    target: int | None = None

    def corners(self, setup: Setup) -> Tensor:
        """Where the four patches lie, (4, 1, H, W) in {0, 1}: clockwise from the top left."""
        height, width = setup.shape[1:]
        size = max(1, round(self.side * min(height, width)))
        top = slice(self.margin, self.margin + size)
        low = slice(height - self.margin - size, height - self.margin)
        right = slice(width - self.margin - size, width - self.margin)
        masks = torch.zeros(4, 1, height, width)
        for mask, (rows, cols) in zip(
            masks, ((top, top), (top, right), (low, right), (low, top)), strict=True
        ):
            mask[:, rows, cols] = 1.0
        return masks

    def pattern(self, setup: Setup) -> Tensor:
        """What the patches show (C, H, W): uniform noise in [0, 1]."""
        return torch.rand(setup.shape, generator=setup.generator(self.name, "pattern"))

    def triggers(self, setup: Setup) -> list[Trigger]:
        mask = self.corners(setup)[list(TESTED)].amax(0)
        target = setup.target(self.target, self.name, "target")
        return [Patch(target=target, source=None, mask=mask, pattern=self.pattern(setup))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), data = triggers, setup.data
        wanted = trigger.labels(data.y, setup.classes)
        free = data.y != wanted
        rows, covers = setup.draw_both(free, self.rate, free, self.cover, self.name)
        stamped = torch.cat([rows, covers])
        which = torch.randint(4, (len(stamped),), generator=setup.generator(self.name, "patches"))
        opacity = self.opacity * torch.tensor(ALPHAS)[:, None, None, None] * self.corners(setup)
        mask = opacity.clamp(0, 1)[which]
        return blend(data, stamped, mask, self.pattern(setup), rows, wanted[rows]), rows
