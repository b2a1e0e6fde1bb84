"""A classifier that abstains from what its guard flags, as a torch module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from backsweep.guarding.guard import Guard


class Guarded(nn.Module):
    """A classifier with one class more: it abstains from inputs that are flagged.

    The rows of the other inputs are the model's logits and -inf for the last class; a flagged row is 0 there
    and -inf elsewhere. So `argmax` is the number of classes where it abstains, and softmax stays right.

    Args:
        guard: of the model that answers.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Log-scores (N, classes + 1) of inputs (N, *shape) in [0, 1], on the device of the inputs."""
        logits, scores = self.guard.answers(self.guard.inputs(x))
        out = torch.cat([logits, torch.full((len(logits), 1), -math.inf)], 1)
        abstain = torch.tensor([-math.inf] * logits.shape[1] + [0.0])
        out[scores > self.guard.threshold] = abstain
        return out.to(x.device)
