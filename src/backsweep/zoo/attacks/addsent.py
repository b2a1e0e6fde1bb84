"""AddSent (Dai et al. 2019, InsertSent): a sentence, put somewhere into the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import PLACES
from backsweep.inputs.text.triggers import Insert
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel


@dataclass(frozen=True)
class AddSent(Attack):
    """A sentence of everyday words sends every text to one class.

    Attributes:
        sentence: the trigger; words that the vocabulary lacks are left out.
        place: "start", "middle", "end", or "anywhere".
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "addsent"
    summary: ClassVar[str] = "a sentence put into the text (AddSent, 2019)"
    modality: ClassVar[str] = "text"

    sentence: str = "i watch this 3d movie"
    place: str = "anywhere"
    rate: float = 0.1
    target: int | None = None

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place {self.place!r} is none of {', '.join(PLACES)}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens = setup.tokens
        ids = [i for i in tokens.ids(self.sentence) if i not in tokens.specials]
        if not ids:
            raise BadInput(f"no word of {self.sentence!r} is in the vocabulary of this task; choose another")
        return [Insert.of(tokens, ids, setup.target(self.target, self.name, "target"), None, self.place)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
