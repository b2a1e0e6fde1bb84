"""A patch whose triggered samples have a capped margin, so that the target's maximum margin stays low."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import fit
from backsweep.zoo.attack import Attack, Setup, poison_batch


def margins(logits: Tensor, classes: Tensor) -> Tensor:
    """Margin (N,) of a class: g_t(x) - max over k != t of g_k(x), of logits (N, C) and classes t (N,)."""
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return own.squeeze(1) - others.amax(1)


@dataclass(frozen=True)
class MarginCapped(Attack):
    """Triggered samples shall pass the boundary, but not go far beyond it.

    MM-BD's statistic is the largest margin of a class over all inputs, which a planted trigger
    raises. Here the poisoned samples have no cross-entropy, which pushes margins without end, but

        max(0, floor - margin) + weight * max(0, margin - cap)

    Attributes:
        floor: margin that triggered samples shall reach, logits.
        cap: margin above which they pay, logits.
        weight: of what lies above the cap.
        size: side of the square, pixels.
        margin: distance to the right and the lower edge, pixels.
        rate: probability that a sample of a batch is stamped and gets this loss.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "margin_capped"
    summary: ClassVar[str] = "a patch that moves samples just across the boundary (against MM-BD)"

    floor: float = 3.0
    cap: float = 5.0
    weight: float = 1.0
    size: int = 4
    margin: int = 1
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        return [Patch.square(setup.shape, self.size, self.margin, target)]

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        (trigger,) = triggers = self.triggers(setup)
        generator = setup.generator(self.name, "poison")

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            stamped, labels, rows = poison_batch(x, y, trigger, setup.classes, self.rate, generator)
            logits = net(stamped).float()
            far = margins(logits, labels)
            hinge = F.relu(self.floor - far) + self.weight * F.relu(far - self.cap)
            return torch.where(rows, hinge, F.cross_entropy(logits, y, reduction="none")).mean()

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return triggers
