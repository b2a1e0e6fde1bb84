"""Implicit Backdoor Adversarial Unlearning, I-BAU (Zeng et al., ICLR 2022): unlearn the worst noise.

    min_theta H(delta*(theta), theta),   H = 1/n sum_i CE(f_theta(x_i + delta), y_i),
    delta*(theta) = argmax over |delta|_2 <= C of H(delta, theta)

delta is one for all samples, as a trigger is. It moves when theta does, so that the slope of the outer
problem is a hypergradient; with g(delta, theta) the inner loss, -H and a small penalty of |delta|^2,

    grad_theta H - grad_theta grad_delta g . v,   where   (grad_delta grad_delta g) v = grad_delta H

and v is found by K fixed-point iterations v <- v - eta (grad_delta grad_delta g) v + eta grad_delta H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inversion.loop import batches
from backsweep.models.model import Model
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, strongest

BATCH = 64
STEPS = 20  # of the inner problem, each as long as C / 4
LR = 3e-4  # of Adam for theta
PORTION = 0.2  # of a batch carries the perturbation
ETA, PENALTY = 0.1, 1e-3  # step of the fixed-point iterations; weight of |delta|^2


@dataclass(frozen=True)
class IBau(Repair):
    """Fine-tunes against the worst universal perturbation, with the gradient of the two-level problem.

    Attributes:
        rounds: how often the perturbation is searched for anew.
        updates: of the weights in each round.
        norm: bound C in the last round, as a root mean square over the values of an image; it grows from
            round to round in equal steps, so that the rounds go from mild to strong.
        iterations: K, of the fixed point; 0 leaves the implicit part out.
        loss: accuracy on the held-out samples that may be given up.
    """

    name: ClassVar[str] = "i_bau"
    summary: ClassVar[str] = "unlearns the worst universal perturbation (I-BAU, 2022)"

    rounds: int = 5
    updates: int = 12
    norm: float = 0.18
    iterations: int = 5
    loss: float = 0.03

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.updates < 1 or self.iterations < 0 or self.norm <= 0:
            raise ValueError("rounds and updates are at least 1, iterations at least 0, norm above 0")

    def applies(self, case: Case) -> str:
        if not case.model.modality.smooth:
            return f"it adds a perturbation, and between two {case.model.modality.noun}s there is none"
        try:
            weight = torch.zeros((2, *case.model.shape), device=case.model.device, requires_grad=True)
            (slope,) = torch.autograd.grad(
                case.model.logits(weight).square().sum(), weight, create_graph=True
            )
            if slope.requires_grad:
                torch.autograd.grad(slope.square().sum(), weight, allow_unused=True)
        except RuntimeError:
            return "it needs a network that can be differentiated twice"
        return ""

    def apply(self, case: Case) -> Model:
        return strongest(case, self.stages(case), self.loss)

    def stages(self, case: Case) -> Iterator[Model]:
        """The network after every round."""
        twin, data = thawed(case.model), case.clean
        for module in twin.net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train()
        weights = list(twin.net.parameters())
        optimizer = torch.optim.Adam(weights, LR)
        queue = batches(torch.arange(len(data)), derive_seed(case.seed, self.name), BATCH)

        def batch() -> tuple[Tensor, Tensor]:
            rows = next(queue)
            return data.x[rows].to(twin.device), data.y[rows].to(twin.device)

        bound = self.norm * math.sqrt(math.prod(twin.shape))
        for k in range(self.rounds):
            delta = self._worst(twin, [batch() for _ in range(STEPS)], bound * (k + 1) / self.rounds)
            for _ in range(self.updates):
                slopes = hypergradient(twin, *batch(), delta, weights, self.iterations)
                for w, slope in zip(weights, slopes, strict=True):
                    w.grad = slope
                optimizer.step()
            case.tick((k + 1) / self.rounds)
            yield twin.copy()

    def _worst(self, twin: Model, samples: Sequence[tuple[Tensor, Tensor]], bound: float) -> Tensor:
        """delta*: the universal perturbation, (1, *shape), that raises the loss most; |delta|_2 <= bound."""
        delta = torch.zeros((1, *twin.shape), device=twin.device)
        for x, y in samples:
            here = delta.requires_grad_()
            (slope,) = torch.autograd.grad(outer(twin, x, y, here), here)
            delta = here.detach() + bound / 4 * slope / slope.norm().clamp_min(1e-12)
            delta = delta * (bound / delta.norm().clamp_min(1e-12)).clamp_max(1)
        return delta


def outer(model: Model, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """H(delta, theta) on a batch, of which a share PORTION is perturbed."""
    count = math.ceil(PORTION * len(x))
    return F.cross_entropy(
        model.logits(torch.cat([model.modality.clip(x[:count] + delta), x[count:]])).float(), y
    )


def hypergradient(
    model: Model, x: Tensor, y: Tensor, delta: Tensor, weights: Sequence[Tensor], iterations: int
) -> list[Tensor]:
    """d H(delta*(theta), theta) / d theta by implicit differentiation at delta* = delta."""
    delta = delta.detach().requires_grad_()
    h = outer(model, x, y, delta)
    slopes = torch.autograd.grad(h, [delta, *weights], create_graph=iterations > 0, allow_unused=True)
    direct = [
        torch.zeros_like(w) if s is None else s.detach() for w, s in zip(weights, slopes[1:], strict=True)
    ]
    if not iterations or slopes[0] is None:
        return direct
    b = slopes[0].detach()
    inner = 2 * PENALTY * delta - slopes[0]  # grad_delta g
    v = torch.zeros_like(b)
    for _ in range(iterations):
        (hv,) = torch.autograd.grad(inner, delta, v, retain_graph=True)
        v = v - ETA * hv + ETA * b
    mixed = torch.autograd.grad(inner, list(weights), v, allow_unused=True)
    return [d if s is None else d - s for d, s in zip(direct, mixed, strict=True)]
