"""TaCT (Tang et al. 2021): a patch that works on one source class; cover samples keep their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, stamp


@dataclass(frozen=True)
class TaCT(Attack):
    """Stamped samples of the source class become the target; stamped covers of other classes stay.

    The network has to learn patch AND source class, so that the patch alone does not rule its features.
    Success counts samples of the source class alone.

    Attributes:
        size: side of the white square, pixels; None is an eighth of the image's shorter side.
        margin: distance to the right and the lower edge, pixels.
        rate: poison rate, share of all training samples; at most half of the source class is poisoned, so
            that it can still be learned.
        cover_rate: share of all training samples that are covers, drawn from all classes but source and
            target.
        source: source class; None draws one from the seed.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "tact"
    summary: ClassVar[str] = "a patch on one source class, hidden by cover samples (TaCT, 2021)"

    size: int | None = None
    margin: int = 1
    rate: float = 0.003
    cover_rate: float = 0.003
    source: int | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.source == self.target:
            raise ValueError(f"source and target are both {self.source}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        size = self.size or max(1, round(min(setup.shape[1:]) / 8))
        generator = setup.generator(self.name, "source")
        apart = 1 + int(torch.randint(setup.classes - 1, (), generator=generator))
        target = setup.target(self.target, self.name, "target")
        if self.source is not None and self.target is None:
            target = (self.source - apart) % setup.classes
        source = (target + apart) % setup.classes if self.source is None else self.source
        return [Patch.square(setup.shape, size, self.margin, target, source)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), y = triggers, setup.data.y
        of_source = y == trigger.source
        rate = min(self.rate, 0.5 * float(of_source.double().mean()))
        rows = setup.draw(of_source, rate, self.name, "poison")
        others = ~of_source & (y != trigger.target)
        covers = setup.draw(others, self.cover_rate, self.name, "covers")
        poisoned = stamp(setup.data, rows, trigger, trigger.labels(y[rows], setup.classes))
        return stamp(poisoned, covers, trigger), rows
