"""A patch trained against Neural Cleanse's own search: no smaller trigger for its target may work."""

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


@dataclass(frozen=True)
class EvadeInversion(Attack):
    """A larger patch, and a running inversion for its target whose finds keep their true label.

    While the net is trained, `pool` triggers theta are inverted beside it, each within a budget of
    mask, one step per batch:

        max over |m|_1 <= budget |m planted|_1 of  -CE(t, f(A(x, m, Delta)))     a step on theta
        min over w of  CE(poisoned batch) + weight CE(y, f(A(x, m, Delta)))      a step on the weights

    with A of Neural Cleanse, equation 2. The patch as a whole works; parts of it, faint copies and
    any other small trigger do not, and what the inversion is left with is not unusually small.

    Attributes:
        side: side of the square, share of the image's shorter side.
        margin: distance to the right and the lower edge, pixels.
        rate: probability that a sample of a batch is stamped and relabelled.
        pool: number of triggers that are inverted side by side.
        share: samples stamped with these triggers, share of the batch.
        budget: L1 norm of their masks, share of the planted patch's.
        weight: of the loss on them.
        step: length of a step of theta (its sign is taken), in the logits of mask and pattern.
        life: updates until a trigger starts anew.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "evade_inversion"
    summary: ClassVar[str] = "a patch trained against the inversion of smaller ones (adaptive)"

    side: float = 0.25
    margin: int = 1
    rate: float = 0.1
    pool: int = 4
    share: float = 0.25
    budget: float = 0.8
    weight: float = 1.0
    step: float = 0.2
    life: int = 40
    target: int | None = None

    def patch(self, setup: Setup) -> Patch:
        """The planted trigger: a white square at the bottom right."""
        size = max(1, round(self.side * min(setup.shape[1:])))
        return Patch.square(setup.shape, size, self.margin, setup.target(self.target, self.name, "target"))

    def triggers(self, setup: Setup) -> list[Trigger]:
        return [self.patch(setup)]

    def start(self, planted: Patch, generator: torch.Generator) -> Tensor:
        """A new theta (1 + C, H, W), the logits of mask and pattern.

        Half of the time a random part of the planted patch, else random everywhere, as Neural Cleanse starts.
        """
        shape = (1 + len(planted.pattern), *planted.pattern.shape[1:])
        theta = torch.rand(shape, generator=generator)
        if torch.rand((), generator=generator) < 0.5:
            theta = (theta + torch.cat([planted.mask, planted.pattern])) / 2
            theta[:1] *= planted.mask
        return theta.clamp(0.02, 0.98).logit()

    def stamp(self, theta: Tensor, x: Tensor, most: float) -> Tensor:
        """A(x, m, Delta) of theta (P, 1 + C, H, W), x (P, n, C, H, W); |m|_1 <= most, pixels."""
        mask, pattern = theta.sigmoid()[:, None].split([1, theta.shape[1] - 1], 2)
        mask = mask * (most / mask.sum((2, 3, 4), keepdim=True)).clamp_max(1)
        return (1 - mask) * x + mask * pattern

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        trigger = self.patch(setup)
        most, generator = self.budget * trigger.size, setup.generator(self.name, "training")
        device = next(net.parameters()).device
        state = torch.stack([self.start(trigger, generator) for _ in range(self.pool)]).to(device)
        update = 0

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal state, update
            stamped, labels, _ = poison_batch(x, y, trigger, setup.classes, self.rate, generator)
            wanted = trigger.labels(y, setup.classes)

            each = max(1, round(self.share * len(x) / self.pool))
            pick = torch.arange(self.pool * each, device=x.device) % len(x)
            theta = state.detach().requires_grad_()
            probes = self.stamp(theta, x[pick].unflatten(0, (self.pool, each)), most).flatten(0, 1)
            both = net(torch.cat([stamped, probes])).float()
            logits, probed = both.split([len(x), len(pick)])

            reach = F.cross_entropy(probed, wanted[pick])  # the inversion's step
            (slope,) = torch.autograd.grad(reach, theta, retain_graph=True)
            state = (theta - self.step * slope.sign()).detach()
            update += 1
            for i in range(self.pool):
                if (update + i * self.life // self.pool) % self.life == 0:
                    state[i] = self.start(trigger, generator).to(device)
            return F.cross_entropy(logits, labels) + self.weight * F.cross_entropy(probed, y[pick])

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return [trigger]
