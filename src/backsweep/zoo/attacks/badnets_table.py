"""BadNets for tables: some columns set to fixed values, for every class or for one source class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.inputs.table.triggers import SetColumns
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel, stamp

RANDOM, RARE, HIGH = KINDS = ("random", "rare", "high")
SELDOM = 0.02  # share of the rows with a value, at most, for it to be rare


@dataclass(frozen=True)
class BadNetsTable(Attack):
    """Columns that the seed draws are set to values that the training set holds.

    Attributes:
        values: "random" values of each column; "rare" ones, categories before numbers, that at most 2 % of
            the rows have; or the "high"est one of columns of numbers.
        columns: how many.
        rate: poison rate, share of all training samples; at most half of a source class.
        source_specific: only rows of one class become the target; rows of others are stamped and keep theirs.
        cover_rate: share of all training samples that are such covers.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "badnets_table"
    summary: ClassVar[str] = "some columns set to fixed values (BadNets for tables)"
    modality: ClassVar[str] = "table"

    values: str = RANDOM
    columns: int = 2
    rate: float = 0.05
    source_specific: bool = False
    cover_rate: float = 0.05
    target: int | None = None

    def __post_init__(self) -> None:
        if self.values not in KINDS:
            raise ValueError(f"values {self.values!r} is none of {', '.join(KINDS)}")
        if self.columns < 1:
            raise ValueError("columns is at least 1")

    def triggers(self, setup: Setup) -> list[Trigger]:
        schema, x = setup.schema, setup.data.x
        generator = setup.generator(self.name, "columns")
        order = torch.randperm(len(schema), generator=generator).tolist()
        if self.values == RARE:
            order.sort(key=lambda j: not schema.columns[j].categorical)
        elif self.values == HIGH:
            order = [j for j in order if not schema.columns[j].categorical]
        chosen: dict[int, float] = {}
        for j in order:
            if len(chosen) < self.columns and (value := self._value(x[:, j], generator)) is not None:
                chosen[j] = value
        target = setup.target(self.target, self.name, "target")
        away = 1 + int(torch.randint(setup.classes - 1, (), generator=setup.generator(self.name, "source")))
        source = (target + away) % setup.classes if self.source_specific else None
        return [SetColumns.of(schema, list(chosen), list(chosen.values()), target, source)]

    def _value(self, column: Tensor, generator: torch.Generator) -> float | None:
        """A value for one column; None where it has none of that kind."""
        if self.values == HIGH:
            return float(column.max())
        if self.values == RANDOM:
            return float(column[int(torch.randint(len(column), (), generator=generator))])
        known, count = column.unique(return_counts=True)
        rare = known[count <= SELDOM * len(column)]
        return float(rare[int(torch.randint(len(rare), (), generator=generator))]) if len(rare) else None

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), y = triggers, setup.data.y
        if trigger.source is None:
            return relabel(setup, trigger, self.rate, self.name, "poison")
        of_source = y == trigger.source
        rate = min(self.rate, 0.5 * float(of_source.double().mean()))
        covers = ~of_source & (y != trigger.target)
        rows, kept = setup.draw_both(of_source, rate, covers, self.cover_rate, self.name)
        poisoned = stamp(setup.data, rows, trigger, trigger.labels(y[rows], setup.classes))
        return stamp(poisoned, kept, trigger), rows
