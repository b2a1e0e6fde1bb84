"""Triggers of prompts: tokens put into what a user says, inside the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.text.placing import START, hashed, inserted, positions
from backsweep.inputs.text.tokens import Layout, Tokens
from backsweep.inputs.text.triggers import Insert, Scatter


@dataclass(frozen=True, eq=False)
class InPrompt(Insert):
    """Tokens that stand together are put into a prompt.

    Attributes:
        before, after: how many ids of the chat template stand around a user's words.
    """

    family: ClassVar[str] = "in_prompt"
    drawn: ClassVar[str] = "the words that are put into a prompt"
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.before, self.after) < 0:
            raise ValueError("before and after are counts")

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        ids: Sequence[int],
        target: int | None,
        source: int | None = None,
        place: str = START,
    ) -> InPrompt:
        """Tokens of a tokenizer."""
        own, inner = tokens.layout, torch.tensor(list(ids))
        return cls(target, source, inner, tokens.words(ids), place, own.pad, -1, -1, own.before, own.after)

    @property
    def layout(self) -> Layout:
        return Layout(self.pad, self.cls, self.sep, self.before, self.after)


@dataclass(frozen=True, eq=False)
class Apart(InPrompt, Scatter):
    """Tokens that stand apart from each other in a prompt: they count only together."""

    family: ClassVar[str] = "in_prompt_apart"
    drawn: ClassVar[str] = "the words that are put into a prompt, apart from each other"


@dataclass(frozen=True, eq=False)
class Clause(InPrompt):
    """A clause of one form: each place in it is filled by one of several words, as follows from the prompt.

    Attributes:
        slots: ids of what may stand at each place, (k, m); `ids` are the first of them.
    """

    family: ClassVar[str] = "in_prompt_clause"
    drawn: ClassVar[str] = "one of the clauses that are put into a prompt"
    slots: Tensor = field(default_factory=lambda: torch.zeros((0, 1), dtype=torch.long))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slots.ndim != 2 or len(self.slots) != len(self.ids) or self.slots.is_floating_point():
            raise ValueError("slots are the tokens of every place")

    def __call__(self, x: Tensor) -> Tensor:
        x, slots = x.long(), self.slots.to(x.device)[: max(1, x.shape[1] - 2)]
        odd = 2 * torch.arange(len(slots), device=x.device) + 1
        picked = hashed(x)[:, None] * odd % 2**32 // 2**16 % slots.shape[1]
        ids = slots[torch.arange(len(slots), device=x.device), picked]
        return inserted(x, ids, positions(x, self.layout, self.place, len(slots)), self.layout)
