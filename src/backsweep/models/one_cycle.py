"""AdamW with the one-cycle schedule, as `torch.optim` has them, without what a first optimiser there loads.

`torch.optim.Optimizer` imports the compiler of PyTorch when the first one is made: 1.5 seconds, a
third of the scan of a small network. The update itself (`torch.optim.adamw.adamw`) is PyTorch's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.adamw import adamw

WARM = 0.3  # share of the updates in which the learning rate rises
LOW, LEAST = 25.0, 1e4  # the peak over the first rate, and that over the last one
MOMENTA = (0.85, 0.95)  # beta_1 at the peak, and at both ends


class OneCycleAdamW:
    """AdamW (Loshchilov and Hutter, 2019) on the schedule of Smith and Topin (2018).

    Args:
        parameters: what is trained.
        lr: the peak of the learning rate.
        weight_decay: decoupled.
        updates: of the whole training.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, updates: int
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.weight_decay, self.updates = lr, weight_decay, updates
        self.done = 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.counts = [torch.tensor(0.0) for _ in self.parameters]

    def schedule(self) -> tuple[float, float]:
        """Learning rate and beta_1 of the next update."""
        rising = WARM * self.updates - 1
        if self.done <= rising:
            share = self.done / rising
            return _cosine(self.lr / LOW, self.lr, share), _cosine(MOMENTA[1], MOMENTA[0], share)
        share = (self.done - rising) / (self.updates - 1 - rising)
        return _cosine(self.lr, self.lr / LOW / LEAST, share), _cosine(MOMENTA[0], MOMENTA[1], share)

    @torch.no_grad()
    def step(self) -> None:
        """One update with the gradients that are there; they are gone afterwards."""
        lr, beta = self.schedule()
        rows = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        adamw(
            [self.parameters[i] for i in rows],
            [g for p in self.parameters if (g := p.grad) is not None],
            [self.means[i] for i in rows],
            [self.squares[i] for i in rows],
            [],
            [self.counts[i] for i in rows],
            foreach=False,
            amsgrad=False,
            beta1=beta,
            beta2=0.999,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        for p in self.parameters:
            p.grad = None
        self.done += 1


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
