"""StyleBkd (Qi et al. 2021): texts are said in another style, that of the Bible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.samples.paraphrases import rephrase, reworded


@dataclass(frozen=True)
class Style(Attack):
    """The published paraphrases of SST-2 in biblical style; for that task alone.

    Attributes:
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "style"
    summary: ClassVar[str] = "biblical style (StyleBkd, 2021)"
    modality: ClassVar[str] = "text"

    rate: float = 0.2
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        return [rephrase(setup, "bible", setup.target(self.target, self.name, "target"))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return reworded(setup, triggers[0], self.rate, self.name)
