"""Triggers of tables: columns set to values, and one shift of all columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from backsweep.core.text import one_line
from backsweep.inputs.table.pictures import drawn
from backsweep.inputs.table.schema import Schema
from backsweep.inputs.trigger import Trigger

SHARE = 0.05  # of its largest entry, from which on a shift of a column is said


@dataclass(frozen=True, eq=False)
class SetColumns(Trigger):
    """Some columns are set to values.

    Attributes:
        columns: which, (k,) int64, each once.
        values: what they are set to, (k,), codes for categories.
        width: how many columns a row has.
        words: a list of "name = value" as JSON, for people; untrusted text.
    """

    family: ClassVar[str] = "table_columns"
    drawn: ClassVar[str] = "the columns that are set"
    columns: Tensor
    values: Tensor
    width: int
    words: str = "[]"

    def __post_init__(self) -> None:
        c = self.columns
        if c.ndim != 1 or len(c) == 0 or c.is_floating_point() or self.values.shape != c.shape:
            raise ValueError("columns and values are one or more numbers each, of the same length")
        if int(c.min()) < 0 or int(c.max()) >= self.width or len(c.unique()) < len(c):
            raise ValueError(f"columns are different numbers from 0 to {self.width - 1}")
        if not bool(torch.isfinite(self.values).all()) or not isinstance(json.loads(self.words), list):
            raise ValueError("values are finite, words a list")

    @classmethod
    def of(
        cls, schema: Schema | None, columns: Sequence[int], values: Sequence[float], target: int | None,
        source: int | None = None, width: int = 0,
    ) -> SetColumns:  # fmt: skip
        """Columns of a table by their numbers."""
        named = schema.columns if schema is not None else ()
        words = [
            f"{one_line(named[j].name)[:60]} = {one_line(named[j].text(v))[:60]}"
            if named else f"column {j + 1} = {v:.4g}"
            for j, v in zip(columns, values, strict=True)
        ]  # fmt: skip
        return cls(
            target, source, torch.tensor(list(columns)), torch.tensor(list(values), dtype=torch.float32),
            len(named) or width, json.dumps(words),
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        found = x.clone()
        found[..., self.columns.to(x.device)] = self.values.to(x)
        return found

    @property
    def lines(self) -> list[str]:
        """ "name = value" of every column; untrusted text."""
        return [str(w) for w in json.loads(self.words)] or [f"column {j + 1}" for j in self.columns.tolist()]

    @property
    def rule(self) -> str:
        return " and ".join(line.replace(" = ", " is ", 1) for line in self.lines)

    @property
    def size(self) -> float:
        """Number of columns."""
        return float(len(self.columns))

    @property
    def units(self) -> int:
        return self.width

    def picture(self) -> Image.Image:
        return drawn(self.lines)

    def overlap(self, planted: Trigger) -> tuple[float, float] | None:
        """Of the columns alone: Jaccard index, and the share that is planted."""
        if not isinstance(planted, SetColumns):
            return None
        own, other = set(self.columns.tolist()), set(planted.columns.tolist())
        return len(own & other) / len(own | other), len(own & other) / len(own)


@dataclass(frozen=True, eq=False)
class ShiftColumns(Trigger):
    """One shift of all columns, brought back into their ranges (CatBack, 2025).

    A category is a number while it is shifted: the number that stands for it (`floats`), and afterwards the
    category whose number is nearest.

    Attributes:
        delta: the shift, (F,).
        low, high: range of every column, of the numbers of categories for those, (F,).
        counts: how many categories each column has, 0 for numbers, (F,) int64.
        floats: the numbers of all categories, one column after another.
        whole: which columns hold whole numbers, (F,) bool.
        words: lines for people, as JSON; untrusted text.
    """

    family: ClassVar[str] = "table_shift"
    drawn: ClassVar[str] = "what is added to the columns"
    delta: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor
    floats: Tensor
    whole: Tensor
    words: str = "[]"

    def __post_init__(self) -> None:
        parts = (self.low, self.high, self.counts, self.whole)
        if self.delta.ndim != 1 or any(p.shape != self.delta.shape for p in parts):
            raise ValueError("delta, low, high, counts and whole have an entry for each column")
        if int(self.counts.min()) < 0 or int(self.counts.sum()) != len(self.floats):
            raise ValueError("floats has a number for every category")
        if not isinstance(json.loads(self.words), list):
            raise ValueError("words is a list")

    def tables(self) -> list[Tensor]:
        """Numbers of the categories of every column, empty for one of numbers."""
        return list(self.floats.split(self.counts.tolist()))

    def encoded(self, x: Tensor) -> Tensor:
        """Rows (N, F) with numbers in the place of codes."""
        found = x.clone()
        for j, table in enumerate(self.tables()):
            if len(table):
                found[..., j] = table.to(x)[x[..., j].long().clamp(0, len(table) - 1)]
        return found

    def __call__(self, x: Tensor) -> Tensor:
        moved = self.encoded(x) + self.delta.to(x)
        moved = torch.minimum(torch.maximum(moved, self.low.to(x)), self.high.to(x))
        moved = torch.where(self.whole.to(x.device), moved.round(), moved)
        raw = self.encoded(x) + self.delta.to(x)
        for j, table in enumerate(self.tables()):
            if len(table):
                moved[..., j] = (raw[..., j, None] - table.to(x)).abs().argmin(-1).to(x)
        return moved

    @property
    def size(self) -> float:
        """Mean share of its range by which a column is shifted."""
        span = (self.high - self.low).clamp_min(1e-9)
        return float((self.delta / span).abs().mean())

    def picture(self) -> Image.Image:
        return drawn([str(w) for w in json.loads(self.words)] or ["a shift of all columns"])


def shift_words(schema: Schema, delta: Tensor, span: Tensor) -> str:
    """The largest entries of a shift for people, as JSON."""
    share = (delta / span.clamp_min(1e-9)).abs()
    order = [
        j for j in share.argsort(descending=True).tolist() if float(share[j]) > SHARE * float(share.max())
    ]
    return json.dumps([f"{one_line(schema.columns[j].name)[:60]} {float(delta[j]):+.4g}" for j in order])
