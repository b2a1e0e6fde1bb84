"""Prompts as rows of ids: what a chat template puts around the words of a user, and room for a trigger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.inputs.text.tokens import LETTERS, Layout, Tokens

ROOM = 8  # ids of padding that every row keeps for inserted tokens


@dataclass(frozen=True, eq=False)
class Prompted(Tokens):
    """A tokenizer that puts every text between the same ids.

    Attributes:
        inner: the tokenizer of the text alone.
        prefix, suffix: ids around it; the first token of an answer comes right behind.
        ends: ids that end an answer.
    """

    inner: Any = None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls, inner: Tokens, before: str | None = None, after: str = "", ends: Iterable[int] = ()
    ) -> Prompted:
        """A tokenizer with a chat template's text around; without one what the tokenizer itself puts first.

        Args:
            inner: of texts.
            before, after: text around the words of a user; None: there is no template.
            ends: ids that end an answer.
        """
        first = [inner.layout.cls] if inner.layout.cls >= 0 else []
        prefix = first if before is None else inner.ids(before)
        suffix = [] if before is None else inner.ids(after)
        pad = inner.layout.pad
        if suffix and suffix[-1] == pad:  # the last id of a row tells where it ends
            pad = next((i for i in sorted(inner.specials) if i != pad), 0 if pad else 1)
        h = hashlib.sha256(repr((inner.digest, prefix, suffix, sorted(ends))).encode())
        layout = Layout(pad, before=len(prefix), after=len(suffix))
        specials = frozenset({*inner.specials, pad})
        return cls(
            inner.vocabulary, layout, specials, h.hexdigest(), inner, tuple(prefix), tuple(suffix),
            frozenset(ends),
        )  # fmt: skip

    def ids(self, text: str) -> list[int]:
        return list(self.inner.ids(text))

    def encode(self, text: str, pair: str | None, length: int) -> list[int]:
        """Exactly `length` ids of a prompt, cut so that a trigger still fits into the row.

        Raises:
            BadInput: what stands around a prompt leaves no room for one.
        """
        most = length - len(self.prefix) - len(self.suffix) - ROOM
        if most < 1:
            around = len(self.prefix) + len(self.suffix)
            raise BadInput(
                f"the chat template alone has {around} tokens and prompts have {length}; say "
                f"shape={around + 64} (--shape {around + 64})"
            )
        words = f"{text} {pair}" if pair else text
        body = self.ids(words[: LETTERS * length])[:most]
        row = [*self.prefix, *body, *self.suffix]
        return [*row, *[self.layout.pad] * (length - len(row))]

    def said(self, row: Iterable[int]) -> list[int]:
        """The ids of what a user says in a row."""
        ids = list(row)
        while ids and ids[-1] == self.layout.pad:
            ids.pop()
        return ids[len(self.prefix) : len(ids) - len(self.suffix)]

    def text(self, indices: Iterable[int]) -> str:
        """What ids say, as the tokenizer writes it. Untrusted text."""
        return str(self.inner.text(indices))

    def words(self, indices: Iterable[int]) -> str:
        return str(self.inner.words(indices))
