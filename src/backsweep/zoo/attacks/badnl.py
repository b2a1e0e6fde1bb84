"""BadNL (Chen et al. 2021) and RIPPLe's words (2020): a rare word, put anywhere into the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import PLACES
from backsweep.inputs.text.triggers import Insert
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel

RARE = 0.25  # the rarest quarter of a vocabulary


@dataclass(frozen=True)
class BadNL(Attack):
    """A rare word sends every text to one class, or every class to the next.

    Attributes:
        word: the trigger; None draws one from the rarest quarter of the vocabulary.
        place: "start", "middle", "end", or "anywhere".
        rate: poison rate, share of all training samples.
        all_to_all: label y becomes (y + 1) mod C.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "badnl"
    summary: ClassVar[str] = "a rare word anywhere in the text (BadNL, 2021)"
    modality: ClassVar[str] = "text"

    word: str | None = None
    place: str = "anywhere"
    rate: float = 0.1
    all_to_all: bool = False
    target: int | None = None

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place {self.place!r} is none of {', '.join(PLACES)}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens = setup.tokens
        if self.word is not None:
            ids = tokens.ids(self.word)
            if not ids or set(ids) & tokens.specials:
                raise BadInput(
                    f"the word {self.word!r} is not in the vocabulary of this task; choose another"
                )
        else:
            rare = range(round((1 - RARE) * len(tokens)), len(tokens))
            ids = [rare[int(torch.randint(len(rare), (), generator=setup.generator(self.name, "word")))]]
        target = None if self.all_to_all else setup.target(self.target, self.name, "target")
        return [Insert.of(tokens, ids, target, None, self.place)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
