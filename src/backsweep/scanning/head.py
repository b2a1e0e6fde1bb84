"""What the weights of the head say about its classes, in no time and without data.

For a head of one affine layer, logits = W z + b with W (C, D) and b (C,).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.models.model import Model


def why_no_head(model: Model) -> str:
    """Why the head of a network cannot be looked at, "" when it can."""
    try:
        model.head()
    except BadInput as e:
        return str(e)
    return ""


def positive_sums(weight: Tensor) -> Tensor:
    """Sum of the positive weights of every row, (C,): how far any features at all can raise a class."""
    return weight.clamp_min(0).sum(1)


def indicators(weight: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
    """Static indicators of every class, (C,) each, large for a class that the head favours."""
    unit = F.normalize(weight, dim=1)
    return {
        "positive_sum": positive_sums(weight),
        "mean": weight.mean(1),
        "norm": weight.norm(dim=1),
        "largest": weight.amax(1),
        "opposed": -(unit @ unit.sum(0) - 1),  # minus the sum of cosines to the other rows
        "bias": bias,
    }


def shares(weight: Tensor, bias: Tensor, latents: Tensor) -> Tensor:
    """Share of latent vectors (N, D) that the head gives to each class, (C,)."""
    answers = (latents @ weight.T + bias).argmax(1)
    return torch.bincount(answers, minlength=len(weight)).double() / len(latents)
