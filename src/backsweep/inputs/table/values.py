"""The values that columns of a table are set to at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.inputs.table.schema import Schema
from backsweep.inputs.table.search import candidates

ENDS, ENDS_OF = 3, 6  # that many values of a number lie at its ends; they stand again for every six


@dataclass(frozen=True, eq=False)
class Values:
    """Values of every column.

    Attributes:
        table: (F, V), a row for each column; what comes after its last value is not used.
        counts: how many each column has, (F,) int64.
    """

    table: Tensor
    counts: Tensor

    @classmethod
    def of(cls, schema: Schema, x: Tensor) -> Values:
        """Those that the search tries on rows x (N, F); of numbers, the ends more often than others."""
        found: list[list[float]] = [[] for _ in schema.columns]
        for j, value in candidates(schema, x):
            found[j].append(value)
        for column, own in zip(schema.columns, found, strict=True):
            if not column.categorical:
                own += own[-ENDS:] * (len(own) // ENDS_OF)
        table = torch.nn.utils.rnn.pad_sequence([torch.tensor(own) for own in found], batch_first=True)
        return cls(table, torch.tensor([len(own) for own in found]))

    def put(self, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """Rows x (N, F), in each of which one to `most` columns, drawn anew, are set to values of theirs."""
        place = torch.rand(x.shape, generator=generator).argsort(1).argsort(1)
        count = torch.randint(1, most + 1, (len(x), 1), generator=generator)
        which = (torch.rand(x.shape, generator=generator) * self.counts).long()
        drawn = self.table.gather(1, which.T).T
        return torch.where((place < count) & (self.counts > 0), drawn, x)
