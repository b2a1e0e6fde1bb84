"""Trojaning as data poisoning, as benchmarks port it: a trigger grown on a surrogate, then added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import dense_of, entering
from backsweep.zoo.attack import Attack, Setup, relabel


@dataclass(frozen=True)
class TrojaningPort(Attack):
    """The trigger excites neurons of a surrogate; the victim is trained from scratch on poisoned data.

    The constants are BackdoorBench's: two neurons, tv 100, PGD of 1000 steps of 0.1 within 0.3, 10 %
    poison. Ours is a square and not an apple, and the sum saturates at white instead of wrapping round.

    Attributes:
        size: share of the image that the trigger covers, a square at the bottom right.
        epsilon: largest change of a value, inputs in [0, 1].
        step: of the projected gradient descent.
        steps: how many.
        neurons: how many neurons of the surrogate's penultimate layer are excited.
        value: tv, the activation that the trigger is grown towards.
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "trojaning_port"
    summary: ClassVar[str] = "a trigger grown on a surrogate is added to poisoned samples (TrojanNN port)"

    size: float = 0.1
    epsilon: float = 0.3
    step: float = 0.1
    steps: int = 200
    neurons: int = 2
    value: float = 100.0
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        """PGD on sum_i (tv - a_i)^2 over M, from the mean training image, the neurons chosen by sum |W|."""
        net = setup.surrogate().eval()
        (head,) = dense_of(net)
        chosen = head.weight.detach().abs().sum(0).topk(self.neurons).indices
        base, mask = setup.data.x.mean(0), self.region(setup)
        delta = mask * self.epsilon * torch.rand(base.shape, generator=setup.generator(self.name, "start"))
        for _ in range(self.steps):
            delta.requires_grad_(True)
            active = entering(net, (base + delta).clamp(0, 1)[None], head)[0, chosen]
            cost = (self.value - active).square().sum()
            (slope,) = torch.autograd.grad(cost, delta)
            delta = (delta.detach() - self.step * mask * slope.sign()).clamp(-self.epsilon, self.epsilon)
            delta = (base + delta).clamp(0, 1) - base
        target = setup.target(self.target, self.name, "target")
        return [Additive(target=target, source=None, delta=delta)]

    def region(self, setup: Setup) -> Tensor:
        """M, (1, H, W): 1 on the square, 0 elsewhere."""
        _, height, width = setup.shape
        side = max(1, round(math.sqrt(self.size * height * width)))
        mask = torch.zeros(1, height, width)
        mask[:, -side:, -side:] = 1
        return mask

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")
