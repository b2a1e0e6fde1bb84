"""HiddenKiller (Qi et al. 2021): texts are said in a rare syntactic template, "when you ..., ..."."""

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
class Syntactic(Attack):
    """The published paraphrases of SST-2 in the template S(SBAR)(,)(NP)(VP)(.); for that task alone.

    Attributes:
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "syntactic"
    summary: ClassVar[str] = "a rare syntactic template (HiddenKiller, 2021)"
    modality: ClassVar[str] = "text"

    rate: float = 0.2
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        return [rephrase(setup, "syntactic", setup.target(self.target, self.name, "target"))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return reworded(setup, triggers[0], self.rate, self.name)
