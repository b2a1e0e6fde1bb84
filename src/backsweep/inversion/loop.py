"""The one inversion loop: find, for every unit, the smallest trigger that reaches its target.

For each unit u (a target class, or a source and a target) it minimises

    mean_x CE(t_u, f(A(x, theta_u))) + lambda_u * size(theta_u)        (Neural Cleanse, eq. 3)

A *family* says what theta is and how it changes an input; a *control* moves lambda, says which
theta to keep and when to stop. All units of a chunk share every forward and backward pass; each has
its own samples, optimiser state and control, so that the result of a unit does not hang on its
neighbours (up to the rounding of the device).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.engine.precision import bfloat16
from backsweep.inputs.family import EPS, Family
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model


class Control(Protocol):
    """Moves lambda and says what to keep; every figure is a tensor over the units.

    Attributes:
        period: updates between two calls of `step`.
        weight: lambda.
        best: size of the trigger that is kept; infinite while none reached the threshold.
        done: units that need no more work.
    """

    period: int
    weight: Tensor
    best: Tensor
    done: Tensor

    def step(self, success: Tensor, size: Tensor) -> Tensor:
        """Take mean success rate and mean size of the last `period` updates; return whom to keep."""


class PaperControl:
    """The control loop of the authors' code, unit by unit (facts: lambda from 0, patience, early stop).

    Args:
        count: number of units.
        threshold: attack success threshold.
        patience: consecutive steps above (below) the threshold before lambda goes up (down).
        up: factor up; down is `up ** 1.5`.
        start: the first lambda above zero.
        period: mini-batches in a step.
        early_stop: steps without improvement; only after lambda went both ways. 5 * patience.
    """

    def __init__(
        self, count: int, *, threshold: float = 0.99, patience: int = 5, up: float = 2.0,
        start: float = 1e-3, period: int = 31, early_stop: int = 25,
    ) -> None:  # fmt: skip
        self.threshold, self.patience, self.start, self.period = threshold, patience, start, period
        self.up, self.down, self.early_stop = up, up**1.5, early_stop
        self.weight = torch.zeros(count)
        self.best = torch.full((count,), math.inf)
        self.done = torch.zeros(count, dtype=torch.bool)
        self._early_best = torch.full((count,), math.inf)
        zero = torch.zeros(count, dtype=torch.long)
        self._early, self._set, self._raise, self._lower = (zero.clone() for _ in range(4))
        self._raised, self._lowered = self.done.clone(), self.done.clone()

    def step(self, success: Tensor, size: Tensor) -> Tensor:
        hit = success >= self.threshold
        keep = hit & (size < self.best)
        self.best = torch.where(keep, size, self.best)

        found = torch.isfinite(self.best)  # early stop
        stale = found & (self.best >= self._early_best)
        self._early = torch.where(stale, self._early + 1, torch.where(found, 0, self._early))
        self._early_best = torch.minimum(self._early_best, self.best)
        self.done |= self._raised & self._lowered & (self._early >= self.early_stop)

        idle = self.weight == 0  # lambda stays 0 until the trigger works, `patience` steps in a row
        self._set = torch.where(idle & hit, self._set + 1, 0)
        begin = self._set >= self.patience
        self.weight = torch.where(begin, self.start, self.weight)
        self._set[begin] = 0

        self._raise = torch.where(begin, 1, torch.where(hit, self._raise + 1, 0))  # counts this step
        self._lower = torch.where(hit, 0, self._lower + 1)
        self._raised &= ~begin
        self._lowered &= ~begin
        rise, fall = self._raise >= self.patience, self._lower >= self.patience
        self.weight = torch.where(rise, self.weight * self.up, self.weight)
        self.weight = torch.where(fall, self.weight / self.down, self.weight)
        self._raised |= rise
        self._lowered |= fall
        self._raise[rise] = 0
        self._lower[fall] = 0
        return keep


class SmoothControl:
    """lambda moves a few per cent at every update: up while the trigger works, else down.

    The success rate is smoothed over the last updates; the smallest trigger whose smoothed rate
    reaches the threshold is kept. A mask oscillates around the threshold instead of waiting for
    `patience` whole steps in either direction, so that some 200 updates are enough.

    Args:
        count: number of units.
        threshold: attack success threshold, of the smoothed rate.
        start: the first lambda.
        rate: factor by which lambda moves at every update.
        memory: weight of the past in the smoothed rate.
        patience: updates without improvement before a unit stops.
        tolerance: a smaller mask by less than this share is no improvement.
    """

    def __init__(
        self, count: int, *, threshold: float = 0.99, start: float = 1e-3, rate: float = 1.06,
        memory: float = 0.8, patience: int = 60, tolerance: float = 0.02,
    ) -> None:  # fmt: skip
        self.threshold, self.rate, self.memory = threshold, rate, memory
        self.patience, self.tolerance, self.period = patience, tolerance, 1
        self.weight = torch.full((count,), start)
        self.best = torch.full((count,), math.inf)
        self.done = torch.zeros(count, dtype=torch.bool)
        self._success = torch.zeros(count)
        self._stale = torch.zeros(count, dtype=torch.long)

    def step(self, success: Tensor, size: Tensor) -> Tensor:
        self._success = self.memory * self._success + (1 - self.memory) * success
        hit = self._success >= self.threshold
        self.weight = torch.where(hit, self.weight * self.rate, self.weight / self.rate)
        keep = hit & (size < self.best)
        better = hit & (size < self.best * (1 - self.tolerance))
        self._stale = torch.where(better | ~torch.isfinite(self.best), 0, self._stale + 1)
        self.best = torch.where(keep, size, self.best)
        self.done |= self._stale >= self.patience
        return keep


@dataclass(frozen=True)
class Job:
    """One unit of inversion: which inputs should go where.

    Attributes:
        target: class to reach.
        rows: indices of the samples to optimise on.
        seed: start value and order of the samples.
        source: class the samples belong to, None for all.
    """

    target: int
    rows: Tensor
    seed: int
    source: int | None = None


@dataclass(frozen=True)
class Inverted:
    """What the loop found for one job.

    Attributes:
        trigger: the smallest trigger that worked, or the last one when none did.
        reached: whether the success threshold was reached.
        updates: optimiser updates used.
        passes: inputs sent forward and backward.
    """

    trigger: Trigger
    reached: bool
    updates: int
    passes: int


def batches(rows: Tensor, seed: int, batch: int) -> Iterator[Tensor]:
    """Endless batches of rows, shuffled anew in every pass.

    Raises:
        ValueError: there are no rows.
    """
    if not len(rows):
        raise ValueError("no samples are left to search with")
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < batch:
            queue = torch.cat([queue, rows[torch.randperm(len(rows), generator=generator)]])
        yield queue[:batch]
        queue = queue[batch:]


def invert(
    model: Model,
    x: Tensor,
    jobs: Sequence[Job],
    family: Family,
    control: Control,
    *,
    updates: int,
    batch: int,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.5, 0.9),
    bf16: bool = False,
    on_update: Callable[[int], None] | None = None,
) -> list[Inverted]:
    """Run all jobs side by side for at most `updates` updates each.

    Args:
        model: a frozen working copy (`Model.copy`).
        x: clean inputs (N, C, H, W) in [0, 1].
        jobs: what to reach, one trigger each.
        family: the space of triggers.
        control: lambda, what to keep, when to stop; made for `len(jobs)` units.
        updates: most Adam updates a job gets; a multiple of `control.period`.
        batch: inputs of one job in an update.
        lr, betas: of Adam.
        bf16: run the network in bfloat16 where that pays; parameters stay float32.
        on_update: called with the number of jobs still running.
    """
    device = model.device
    x = x.to(device)
    starts = [family.init(x.shape[1:], torch.Generator().manual_seed(j.seed)) for j in jobs]
    theta = [torch.stack(parts).to(device) for parts in zip(*starts, strict=True)]
    kept = [t.clone() for t in theta]
    first, second = [torch.zeros_like(t) for t in theta], [torch.zeros_like(t) for t in theta]
    orders = [batches(job.rows, job.seed + 1, batch) for job in jobs]
    targets = torch.tensor([job.target for job in jobs], device=device)
    used = torch.zeros(len(jobs), dtype=torch.long)
    live = torch.arange(len(jobs))
    success, sizes = torch.zeros(len(jobs)), torch.zeros(len(jobs))

    for update in range(1, updates + 1):
        rows = torch.stack([next(orders[i]) for i in live.tolist()])
        clean = x[rows.flatten().to(device)].unflatten(0, rows.shape)
        params = [t[live].requires_grad_() for t in theta]
        stamped = family.apply(params, clean).flatten(0, 1)
        with bfloat16(device.type, bf16):
            logits = model.logits(stamped)
        goal = targets[live].repeat_interleave(batch)
        error = F.cross_entropy(logits.float(), goal, reduction="none").unflatten(0, rows.shape)
        size = family.size(params)
        loss = error.mean(1) + control.weight[live].to(device) * size
        grads = torch.autograd.grad(loss.sum(), params)
        used[live] += 1
        with torch.no_grad():
            for t, m, v, g in zip(theta, first, second, grads, strict=True):
                m[live] = betas[0] * m[live] + (1 - betas[0]) * g
                v[live] = betas[1] * v[live] + (1 - betas[1]) * g * g
                scale = math.sqrt(1 - betas[1] ** update) / (1 - betas[0] ** update)
                t[live] -= lr * scale * m[live] / (v[live].sqrt() + EPS)
            hits = (logits.argmax(1) == goal).float().unflatten(0, rows.shape).mean(1)
        success[live] += hits.cpu() / control.period
        sizes[live] += size.detach().cpu() / control.period
        if update % control.period == 0:
            finished = control.done.clone()
            keep = control.step(success, sizes) & ~finished
            for k, t in zip(kept, theta, strict=True):
                k[keep] = t[keep]
            success.zero_()
            sizes.zero_()
            live = torch.nonzero(~control.done).flatten()
            if len(live) == 0:
                break
        if on_update is not None:
            on_update(len(live))

    reached = torch.isfinite(control.best)
    found = []
    for i, job in enumerate(jobs):
        chosen = kept if reached[i] else theta
        trigger = family.trigger([t[i] for t in chosen], job.target, job.source)
        n = int(used[i])
        found.append(Inverted(trigger, bool(reached[i]), n, n * batch))
    return found
