"""Triggers of tables that can be inverted: some columns set to values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.inputs.family import from_unit_box, unit_box
from backsweep.inputs.table.schema import Schema
from backsweep.inputs.table.triggers import SetColumns
from backsweep.inputs.trigger import Trigger

OPEN = 0.5  # of a mask, from which on a column counts


@dataclass(frozen=True)
class SetFamily:
    """(1 - m) x + m v with a mask and values within the limits of the columns.

    The trigger sets the columns whose mask is open (at least the most open one), to whole numbers and
    categories where the column has those.

    Attributes:
        schema: of the table.
    """

    schema: Schema | None

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        return [from_unit_box(0.02 + 0.96 * torch.rand(tuple(shape), generator=generator)) for _ in range(2)]

    def _parts(self, theta: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        mask, share = unit_box(theta[0]), unit_box(theta[1])
        if self.schema is None:
            return mask, share
        low, high = (b.to(share) for b in self.schema.limits())
        return mask, low + share * (high - low)

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        mask, value = (t[:, None] for t in self._parts(theta))
        return (1 - mask) * x + mask * value

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return unit_box(theta[0]).sum(1)

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        mask, value = (t.detach().cpu() for t in self._parts(theta))
        if self.schema is not None:
            value = torch.where(self.schema.whole(), value.round(), value)
        columns = torch.nonzero(mask >= min(OPEN, float(mask.max()))).flatten().tolist()
        values = value[columns].tolist()
        return SetColumns.of(self.schema, columns, values, target, source, len(mask))
