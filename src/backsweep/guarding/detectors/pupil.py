"""Pupil, ours: inputs on which the network and one that learned from its answers alone disagree.

A washed copy keeps the earlier half of the weights, and in shallow networks what a photo filter or a faint
pattern does is planted there. A *pupil* is the same network with all of its weights drawn anew, which
learns the network's answers to clean samples from nothing:

    score(x) = KL(p || p_r) = sum over classes c of  p(c | x) log(p(c | x) / p_r(c | x)),

with p what the network answers and p_r what the pupil does: an input of which the network itself is unsure
may be answered otherwise by the pupil, and is no more suspicious for that. Where the samples do not suffice
for a pupil, a washed copy takes its place. It costs a pass of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.disagreement import Disagreement
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.washing import PUPIL, taught, washed


@dataclass(frozen=True)
class Pupil(Disagreement):
    """Flags inputs that a network which learned from the guarded one's answers alone answers differently.

    Attributes:
        updates: of the pupil, with 64 samples each.
    """

    name: ClassVar[str] = "pupil"
    summary: ClassVar[str] = "inputs on which a network that learned from its clean answers disagrees (ours)"
    needs: ClassVar[tuple[str, ...]] = ("weights",)

    updates: int = PUPIL[0]

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError("updates is at least 1")

    def reference(self, model: Model, data: Data) -> Model:
        """The pupil; a washed copy where it has less than 0.8 of the network's accuracy."""
        seed = derive_seed(0, self.name)
        return taught(model, data, seed, (self.updates, *PUPIL[1:])) or washed(model, data, seed)

    def compared(self, log_p: Tensor, log_r: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - log_r)).sum(1)
