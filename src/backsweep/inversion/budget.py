"""How large must a perturbation be before it works? One path of growing budgets for every question.

A *space* says where a perturbation delta lives (pixels, or the embedding of a layer) and how it is
measured. An *aim* says which inputs should go where. For every aim the universal perturbation that
makes the misclassification

    max_{||delta|| <= eps_k}  mean_x  -softplus(-margin(f(x, delta)))        k = 1 .. steps

succeed is followed while the budget eps_k grows by a constant factor from step to step: one step of
steepest ascent in the space's own norm, then the projection on its ball. A sample that is won at
eps_k counts with log eps_k; the mean over the samples is the *log size* of the aim. A backdoor makes
it small. There is no lambda to control and no threshold to reach: some 30 forward and backward
passes of a small batch measure a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inversion.loop import batches
from backsweep.models.model import Model

MOMENTUM, STRIDE = 0.7, 0.3  # of the ascent; a step is this share of the budget
DONE = 0.97  # smoothed success from which on larger budgets are taken to succeed too


class Space(Protocol):
    """Perturbations delta of inputs or embeddings; the aims stand in the first dimension."""

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        """Smallest and largest budget for clean inputs x (N, C, H, W)."""

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        """The start, (count, ...)."""

    def logits(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
        """Logits of inputs x (N, C, H, W), each with its own delta (N, ...)."""

    def steepen(self, grad: Tensor) -> Tensor:
        """A gradient (count, ...) bent towards steepest ascent in this norm."""

    def norm(self, delta: Tensor) -> Tensor:
        """How large delta (count, ...) is, (count,)."""

    def project(self, delta: Tensor, budget: float) -> Tensor:
        """The nearest delta of at most that norm."""


def _per(v: Tensor, like: Tensor) -> Tensor:
    """(count,) -> (count, 1, ...) to multiply with `like`."""
    return v.reshape(-1, *[1] * (like.ndim - 1))


class _Ball:
    """The Euclidean norm and its ball."""

    def steepen(self, grad: Tensor) -> Tensor:
        return grad

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        return delta * _per((budget / self.norm(delta).clamp_min(1e-20)).clamp(max=1), delta)


@dataclass(frozen=True)
class Dense(_Ball):
    """Faint changes of every pixel: x + delta, clipped to [0, 1], measured by ||delta||_2.

    Budgets are shares of the mean distance of an input from the mean input.
    """

    low: float = 0.03
    high: float = 1.5

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        scale = float((x - x.mean(0)).flatten(1).norm(dim=1).mean())
        return self.low * scale, self.high * scale

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, *x.shape[1:]), device=model.device)

    def logits(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
        return model.logits((x + delta).clamp(0, 1))


@dataclass(frozen=True)
class Sparse(Dense):
    """Few pixels, changed as one likes: the sum over pixels of max_c |delta|, each at most 1.

    Budgets are pixels: from `low` of them to a share `high` of the image.
    """

    low: float = 1.0
    high: float = 0.1

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
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

    low: float = 0.01
    high: float = 1.0
    knots: int = 9

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        return self.low, self.high

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, x.shape[1], self.knots), device=model.device)

    def logits(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
        place = x.clamp(0, 1).flatten(2) * (self.knots - 1)
        left = place.floor().clamp(max=self.knots - 2)
        index = left.long()
        curve = delta.gather(2, index) * (1 - place + left) + delta.gather(2, index + 1) * (place - left)
        return model.logits((x + curve.reshape(x.shape)).clamp(0, 1))

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).square().mean(1).sqrt()


@dataclass(frozen=True)
class Embedded(_Ball):
    """One consensus shift mu of the embedding z of a layer, ||mu||_2 (CEPA's statistic).

    Budgets are shares of the mean distance of an embedding from the mean embedding.

    Attributes:
        layer: index of the affine operation whose output is shifted (`Model.layers`).
    """

    layer: int
    low: float = 0.02
    high: float = 4.0

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        z = model.embedded(x[:256].to(model.device), self.layer).float()
        scale = float((z - z.mean(0)).flatten(1).norm(dim=1).mean())
        return self.low * scale, self.high * scale

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        z = model.embedded(x[:1].to(model.device), self.layer)
        return torch.zeros((count, *z.shape[1:]), device=z.device)

    def logits(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
        return model.logits_at(x, self.layer, delta)


@dataclass(frozen=True)
class Aim:
    """Which inputs should go where.

    Attributes:
        target: class to reach; None: any class but their own.
        source: class of the inputs; None: every class but the target.
        seed: order of the samples.
    """

    target: int | None
    source: int | None
    seed: int

    def rows(self, y: Tensor) -> Tensor:
        """Indices of the samples this aim is measured on."""
        if self.source is not None:
            return torch.nonzero(y == self.source).flatten()
        return torch.nonzero(y != (-1 if self.target is None else self.target)).flatten()


@dataclass(frozen=True)
class Path:
    """What was measured for one aim.

    Attributes:
        log_size: mean over samples of the log budget at which each was won, relative to the
            smallest budget of the range; at most the log of the whole range.
        delta: the perturbation at the first budget that won `DONE` of the batch, else the last one.
        success: smoothed share won at the end.
        passes: inputs sent forward and backward.
    """

    log_size: float
    delta: Tensor
    success: float
    passes: int


def follow(
    model: Model,
    x: Tensor,
    y: Tensor,
    aims: Sequence[Aim],
    space: Space,
    *,
    steps: int = 30,
    batch: int = 24,
    bf16: bool = True,
    on_step: Callable[[float], None] | None = None,
) -> list[Path]:
    """Follow every aim along the growing budgets, all of them in the same passes.

    Args:
        model: a frozen working copy.
        x, y: clean inputs (N, C, H, W) in [0, 1] and their labels (N,).
        aims: what to measure.
        space: where the perturbation lives.
        steps: budgets, from the smallest to the largest of the space's range.
        batch: inputs of an aim in a step.
        bf16: run the network in bfloat16 autocast.
        on_step: told the share that is done.
    """
    device = model.device
    low, high = space.range(model, x)
    pace = math.log(high / low) / (steps - 1)
    delta = space.zeros(model, len(aims), x)
    drift, found = torch.zeros_like(delta), torch.zeros_like(delta)
    orders = [batches(aim.rows(y), aim.seed, batch) for aim in aims]
    targets = torch.tensor([-1 if a.target is None else a.target for a in aims])
    won = torch.ones(len(aims), steps)
    smooth = torch.zeros(len(aims))
    live = torch.arange(len(aims))
    passes = torch.zeros(len(aims), dtype=torch.long)
    for k in range(steps):
        budget = low * math.exp(pace * k)
        rows = torch.stack([next(orders[i]) for i in live.tolist()])
        labels = y[rows.flatten()].to(device)
        goal = targets[live].repeat_interleave(batch).to(device)
        here = delta[live].requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = space.logits(model, x[rows.flatten()].to(device), here.repeat_interleave(batch, 0))
        ahead_by = margin(logits.float(), goal, labels).unflatten(0, rows.shape)
        (grad,) = torch.autograd.grad(F.softplus(-ahead_by).mean(1).sum(), here)
        with torch.no_grad():
            drift[live] = MOMENTUM * drift[live] - _unit(space.steepen(grad), space)
            ahead = here + STRIDE * budget * _unit(drift[live], space)
            success = (ahead_by > 0).float().mean(1).cpu()
            won[live, k] = success
            smooth[live] = 0.5 * smooth[live] + 0.5 * success
            found[live] = here.detach()
            passes[live] += batch
            delta[live] = space.project(ahead, budget)
        live = live[smooth[live] < DONE]
        if on_step is not None:
            on_step((k + 1) / steps)
        if len(live) == 0:
            break
    sizes = (pace * (1 - won).sum(1)).tolist()
    return [Path(sizes[i], found[i].cpu(), float(smooth[i]), int(passes[i])) for i in range(len(aims))]


def _unit(delta: Tensor, space: Space) -> Tensor:
    return delta / _per(space.norm(delta).clamp_min(1e-20), delta)


def margin(logits: Tensor, goal: Tensor, labels: Tensor | None = None) -> Tensor:
    """g_c - max_{k != c} g_k for logits (N, K) and classes c (N,).

    Where there is no goal (-1): how far the best other class is above the label.
    """
    pivot = (goal if labels is None else torch.where(goal >= 0, goal, labels))[:, None]
    own = logits.gather(1, pivot)[:, 0]
    other = logits.scatter(1, pivot, -torch.inf).amax(1)
    return own - other if labels is None else torch.where(goal >= 0, own - other, other - own)
