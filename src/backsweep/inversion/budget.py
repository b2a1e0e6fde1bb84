"""How large must a perturbation be before it works? One path of budgets for every question.

A *space* says where a perturbation delta lives (the input, or the embedding of a layer) and how it is
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
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.engine.precision import bfloat16
from backsweep.inputs.space import Ball, per
from backsweep.inputs.space import Space as InputSpace
from backsweep.inversion.loop import batches
from backsweep.models.model import Model
from backsweep.models.prefix import prefix_of

MOMENTUM, STRIDE = 0.7, 0.3  # of the ascent; a step is this share of the budget
EMBEDDINGS = ("early", "late")  # the first affine layer, and the one a third up
MOVED = 1e-4  # of the largest logit, from which on a shift is taken to change answers
DONE = 0.97  # smoothed success from which on larger budgets are taken to succeed too


class Space(Protocol):
    """Perturbations delta of inputs or embeddings; the aims stand in the first dimension."""

    def inputs(self, model: Model, x: Tensor) -> Tensor:
        """Which of the clean inputs x (N, *shape) are worked with, indices (M,)."""

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        """Smallest and largest budget for clean inputs x (N, *shape)."""

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        """The start, (count, ...)."""

    def logits(self, model: Model, x: Tensor, rows: Tensor, delta: Tensor) -> Tensor:
        """Logits of some inputs, indices (B,) into `inputs`, each with its own delta (B, ...)."""

    def whole(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
        """The same for any inputs x (B, *shape) and a network that may change: nothing is kept."""

    def steepen(self, grad: Tensor) -> Tensor:
        """A gradient (count, ...) bent towards steepest ascent in this norm."""

    def norm(self, delta: Tensor) -> Tensor:
        """How large delta (count, ...) is, (count,)."""

    def project(self, delta: Tensor, budget: float) -> Tensor:
        """The nearest delta of at most that norm."""


@dataclass(frozen=True)
class OfInputs:
    """A space of inputs (`Modality.spaces`), seen through a model."""

    space: InputSpace

    def inputs(self, model: Model, x: Tensor) -> Tensor:
        return torch.arange(len(x))

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        return self.space.range(x)

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        return self.space.zeros(count, x).to(model.device)

    def logits(self, model: Model, x: Tensor, rows: Tensor, delta: Tensor) -> Tensor:
        return self.whole(model, x[rows].to(model.device), delta)

    def whole(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
        return model.logits(self.space.apply(x, delta))

    def steepen(self, grad: Tensor) -> Tensor:
        return self.space.steepen(grad)

    def norm(self, delta: Tensor) -> Tensor:
        return self.space.norm(delta)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        return self.space.project(delta, budget)


@dataclass(frozen=True)
class Embedded(Ball):
    """One consensus shift mu of the embedding z of a layer, ||mu||_2 (CEPA's statistic).

    Budgets are shares of the mean distance of an embedding from the mean embedding.

    Attributes:
        layer: index of the affine operation whose output is shifted (`Model.layers`).
    """

    layer: int
    low: float = 0.02
    high: float = 4.0

    def inputs(self, model: Model, x: Tensor) -> Tensor:
        prefix = prefix_of(model, x, self.layer)
        return torch.arange(len(x)) if prefix is None else prefix.rows

    def range(self, model: Model, x: Tensor) -> tuple[float, float]:
        if (prefix := prefix_of(model, x, self.layer)) is not None:
            scale = prefix.size
        else:
            some = x[:256].to(model.device)
            z = model.modality.consensus(model.embedded(some, self.layer).float(), lambda: some)
            scale = float((z - z.mean(0)).flatten(1).norm(dim=1).mean())
        return self.low * scale, self.high * scale

    def zeros(self, model: Model, count: int, x: Tensor) -> Tensor:
        if (prefix := prefix_of(model, x, self.layer)) is not None:
            return prefix.zeros(count)
        z = model.modality.consensus(model.embedded(x[:1].to(model.device), self.layer), lambda: x[:1])
        return torch.zeros((count, *z.shape[1:]), device=z.device)

    def logits(self, model: Model, x: Tensor, rows: Tensor, delta: Tensor) -> Tensor:
        if (prefix := prefix_of(model, x, self.layer)) is not None:
            return prefix.logits(model, rows, delta)
        return self.whole(model, x[rows].to(model.device), delta)

    def whole(self, model: Model, x: Tensor, delta: Tensor) -> Tensor:
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
        least: at the smallest budget that won all of a batch, else at the first that won most.
        success: smoothed share won at the end.
        passes: inputs sent forward and backward.
    """

    log_size: float
    delta: Tensor
    least: Tensor
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
    down: bool = False,
    on_step: Callable[[float], None] | None = None,
) -> list[Path]:
    """Follow every aim along the growing budgets, all of them in the same passes.

    Args:
        model: a frozen working copy.
        x, y: clean inputs (N, C, H, W) and their labels (N,).
        aims: what to measure.
        space: where the perturbation lives.
        steps: budgets, from the smallest to the largest of the space's range.
        batch: inputs of an aim in a step.
        bf16: run the network in bfloat16 where that pays.
        down: from a random change as large as twice the range to the smallest budget, instead of from nothing
            upwards: what no gradient at a clean input shows, a small patch that only counts when all of it
            is there, is found by shrinking what holds it, as Neural Cleanse does.
        on_step: told the share that is done.
    """
    device = model.device
    precision = partial(bfloat16, device.type, bf16)
    with precision():
        y, (low, high) = y[space.inputs(model, x)], space.range(model, x)
        delta = space.zeros(model, len(aims), x)
    if down:
        high *= 2
        noise = [torch.rand(delta.shape[1:], generator=torch.Generator().manual_seed(a.seed)) for a in aims]
        delta = space.project((2 * torch.stack(noise) - 1).to(device), high)
    pace = math.log(high / low) / (steps - 1)
    drift, found, least = torch.zeros_like(delta), torch.zeros_like(delta), torch.zeros_like(delta)
    orders = [batches(aim.rows(y), aim.seed, batch) for aim in aims]
    targets = torch.tensor([-1 if a.target is None else a.target for a in aims])
    won = torch.full((len(aims), steps), 0.0 if down else 1.0)
    smooth, most = torch.full((len(aims),), 1.0 if down else 0.0), torch.full((len(aims),), -1.0)
    live = torch.arange(len(aims))
    passes = torch.zeros(len(aims), dtype=torch.long)
    for k in range(steps):
        budget = low * math.exp(pace * (steps - 1 - k if down else k))
        rows = torch.stack([next(orders[i]) for i in live.tolist()])
        labels = y[rows.flatten()].to(device)
        goal = targets[live].repeat_interleave(batch).to(device)
        here = delta[live].requires_grad_()
        with precision():
            logits = space.logits(model, x, rows.flatten(), here.repeat_interleave(batch, 0))
        ahead_by = margin(logits.float(), goal, labels).unflatten(0, rows.shape)
        (grad,) = torch.autograd.grad(F.softplus(-ahead_by).mean(1).sum(), here)
        with torch.no_grad():
            drift[live] = MOMENTUM * drift[live] - unit(space.steepen(grad), space)
            ahead = here + STRIDE * budget * unit(drift[live], space)
            success = (ahead_by > 0).float().mean(1).cpu()
            won[live, k] = success
            smooth[live] = 0.5 * smooth[live] + 0.5 * success
            kept = success >= 0.5 if down else torch.ones_like(success, dtype=torch.bool)
            found[live[kept]] = here.detach()[kept]
            better = (success > most[live]) | (down & (success == 1))
            most[live] = torch.maximum(most[live], success)
            least[live[better]] = here.detach()[better]
            passes[live] += batch
            delta[live] = space.project(ahead, budget * math.exp(-pace) if down else budget)
        live = live[smooth[live] > 1 - DONE] if down else live[smooth[live] < DONE]
        if on_step is not None:
            on_step((k + 1) / steps)
        if len(live) == 0:
            break
    sizes = (pace * (1 - won).sum(1)).tolist()
    return [
        Path(sizes[i], found[i].cpu(), least[i].cpu(), float(smooth[i]), int(passes[i]))
        for i in range(len(aims))
    ]


