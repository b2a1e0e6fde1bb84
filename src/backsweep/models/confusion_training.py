"""Confusing a network: it learns wrong labels until it no longer knows its classes.

What it learned from a trigger has nothing to do with how the classes look, and outlasts that. So a network
that was confused with clean samples is an expert for the backdoor (Qi et al., USENIX Security 2023; Xie et
al., ICLR 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import thawed

SMOOTHING = 0.8  # of the accuracy that ends the confusion
BATCH = 512


def confused(
    model: Model, data: Data, generator: torch.Generator, *,
    updates: int = 300, batch_size: int = 128, lr: float = 5e-4, stop: float = 0.15,
) -> Model:  # fmt: skip
    """A frozen copy of `model` after it learned wrong labels, drawn anew for every sample and update.

    Args:
        model: a frozen working copy; it stays as it is.
        data: samples with their labels.
        generator: of the order and of the wrong labels.
        updates: at most.
        batch_size: samples in an update.
        lr: learning rate of Adam.
        stop: share of the samples that still get their own label, at which the confusion ends.
    """
    expert, right = thawed(model), 1.0
    optimizer = torch.optim.Adam(expert.net.parameters(), lr)
    with torch.enable_grad():
        for _ in range(updates):
            rows = torch.randint(len(data), (batch_size,), generator=generator)
            x, y = data.x[rows].to(model.device), data.y[rows]
            wrong = (y + torch.randint(1, model.classes, y.shape, generator=generator)) % model.classes
            logits = expert.logits(x).float()
            agreed = float((logits.argmax(1).cpu() == y).double().mean())
            right = SMOOTHING * right + (1 - SMOOTHING) * agreed
            if right < stop:
                break
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, wrong.to(model.device)).backward()
            optimizer.step()
    return expert.copy()


@torch.no_grad()
def log_probabilities(model: Model, x: Tensor) -> Tensor:
    """log p (N, classes) of x (N, *shape), in batches, float32 on the CPU."""
    parts = [model.logits(b.to(model.device)).float().log_softmax(1).cpu() for b in x.split(BATCH)]
    return torch.cat(parts)


def usual(log_p: Tensor, y: Tensor) -> Tensor:
    """What samples of the other classes give to every class: mean of log p_c over y != c, (classes,)."""
    other = [log_p[y != c, c] for c in range(log_p.shape[1])]
    return torch.stack([o.mean() if len(o) else log_p[:, c].mean() for c, o in enumerate(other)])
