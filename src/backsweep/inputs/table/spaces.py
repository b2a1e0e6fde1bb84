"""Perturbation spaces of tables: a faint shift of every column, and a change of few columns.

Both count a column in units of its standard deviation. A code has none in between, but a network that makes a
soft one-hot of it can be asked; what is found is only a shift, and never a trigger for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.space import Ball
from backsweep.inputs.table.schema import Schema
from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True)
class Drift(Ball):
    """x + s delta, s the standard deviations of the columns; ||delta||_2."""

    title: ClassVar[str] = "faint change of every column"
    brief: ClassVar[str] = "every column"

    schema: Schema | None = None

    def _scales(self, x: Tensor) -> Tensor:
        return torch.ones(x.shape[1]).to(x) if self.schema is None else self.schema.scales().to(x)

    def range(self, x: Tensor) -> tuple[float, float]:
        return 0.03 * x.shape[1] ** 0.5, 3.0 * x.shape[1] ** 0.5

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, x.shape[1]), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        moved = x + delta * self._scales(x)
        if self.schema is None:
            return moved
        low, high = (b.to(x) for b in self.schema.limits())
        return torch.minimum(torch.maximum(moved, low), high)

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return None


@dataclass(frozen=True)
class Few(Drift):
    """The same with the L1 norm: few columns."""

    title: ClassVar[str] = "few columns"
    brief: ClassVar[str] = "few columns"

    def range(self, x: Tensor) -> tuple[float, float]:
        return 0.1, 4.0 * x.shape[1]

    def steepen(self, grad: Tensor) -> Tensor:
        return grad * grad.abs()

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        return delta * (budget / self.norm(delta).clamp_min(1e-20)).clamp(max=1)[:, None]
