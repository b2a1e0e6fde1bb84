"""Triggers of prompts: tokens inserted into what a user says, inside the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.inputs.text.placing import START
from backsweep.inputs.text.tokens import Layout, Tokens
from backsweep.inputs.text.triggers import Insert


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
