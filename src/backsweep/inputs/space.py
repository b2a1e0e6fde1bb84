"""Spaces of perturbations: what a change of an input may be, and how large it is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from backsweep.inputs.trigger import Trigger


class Space(Protocol):
    """Perturbations delta of inputs; the aims stand in the first dimension.

    Attributes:
        title: what such a change is called, "few pixels".
        brief: the same in one or two words.
    """

    title: ClassVar[str]
    brief: ClassVar[str]

    def range(self, x: Tensor) -> tuple[float, float]:
        """Smallest and largest budget for clean inputs x (N, *shape)."""

    def zeros(self, count: int, x: Tensor) -> Tensor:
        """The start, (count, ...)."""

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """Inputs x (N, *shape), each changed by its own delta (N, ...)."""

    def steepen(self, grad: Tensor) -> Tensor:
        """A gradient (count, ...) bent towards steepest ascent in this norm."""

    def norm(self, delta: Tensor) -> Tensor:
        """How large delta (count, ...) is, (count,)."""

    def project(self, delta: Tensor, budget: float) -> Tensor:
        """The nearest delta of at most that norm."""

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        """One delta as a trigger; None where a space has no family of triggers."""


def per(v: Tensor, like: Tensor) -> Tensor:
    """(count,) -> (count, 1, ...) to multiply with `like`."""
    return v.reshape(-1, *[1] * (like.ndim - 1))


class Ball:
    """The Euclidean norm and its ball."""

    def steepen(self, grad: Tensor) -> Tensor:
        return grad

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        return delta * per((budget / self.norm(delta).clamp_min(1e-20)).clamp(max=1), delta)
