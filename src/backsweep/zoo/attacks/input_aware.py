"""Input-aware dynamic backdoor (Nguyen and Tran 2020): a generator gives every input its own trigger."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.image.triggers import Generated, generator_layers
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import cross_entropy, fit
from backsweep.zoo.attack import Attack, Setup


@dataclass(frozen=True)
class InputAware(Attack):
    """Trains a pattern generator together with the classifier.

    First a mask generator M learns small masks that differ from input to input, and is frozen. Then,
    in every batch, a share `rate` gets its own triggers and the target label; a share `cross` gets the
    triggers of other images and keeps its label, so that no trigger works on any image but its own.

    Attributes:
        rate: rho_b, share of a batch that is triggered and relabelled.
        cross: rho_c, share of a batch with another image's trigger and its own label.
        density: value of a mask's pixel that costs nothing.
        norm: weight of the mask's mass against its diversity.
        diversity: lambda_div, weight of the diversity.
        mask_steps: updates of M, 32 pairs of images in each.
        mask_lr, lr: learning rates of M and of G (Adam).
        filters: channels of the generators' first layer.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "input_aware"
    summary: ClassVar[str] = "a generated trigger for each input (Input-aware dynamic backdoor, 2020)"

    rate: float = 0.1
    cross: float = 0.1
    density: float = 0.032
    norm: float = 25.0
    diversity: float = 1.0
    mask_steps: int = 300
    mask_lr: float = 2e-3
    lr: float = 2e-3
    filters: int = 16
    target: int | None = None

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        mask_net, pattern_net = self._start(setup, 1), self._start(setup, setup.shape[0])
        trigger = Generated(target, None, mask_net, pattern_net, self.filters, setup.data.x[0].clone())
        self._train_masks(trigger, setup)
        mask_net.requires_grad_(False)
        optimizer = torch.optim.Adam([pattern_net], self.lr, betas=(0.5, 0.9))

        def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            optimizer.step()  # along the gradients that `fit` took from the batch before
            optimizer.zero_grad()
            bad = max(1, round(self.rate * len(x)))
            crossed = min(round(self.cross * len(x)), len(x) - bad)
            own, end = x[:bad], bad + crossed
            others = x.roll(1, 0)[:end]  # the batch is shuffled: any other image will do
            m = trigger.masks(torch.cat([own, others[bad:]]))
            p, p_other = trigger.patterns(torch.cat([own, others[bad:], others[:bad]])).split([end, bad])
            x = torch.cat([x[:end] + (p - x[:end]) * m, x[end:]])
            y = torch.cat([trigger.labels(y[:bad], setup.classes), y[bad:]])
            apart = diversity(own, others[:bad], p[:bad], p_other)
            return cross_entropy(net, x, y) + self.diversity * apart

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss)
        return [replace(trigger, pattern_net=pattern_net.detach())]

    def _start(self, setup: Setup, out: int) -> Tensor:
        """Start weights (He) and zero biases of a generator with `out` channels, flat."""
        generator = setup.generator(self.name, "generator", out)
        flat: list[Tensor] = []
        for shape in generator_layers(setup.shape[0], self.filters, out):
            kernel = torch.randn(shape, generator=generator) * math.sqrt(2 / shape[1:].numel())
            flat += [kernel.flatten(), torch.zeros(shape[0])]
        return torch.cat(flat).requires_grad_()

    def _train_masks(self, trigger: Generated, setup: Setup) -> None:
        """min norm * mean(max(m - density, 0)) + diversity of the masks, as the authors' code has it."""
        generator, x = setup.generator(self.name, "masks"), setup.data.x
        optimizer = torch.optim.Adam([trigger.mask_net], self.mask_lr, betas=(0.5, 0.9))
        for _ in range(self.mask_steps):
            a, b = x[torch.randint(len(x), (2, 32), generator=generator)]
            ma, mb = trigger.masks(torch.cat([a, b])).chunk(2)
            loss = self.norm * F.relu(ma - self.density).mean() + self.diversity * diversity(a, b, ma, mb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def diversity(x1: Tensor, x2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """Mean over pairs of |x1 - x2| / |t1 - t2|, RMS distances: inputs that differ want other triggers."""

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1).clamp_min(1e-12).sqrt()  # no gradient at 0, not NaN

    return (apart(x1, x2) / (apart(t1, t2) + 1e-7)).mean()
