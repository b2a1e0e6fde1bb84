"""The one training loop: the zoo, the demo, and later the repairs use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.data import Data

Augment = Callable[[Tensor, torch.Generator], Tensor]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def shift(x: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """Random translation by up to `most` pixels, one for a batch, edges repeated."""
    padded = F.pad(x, (most, most, most, most), mode="replicate")
    top, left = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    return padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the data.
        lr: peak of the one-cycle learning rate (AdamW).
        batch_size: samples in an update.
        weight_decay: AdamW's decoupled decay.
        augment: None, or "shift" for random translations.
        bf16: bfloat16 autocast and channels_last, where it pays.
    """

    epochs: int = 5
    lr: float = 2e-3
    batch_size: int = 128
    weight_decay: float = 1e-4
    augment: str | None = None
    bf16: bool = True


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The usual loss of a batch."""
    return F.cross_entropy(net(x).float(), y)


def fit(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    loss_of: Loss | None = None,
) -> nn.Module:
    """Train `net` in place on `data` and return it in evaluation mode.

    The order of the samples, the augmentation and dropout follow `seed` alone; the global random
    state is as it was when this returns.

    Args:
        net, data, recipe, seed: what is trained on what, and how.
        on_epoch: told the number and the mean loss of every epoch.
        loss_of: loss of (net, x, y) for a batch, cross-entropy by default. An attack that controls the
            training changes the batch or adds terms here.
    """
    loss_of = loss_of or cross_entropy
    device = next(net.parameters()).device
    augment: Augment | None = {"shift": shift, None: None}[recipe.augment]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        steps = recipe.epochs * -(-len(data) // recipe.batch_size)
        optimizer = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
        for epoch in range(recipe.epochs):
            total = 0.0
            for rows in torch.randperm(len(data), generator=generator).split(recipe.batch_size):
                x, y = data.x[rows], data.y[rows].to(device)
                if augment is not None:
                    x = augment(x, generator)
                x = x.to(device).contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                    loss = loss_of(net, x, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
            if on_epoch is not None:
                on_epoch(epoch, total / len(data))
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(steps)  # updates, however many forward passes the loss takes in each
    return net.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