def unit(delta: Tensor, space: Space) -> Tensor:
    """Each of delta (count, ...), divided by its norm in a space."""
    return delta / per(space.norm(delta).clamp_min(1e-20), delta)


def margin(logits: Tensor, goal: Tensor, labels: Tensor | None = None) -> Tensor:
    """g_c - max_{k != c} g_k for logits (N, K) and classes c (N,).

    Where there is no goal (-1): how far the best other class is above the label.
    """
    pivot = (goal if labels is None else torch.where(goal >= 0, goal, labels))[:, None]
    own = logits.gather(1, pivot)[:, 0]
    other = logits.scatter(1, pivot, -torch.inf).amax(1)
    return own - other if labels is None else torch.where(goal >= 0, own - other, other - own)


def spaces_of(model: Model) -> dict[str, Space]:
    """Where perturbations of a model live, by name: the spaces of its inputs, then embeddings of its layers.

    "early" and "late" are the first affine layer and the one a third up, as far as there are layers.
    """
    late = model.modality.late(model.layers(), partial(_moves, model))
    spaces: dict[str, Space] = {name: OfInputs(s) for name, s in model.modality.spaces().items()}
    layers = {"early": 0, "late": late}
    return {**spaces, **{n: Embedded(i) for n, i in layers.items() if i < max(1, model.layers())}}


def _moves(model: Model, layer: int) -> bool:
    """Whether a shift of the output of a layer changes any answer: that of keys in attention does not."""
    x = model.modality.random(2, model.shape, torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        z, before = model.embedded(x, layer), model.logits(x)
        one = model.modality.consensus(z, lambda: x)[:1]
        shift = torch.rand(one.shape, generator=torch.Generator().manual_seed(0)).to(one) * z.abs().mean()
        after = model.logits_at(x, layer, shift)
    return float((after - before).abs().max()) > MOVED * float(before.abs().max())


def few(model: Model) -> Space:
    """The space of few units of a model's inputs."""
    return OfInputs(model.modality.spaces()[model.modality.few])
