"""A classifier that abstains from what its guard flags, as a torch module."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Guarded(nn.Module):
    """A classifier with one class more: it abstains from inputs that are flagged.

    The rows of the other inputs are the model's logits and -inf for the last class; a flagged row is 0 there
    and -inf elsewhere. So `argmax` is the number of classes where it abstains, and softmax stays right.

    Args:
        inputs: checks inputs and brings them to the CPU.
        answers: logits (N, classes) of the model and scores (N,) of the guard for them.
        threshold: above which a score is flagged.
    """

    def __init__(
        self, inputs: Callable[[Tensor], Tensor], answers: Callable[[Tensor], tuple[Tensor, Tensor]],
        threshold: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs, self.answers, self.threshold = inputs, answers, threshold

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Log-scores (N, classes + 1) of inputs (N, *shape) in [0, 1], on the device of the inputs."""
        logits, scores = self.answers(self.inputs(x))
        out = torch.cat([logits, torch.full((len(logits), 1), -math.inf)], 1)
        abstain = torch.tensor([-math.inf] * logits.shape[1] + [0.0])
        out[scores > self.threshold] = abstain
        return out.to(x.device)
