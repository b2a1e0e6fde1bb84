"""What an inversion can look for: a family of triggers with parameters that a gradient moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from backsweep.inputs.trigger import Trigger

EPS = 1e-7  # Keras' epsilon, part of the original parameterisation


class Family(Protocol):
    """A space of triggers. Parameters carry the units in their first dimension."""

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        """Parameters of one unit for inputs of `shape`."""

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        """Stamp x (units, batch, *shape)."""

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        """What is minimised beside the misclassification, (units,)."""

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        """The trigger of one unit, whose parameters come without the first dimension."""


def unit_box(theta: Tensor) -> Tensor:
    """A parameter through tanh into (0, 1): m = tanh(theta) / (2 - eps) + 1/2."""
    return torch.tanh(theta) / (2 - EPS) + 0.5


def from_unit_box(v: Tensor) -> Tensor:
    """The inverse of `unit_box`."""
    return torch.atanh((v - 0.5) * (2 - EPS))
