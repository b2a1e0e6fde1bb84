"""A backdoor trained against the default scan: no change in its spaces is smaller than in a clean twin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.budget import STRIDE, Aim, Embedded, Space, follow, margin, spaces_of, unit
from backsweep.models.layers import Kept
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.zoo.attack import Attack, Setup, poison_batch

STEPS, BATCH = 20, 32  # of the paths in the clean twin
SAMPLES = 512  # of the training set that they are followed on


@dataclass(frozen=True)
class EvadeCascade(Attack):
    """A blended pattern, and a running ascent in the spaces of the cascade whose finds keep their true label.

    The cascade asks how large a universal change delta must be that sends inputs to class t, in several
    spaces s (of inputs and of embeddings), and whether that is smaller in the suspect than in references that
    never saw a trigger. The attacker has such a reference, the clean twin. With e_s the smaller one of the
    size that t has there and of the size of what the planted trigger does in that space,

        max over |delta|_s <= budget e_s of  mean_x -softplus(-margin_t(f(x, delta)))    a step on delta
        min over w of   CE(poisoned batch) + weight CE(y, f(x, delta))                   a step on the weights

    one space an update, in turn.

    Attributes:
        alpha: share of the pattern in a triggered input, in (0, 1].
        rate: probability that a sample of a batch is stamped and relabelled.
        budget: largest size of a change that must not work, share of e_s.
        share: samples that are changed, share of the batch.
        weight: of the loss on them.
        life: updates of a space until its change starts anew, from nothing.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "evade_cascade"
    summary: ClassVar[str] = "a blended pattern trained against the default scan and its reference (adaptive)"

    alpha: float = 0.4
    rate: float = 0.3
    budget: float = 0.7
    share: float = 0.5
    weight: float = 0.2
    life: int = 20
    target: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or not 0 < self.share <= 1:
            raise ValueError("rate lies between 0 and 1, share is above 0 and at most 1")
        if not 0 < self.alpha <= 1 or self.budget <= 0 or self.weight < 0 or self.life < 1:
            raise ValueError("alpha lies in (0, 1], budget above 0, weight is not negative, life at least 1")

    def triggers(self, setup: Setup) -> list[Trigger]:
        pattern = torch.rand(setup.shape, generator=setup.generator(self.name, "pattern"))
        target = setup.target(self.target, self.name, "target")
        return [Patch.blended(pattern, self.alpha, target)]

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        (trigger,) = triggers = self.triggers(setup)
        target = int(trigger.target or 0)
        generator = setup.generator(self.name, "training")
        some = setup.data.sample(SAMPLES, derive_seed(setup.seed, self.name, "samples"))
        twin = Model(setup.clean(), setup.shape, setup.classes).copy()
        model, spaces = Model(net, setup.shape, setup.classes), spaces_of(twin)
        sizes = {name: self._size(twin, s, some.x, some.y, target, setup.seed) for name, s in spaces.items()}
        running: dict[str, tuple[Tensor, float]] = {}  # the change in each space, and its budget
        update = 0

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal update
            stamped, labels, _ = poison_batch(x, y, trigger, setup.classes, self.rate, generator)
            loss = F.cross_entropy(net(stamped).float(), labels)
            turn, at = divmod(update, len(spaces))
            name, space = list(spaces.items())[at]
            update += 1
            rows = torch.nonzero(y != target).flatten()[: max(1, round(self.share * len(x)))]
            if len(rows) == 0:
                return loss
            net.eval()  # without dropout, and without moving the statistics of BatchNorm
            if turn % self.life == 0 or name not in running:
                model.kept = Kept()
                low, _ = space.range(model, some.x)
                start = space.zeros(model, 1, some.x)
                most = min(low * math.exp(sizes[name]), _planted(model, space, trigger, some.x, start))
                running[name] = start, self.budget * most
            delta, budget = running[name]
            here = delta.detach().requires_grad_()
            logits = space.whole(model, x[rows], here.expand(len(rows), *here.shape[1:])).float()
            goal = torch.full((len(rows),), target, device=x.device)
            reach = F.softplus(-margin(logits, goal)).mean()
            (slope,) = torch.autograd.grad(reach, here, retain_graph=True)
            with torch.no_grad():
                step = unit(space.steepen(slope), space)
                running[name] = space.project(delta - STRIDE * budget * step, budget), budget
            net.train()
            return loss + self.weight * F.cross_entropy(logits, y[rows])

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return triggers

    def _size(self, twin: Model, space: Space, x: Tensor, y: Tensor, target: int, seed: int) -> float:
        """Log of the size that the target has in the clean twin, over the smallest budget of the space."""
        aim = Aim(target, None, derive_seed(seed, self.name, "size"))
        return follow(twin, x, y, [aim], space, steps=STEPS, batch=BATCH)[0].log_size


@torch.no_grad()
def _planted(model: Model, space: Space, trigger: Trigger, x: Tensor, like: Tensor) -> float:
    """How large a change the trigger makes of x (N, *shape), on average; inf in a space that has none."""
    before, after = x.to(model.device), trigger(x).to(model.device)
    if isinstance(space, Embedded):
        before, after = model.embedded(before, space.layer), model.embedded(after, space.layer)
    change = (after - before).mean(0, keepdim=True)
    return float(space.norm(change)) if change.shape == like.shape else math.inf
