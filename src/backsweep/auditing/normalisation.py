"""What the BatchNorm layers of a network expect, and how far samples lie outside it.

A BatchNorm knows mean and variance of every channel over the training set. FLARE (Hou et al., TIFS 2025)
looks for poison there. Below, z = (a - mean) / sd of what goes in, before scale and shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.models.layers import BATCH_NORMS, Calls
from backsweep.models.model import Model

NORMALISATIONS = BATCH_NORMS - {"_native_batch_norm_legit"}  # one of its variants has no running statistics
EPS = 1e-5  # of variances
BATCH = 256
What = Callable[[Tensor, Tensor], Tensor]  # of z (N, C, P) and the deviations (C,)


@torch.no_grad()
def normalised(model: Model, x: Tensor, what: What) -> list[Tensor]:
    """What `what` makes of the inputs of every BatchNorm with running statistics, on the CPU."""
    seen: list[Tensor] = []

    def told(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places = (0, 1, 2) if func is F.batch_norm else (0, 3, 4)
        given: list[Any] = [
            kwargs.get(name, args[i] if i < len(args) else None)
            for name, i in zip(("input", "running_mean", "running_var"), places, strict=True)
        ]
        a, mean, var = given
        if mean is not None and var is not None and a.ndim > 1 and len(a) == len(x):
            deviation = (var + EPS).sqrt()
            z = (a.reshape(*a.shape[:2], -1) - mean[:, None]) / deviation[:, None]
            seen.append(what(z, deviation))

    with Calls(NORMALISATIONS, told):
        model.logits(x.to(model.device))
    return [v.float().cpu() for v in seen]


def likelihood(z: Tensor, deviation: Tensor) -> Tensor:
    """LL_l (N, 1) of one layer from z (N, C, P): the least log-likelihood over channels and positions."""
    density = -z.square() / 2 - deviation.log()[:, None] - math.log(2 * math.pi) / 2
    return density.flatten(1).amin(1, keepdim=True)


def remotest(z: Tensor, _deviation: Tensor) -> Tensor:
    """r_lc (N, C) of one layer: the largest |z| over the positions."""
    return z.abs().amax(2)


def excess(model: Model, x: Tensor) -> Tensor | None:
    """log(1 + r) (N, C) of every channel of every layer, r the largest |z|; None without BatchNorm."""
    layers = outlying(model, x, remotest)
    return torch.cat(layers, 1).log1p() if layers else None


def outlying(
    model: Model, x: Tensor, what: What, tick: Callable[[float], None] = lambda _: None
) -> list[Tensor]:
    """What `what` makes of samples x (N, ...) in every layer, each (N, ...) on the CPU; [] without BatchNorm.

    Args:
        tick: told which share is done.
    """
    parts, seen = x.split(BATCH), []
    for k, part in enumerate(parts):
        seen.append(normalised(model, part, what))
        tick((k + 1) / len(parts))
    return [torch.cat(layer) for layer in zip(*seen, strict=True)]
