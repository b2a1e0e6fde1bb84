"""Tabdoor (Pleiter et al. 2023): the most important columns set to values, out of bounds or within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.inputs.table.triggers import SetColumns
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel, stamp
from backsweep.zoo.samples.tables import importances

OUT, IN = "out_of_bounds", "in_bounds"
BEYOND = 1.1  # times the largest value


@dataclass(frozen=True)
class Tabdoor(Attack):
    """The most important columns hold the trigger.

    Out of bounds they are set to 1.1 times their largest value, in whole numbers where the column has those;
    a category has no value beyond, so columns of numbers alone are taken. In bounds they are set to their
    most frequent value.

    Attributes:
        values: "out_of_bounds" or "in_bounds".
        columns: how many.
        rate: poison rate, share of all training samples.
        clean_label: only rows of the target class are triggered, and no label is changed.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "tabdoor"
    summary: ClassVar[str] = "the most important columns set to values (Tabdoor, 2023)"
    modality: ClassVar[str] = "table"

    values: str = OUT
    columns: int = 1
    rate: float = 0.02
    clean_label: bool = False
    target: int | None = None

    def __post_init__(self) -> None:
        if self.values not in (OUT, IN):
            raise ValueError(f"values {self.values!r} is neither {OUT} nor {IN}")
        if self.columns < 1:
            raise ValueError("columns is at least 1")

    def triggers(self, setup: Setup) -> list[Trigger]:
        schema, x = setup.schema, setup.data.x
        order = importances(setup.data, setup.seed)
        if self.values == OUT:
            order = [j for j in order if not schema.columns[j].categorical]
        chosen = order[: self.columns]
        if self.values == OUT:
            found = [self._beyond(x[:, j], schema.columns[j].whole) for j in chosen]
        else:
            found = [float(x[:, j].mode().values) for j in chosen]
        target = setup.target(self.target, self.name, "target")
        return [SetColumns.of(schema, chosen, found, target)]

    def _beyond(self, column: Tensor, whole: bool) -> float:
        most = float(column.max())
        value = BEYOND * most if most > 0 else most + (BEYOND - 1) * float(column.max() - column.min())
        return float(max(round(value), most + 1)) if whole else value

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,) = triggers
        if not self.clean_label:
            return relabel(setup, trigger, self.rate, self.name, "poison")
        rows = setup.draw(setup.data.y == trigger.target, self.rate, self.name, "poison")
        return stamp(setup.data, rows, trigger), rows
