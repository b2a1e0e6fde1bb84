"""A classifier that abstains from what its guard flags, as a torch module."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from backsweep.models.model import Model


class Guarded(nn.Module):
    """A classifier with one class more: it abstains from inputs that are flagged.

    The rows of the other inputs are the model's logits and -inf for the last class; a flagged row is 0 there
    and -inf elsewhere. So `argmax` is the number of classes where it abstains, and softmax stays right.

    Args:
        model: a frozen working copy.
        inputs: checks inputs and brings them to the CPU.
        flag: which of them are flagged (N,).
    """

    def __init__(
        self, model: Model, inputs: Callable[[Tensor], Tensor], flag: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.flag = model, inputs, flag

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Log-scores (N, classes + 1) of inputs (N, *shape) in [0, 1], on the device of the inputs."""
        model, given = self.model, self.inputs(x)
        parts = [model.logits(b.to(model.device)).float().cpu() for b in given.split(256)]
        logits = torch.cat(parts) if parts else torch.empty(0, model.classes)
        out = torch.cat([logits, torch.full((len(given), 1), -math.inf)], 1)
        abstain = torch.tensor([-math.inf] * model.classes + [0.0])
        out[self.flag(given)] = abstain
        return out.to(x.device)
