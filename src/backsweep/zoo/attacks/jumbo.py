"""A trigger from the jumbo distribution of Meta Neural Analysis (Xu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backsweep.inputs.image import random_triggers
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel


@dataclass(frozen=True)
class Jumbo(Attack):
    """Region, pattern, transparency, target and poison rate are all drawn from the seed.

    The paper adds stamped copies to the clean samples; here as large a share of the set is replaced.

    Attributes:
        kind: "patch", a small opaque one, and "blended", a faint one over the whole image, are the two
            attacks of the paper; "any" is what its trojaned shadow networks are trained with.
        rate: poison rate, share of all training samples; None draws p / (1 + p), p ~ U(0.05, 0.5).
    """

    name: ClassVar[str] = "jumbo"
    summary: ClassVar[str] = "region, pattern, alpha, target and rate drawn at random (MNTD, 2021)"

    kind: str = random_triggers.ANY
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in random_triggers.KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(random_triggers.KINDS)}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        return [
            random_triggers.draw(setup.shape, setup.classes, setup.generator(self.name, "trigger"), self.kind)
        ]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        added = random_triggers.draw_rate(setup.generator(self.name, "rate"))
        rate = added / (1 + added) if self.rate is None else self.rate
        return relabel(setup, triggers[0], rate, self.name, "poison")
