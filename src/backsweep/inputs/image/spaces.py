"""Perturbation spaces of images: faint pixels, few pixels, tone curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.held import part_of
from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.space import Ball
from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True)
class Dense(Ball):
    """Faint changes of every pixel: x + delta, clipped to [0, 1], measured by ||delta||_2.

    Budgets are shares of the mean distance of an input from the mean input.
    """

    title: ClassVar[str] = "faint change of every pixel"
    brief: ClassVar[str] = "every pixel"

    low: float = 0.03
    high: float = 1.5

    def range(self, x: Tensor) -> tuple[float, float]:
        center = x.mean(0)
        far = [(part - center).flatten(1).norm(dim=1) for part in x.split(part_of(x.shape))]
        scale = float(torch.cat(far).mean())
        return self.low * scale, self.high * scale

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, *x.shape[1:]), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return (x + delta).clamp(0, 1)

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return Additive(target, source, delta)


@dataclass(frozen=True)
class Sparse(Dense):
    """Few pixels, changed as one likes: the sum over pixels of max_c |delta|, each at most 1.

    Budgets are pixels: from `low` of them to a share `high` of the image.
    """

    title: ClassVar[str] = "few pixels"
    brief: ClassVar[str] = "few pixels"

    low: float = 1.0
    high: float = 0.1

    def range(self, x: Tensor) -> tuple[float, float]:
        return self.low, self.high * math.prod(x.shape[2:])

    def steepen(self, grad: Tensor) -> Tensor:
        return grad * grad.abs()  # between the single pixel of L1 and the gradient of L2

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(1).flatten(1).sum(1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        delta = delta.clamp(-1, 1)
        weight = delta.abs().amax(1).flatten(1)
        kept = (weight - _shrinkage(weight, budget)[:, None]).clamp_min(0)
        return delta * (kept / weight.clamp_min(1e-9)).unflatten(1, delta.shape[2:])[:, None]


def _shrinkage(weight: Tensor, budget: float) -> Tensor:
    """tau with sum_i max(weight_i - tau, 0) = budget, 0 where the sum is within it already."""
    ordered = weight.sort(dim=1, descending=True).values
    count = torch.arange(1, weight.shape[1] + 1, device=weight.device)
    tau = (ordered.cumsum(1) - budget) / count
    last = (ordered > tau).sum(1, keepdim=True).clamp_min(1) - 1
    return tau.gather(1, last)[:, 0].clamp_min(0)


@dataclass(frozen=True)
class Tone(Dense):
    """A tone curve for every channel, piecewise linear in the value; the root mean square of its knots.

    What a photo filter or a change of contrast does to an image. Budgets are shares of the range [0, 1].
    """

    title: ClassVar[str] = "tone curve"
    brief: ClassVar[str] = "tone curve"

    low: float = 0.01
    high: float = 1.0
    knots: int = 9

    def range(self, x: Tensor) -> tuple[float, float]:
        return self.low, self.high

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, x.shape[1], self.knots), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        place = x.clamp(0, 1).flatten(2) * (self.knots - 1)
        left = place.floor().clamp(max=self.knots - 2)
        index = left.long()
        curve = delta.gather(2, index) * (1 - place + left) + delta.gather(2, index + 1) * (place - left)
        return (x + curve.reshape(x.shape)).clamp(0, 1)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).square().mean(1).sqrt()

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return None
