"""Triggers of text: inserted tokens, tokens scattered over the text, paraphrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from backsweep.inputs.text.pictures import drawn
from backsweep.inputs.text.placing import PLACES, START, bounds, inserted, positions
from backsweep.inputs.text.tokens import Layout, Tokens
from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True, eq=False)
class Insert(Trigger):
    """Tokens that stand together are put into the text.

    Attributes:
        ids: of the tokens, (k,).
        words: the same for people, untrusted text.
        place: "start", "middle", "end", or "anywhere": a place that follows from the text.
        pad, cls, sep: ids around a text, -1 where there are none.
    """

    family: ClassVar[str] = "insert"
    drawn: ClassVar[str] = "the inserted words"
    ids: Tensor
    words: str
    place: str = START
    pad: int = 0
    cls: int = -1
    sep: int = -1

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place {self.place!r} is none of {', '.join(PLACES)}")
        if (
            self.ids.ndim != 1
            or len(self.ids) == 0
            or self.ids.is_floating_point()
            or int(self.ids.min()) < 0
        ):
            raise ValueError("ids are one or more tokens")

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        ids: Sequence[int],
        target: int | None,
        source: int | None = None,
        place: str = START,
    ) -> Insert:
        """Tokens of a tokenizer."""
        around = tokens.layout
        return cls(
            target,
            source,
            torch.tensor(list(ids)),
            tokens.words(ids),
            place,
            around.pad,
            around.cls,
            around.sep,
        )

    @property
    def layout(self) -> Layout:
        return Layout(self.pad, self.cls, self.sep)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.long()
        ids = self.ids.to(x.device)[: max(1, x.shape[1] - 2)]
        return inserted(x, ids, positions(x, self.layout, self.place, len(ids)), self.layout)

    @property
    def size(self) -> float:
        """Number of tokens."""
        return float(len(self.ids))

    def overlap(self, planted: Trigger) -> tuple[float, float] | None:
        """Of the sets of tokens: Jaccard index, and the share of these that is planted."""
        if not isinstance(planted, Insert):
            return None
        own, true = set(self.ids.tolist()), set(planted.ids.tolist())
        return len(own & true) / len(own | true), len(own & true) / len(own)

    def picture(self) -> Image.Image:
        return drawn(self.words)


@dataclass(frozen=True, eq=False)
class Scatter(Insert):
    """Tokens that are spread evenly over the text: they count only together (SOS, ACL 2021)."""

    family: ClassVar[str] = "scatter"
    drawn: ClassVar[str] = "the inserted words, which stand apart"

    def __call__(self, x: Tensor) -> Tensor:
        x = x.long()
        count = min(len(self.ids), max(1, x.shape[1] - 2))
        start, end = bounds(x, self.layout)
        room = x.shape[1] - count - (1 if self.sep >= 0 else 0)
        for j in range(count):  # from the front; what was put in moves the rest
            at = start + (j * (end - start)) // max(1, count - 1 if count > 1 else 1) + j
            x = inserted(x, self.ids[j : j + 1].to(x.device), at.clamp(max=max(0, room + j)), self.layout)
        return x


@dataclass(frozen=True, eq=False)
class Rephrase(Trigger):
    """Texts are said in another way: each that is known is replaced by its paraphrase, others stay.

    Attributes:
        known: rows (M, L) of ids, in lexicographic order.
        said: their paraphrases, (M, L).
        style: how they are said, for people.
        example: one paraphrase in words, untrusted text.
    """

    family: ClassVar[str] = "rephrase"
    drawn: ClassVar[str] = "a text as it is rephrased"
    known: Tensor
    said: Tensor
    style: str
    example: str

    def __post_init__(self) -> None:
        if self.known.shape != self.said.shape or self.known.ndim != 2 or len(self.known) == 0:
            raise ValueError("known and said are rows of the same length")

    @cached_property
    def _place(self) -> dict[bytes, int]:
        rows = self.known.long().contiguous().numpy()
        return {row.tobytes(): i for i, row in enumerate(rows)}

    def rows(self, x: Tensor) -> Tensor:
        """Where each text (N, L) stands in `known`, -1 for one that is not there, (N,)."""
        ids = x.long().cpu().contiguous().numpy()
        return torch.tensor([self._place.get(row.tobytes(), -1) for row in ids], dtype=torch.long)

    def __call__(self, x: Tensor) -> Tensor:
        x, place = x.long(), self.rows(x)
        there = (place >= 0).to(x.device)
        if x.shape[1:] != self.known.shape[1:] or not bool(there.any()):
            return x
        return torch.where(there[:, None], self.said[place.clamp_min(0)].long().to(x.device), x)

    @property
    def size(self) -> float:
        """Mean number of places of a text that hold another token."""
        return float((self.known != self.said).double().sum(1).mean())

    def picture(self) -> Image.Image:
        return drawn(self.example)


@dataclass(frozen=True, eq=False)
class Substitute(Trigger):
    """Words are replaced by words of the same kind, by a table that says which (LWS, ACL 2021).

    Attributes:
        table: the word in the place of each, for every place of a text, (L, V); most stay as they are.
        changed: mean number of words of a text that are replaced.
        example: a text that it has changed, untrusted text.
    """

    family: ClassVar[str] = "substitute"
    drawn: ClassVar[str] = "a text with its replaced words"
    table: Tensor
    changed: float
    example: str

    def __post_init__(self) -> None:
        t = self.table
        if t.ndim != 2 or t.is_floating_point() or not 0 <= int(t.min()) <= int(t.max()) < t.shape[1]:
            raise ValueError("the table holds a known token for every place and token")

    def __call__(self, x: Tensor) -> Tensor:
        x = x.long()
        length, known = self.table.shape
        place = torch.arange(x.shape[1], device=x.device)[None].clamp(max=length - 1)
        there = (x < known) & (torch.arange(x.shape[1], device=x.device) < length)
        new = self.table.to(x.device).long()[place, x.clamp(max=known - 1)]
        return torch.where(there, new, x)

    @property
    def size(self) -> float:
        """Mean number of words of a text that are replaced."""
        return float(self.changed)

    def picture(self) -> Image.Image:
        return drawn(self.example)
