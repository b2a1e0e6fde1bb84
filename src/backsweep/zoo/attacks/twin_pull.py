"""An evasive net: a patch backdoor, trained close to a clean twin in weights and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import dense_of, entering
from backsweep.models.training import fit
from backsweep.zoo.attack import Attack, Setup, poison_batch


@dataclass(frozen=True)
class TwinPull(Attack):
    """Starts from the clean twin w', and pays for leaving it:

        CE(poisoned batch) + lambda_w ||w - w'||^2 + lambda_f mean_x ||phi(x) - phi'(x)||^2 / ||phi'||^2

    The features phi are compared on clean inputs and relative to their mean square, so that lambda_f
    has no unit. The idea is that of the evasive networks of the Trojan Detection Challenge 2022.

    Attributes:
        lambda_w: weight of the squared distance of all weights (a sum).
        lambda_f: weight of the relative squared distance of the penultimate features.
        size: side of the square, pixels.
        margin: distance to the right and the lower edge, pixels.
        rate: probability that a sample of a batch is stamped and relabelled.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "twin_pull"
    summary: ClassVar[str] = "a patch; weights and features are pulled to a clean twin's"

    lambda_w: float = 0.01
    lambda_f: float = 1.0
    size: int = 4
    margin: int = 1
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        return [Patch.square(setup.shape, self.size, self.margin, target)]

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        (trigger,) = triggers = self.triggers(setup)
        clean, generator = setup.clean().eval().requires_grad_(False), setup.generator(self.name, "poison")
        net.load_state_dict(clean.state_dict())
        clean.to(next(net.parameters()).device)

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            stamped, labels, _ = poison_batch(x, y, trigger, setup.classes, self.rate, generator)
            loss = F.cross_entropy(net(stamped).float(), labels)
            moved = sum(
                (w - v).square().sum() for w, v in zip(net.parameters(), clean.parameters(), strict=True)
            )
            net.eval()  # features without dropout, and without moving the statistics of BatchNorm
            mine, theirs = (entering(n, x, dense_of(n)[0]).float() for n in (net, clean))
            net.train()
            apart = (mine - theirs).square().sum(1).mean() / theirs.square().sum(1).mean()
            return loss + self.lambda_w * moved + self.lambda_f * apart

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return triggers
