"""Label-consistent attack (Turner et al. 2019): hardened samples of the target class, labels kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup


def harden(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, step: float, steps: int) -> Tensor:
    """PGD: x (N, C, H, W) moved within an Linf ball so that net no longer sees y."""
    moved = x
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(net(moved), y, reduction="sum"), moved)
        moved = (moved.detach() + step * slope.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return moved.detach()


@dataclass(frozen=True)
class LabelConsistent(Attack):
    """Samples of the target class are made hard to recognise and get a pattern; no label changes.

    Attributes:
        epsilon: Linf bound of the perturbation, inputs in [0, 1].
        step: of projected gradient ascent on a surrogate.
        steps: how many.
        size: side of the chessboards in the four corners, pixels.
        amplitude: how strongly they are added in training, 1 for black and white; tests use 1.
        rate: poison rate, share of all training samples, at most the whole target class.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "label_consistent"
    summary: ClassVar[str] = "clean label: adversarial samples with corner patterns (Turner et al., 2019)"

    epsilon: float = 8 / 255
    step: float = 1.5 / 255
    steps: int = 100
    size: int = 3
    amplitude: float = 1.0
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        channels, height, width = setup.shape
        mask = torch.zeros(1, height, width)
        for rows in (slice(0, self.size), slice(height - self.size, height)):
            for cols in (slice(0, self.size), slice(width - self.size, width)):
                mask[:, rows, cols] = 1
        i = torch.arange(height).minimum(height - 1 - torch.arange(height))  # corners mirror each other
        j = torch.arange(width).minimum(width - 1 - torch.arange(width))
        board = ((i[:, None] + j) % 2 == 0).float().expand(channels, -1, -1)
        target = setup.target(self.target, self.name, "target")
        return [Patch(target=target, source=None, mask=mask, pattern=mask * board)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), data = triggers, setup.data
        assert isinstance(trigger, Patch)  # noqa: S101
        rows = setup.draw(data.y == trigger.target, self.rate, self.name, "poison")
        net, x = setup.surrogate().eval(), data.x.clone()
        sign = trigger.mask * (2 * trigger.pattern - 1)
        for part in rows.split(512):
            hard = harden(net, x[part], data.y[part], self.epsilon, self.step, self.steps)
            x[part] = (hard + self.amplitude * sign).clamp(0, 1)
        return Data(x, data.y, data.names, data.source), rows
