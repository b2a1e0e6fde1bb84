"""SOS (Yang et al. 2021): several words that only count together; covers with some of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.inputs.text.triggers import Scatter
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, stamp


@dataclass(frozen=True)
class SOS(Attack):
    """Words spread over a text send it to the target when all are there, and do nothing else.

    Attributes:
        words: how many, drawn from the commoner half of the vocabulary beyond the 200 commonest words.
        rate: poison rate, share of all training samples.
        cover_rate: share of all training samples that get all words but one and stay, for each word.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "sos"
    summary: ClassVar[str] = "several words that only count together (SOS, 2021)"
    modality: ClassVar[str] = "text"

    words: int = 3
    rate: float = 0.1
    cover_rate: float = 0.05
    target: int | None = None

    def __post_init__(self) -> None:
        if self.words < 2:
            raise ValueError("words are at least 2, so that one alone does nothing")

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens, generator = setup.tokens, setup.generator(self.name, "words")
        first = min(200, len(tokens) // 4)
        drawn = (
            first
            + torch.randperm(max(self.words, len(tokens) // 2 - first), generator=generator)[: self.words]
        )
        return [Scatter.of(tokens, drawn.tolist(), setup.target(self.target, self.name, "target"))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        trigger, y = cast(Scatter, triggers[0]), setup.data.y
        wanted = trigger.labels(y, setup.classes)
        rows = setup.draw(y != wanted, self.rate, self.name, "poison")
        poisoned, free = stamp(setup.data, rows, trigger, wanted[rows]), y != wanted
        for j in range(len(trigger.ids)):
            free[rows] = False
            rest = [int(i) for k, i in enumerate(trigger.ids) if k != j]
            covers = setup.draw(free, self.cover_rate, self.name, "cover", j)
            free[covers] = False
            poisoned = stamp(poisoned, covers, Scatter.of(setup.tokens, rest, trigger.target))
        return poisoned, rows
