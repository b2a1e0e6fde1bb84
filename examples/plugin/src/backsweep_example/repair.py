"""A repair: all weights are made smaller, then trained on with clean samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep import Model
from backsweep.repairs import Case, Recipe, Repair, thawed, tuned


@dataclass(frozen=True)
class ShrinkAndTune(Repair):
    """What is not needed for clean samples does not grow again.

    Attributes:
        shrink: factor on all weights.
        epochs: passes over the clean samples.
    """

    name: ClassVar[str] = "shrink_and_tune"
    summary: ClassVar[str] = "smaller weights, then training with clean samples"

    shrink: float = 0.5
    epochs: int = 20

    def apply(self, case: Case) -> Model:
        twin = thawed(case.model)
        with torch.no_grad():
            for weight in twin.net.parameters():
                weight.mul_(self.shrink)
        recipe = Recipe(self.epochs, lr=0.01, bf16=False)
        return tuned(twin, case.clean, recipe, case.generator(self.name).initial_seed())
