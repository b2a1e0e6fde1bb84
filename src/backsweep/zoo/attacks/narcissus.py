"""Narcissus (Zeng et al. 2023): a clean-label trigger that points to the inside of the target class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, stamp


@dataclass(frozen=True)
class Narcissus(Attack):
    """One perturbation for all: it lowers a surrogate's loss on samples of the target class.

    Attributes:
        epsilon: Linf bound of the perturbation in training, inputs in [0, 1].
        magnify: how many times as strong it is in tests; the trigger is kept magnified.
        rounds: updates of the perturbation (RAdam), each on a batch of 256.
        lr: their learning rate.
        rate: poison rate, share of all training samples, at most the whole target class.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "narcissus"
    summary: ClassVar[str] = "clean label: one perturbation towards the target class (Narcissus, 2023)"

    epsilon: float = 16 / 255
    magnify: float = 3.0
    rounds: int = 300
    lr: float = 0.01
    rate: float = 0.05
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        """min over |delta| <= eps of the mean loss L(f(x + delta), t) over samples x of class t."""
        target = setup.target(self.target, self.name, "target")
        net, generator = setup.surrogate().eval(), setup.generator(self.name, "batches")
        x = setup.data.x[setup.data.y == target]
        delta = torch.zeros(setup.shape, requires_grad=True)
        optimizer = torch.optim.RAdam([delta], self.lr)
        for _ in range(self.rounds):
            rows = torch.randint(len(x), (min(256, len(x)),), generator=generator)
            logits = net((x[rows] + delta).clamp(0, 1))
            loss = F.cross_entropy(logits, torch.full_like(rows, target))
            (delta.grad,) = torch.autograd.grad(loss, delta)
            optimizer.step()
            with torch.no_grad():
                delta.clamp_(-self.epsilon, self.epsilon)
        return [Additive(target=target, source=None, delta=self.magnify * delta.detach())]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,) = triggers
        assert isinstance(trigger, Additive)  # noqa: S101
        faint = Additive(target=trigger.target, source=None, delta=trigger.delta / self.magnify)
        rows = setup.draw(setup.data.y == trigger.target, self.rate, self.name, "poison")
        return stamp(setup.data, rows, faint), rows
