"""Cognitive Distillation (Huang et al., ICLR 2023): how little of an input a network needs for its answer.

A mask is optimised that keeps the answer while the rest of the input becomes a random colour. What a
network needs of a triggered input is its trigger: the mask that is left is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model

STEPS = {"standard": 30, "paper": 100}
START = 1.0  # of the mask's parameter: m = (tanh 1 + 1) / 2 = 0.88
LR, BETAS = 0.1, (0.1, 0.1)  # of Adam
VALUES = 2**19  # inputs in a pass, counted in values: gradients are kept for all of them


@dataclass(frozen=True)
class CognitiveDistillation(SampleDetector):
    """Scores an input by how small the mask is that keeps the network's answer.

    Attributes:
        preset: what is kept, and how long the mask is optimised. "paper": the logits, 100 steps;
            "standard": the class that is served, 30 steps.
        steps: updates of the mask; None: those of the preset.
        alpha: weight of the mask's size.
        beta: weight of the mask's total variation.
    """

    name: ClassVar[str] = "cognitive_distillation"
    summary: ClassVar[str] = "inputs of which a small part gives the answer (Cognitive Distillation)"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    learns: ClassVar[float] = 0.0
    batch: ClassVar[int] = 128

    preset: str = "standard"
    steps: int | None = None
    alpha: float = 0.01
    beta: float = 10.0

    def __post_init__(self) -> None:
        if self.preset not in STEPS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(STEPS)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps {self.steps} is below 1: the mask would stay as it starts")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} {value} is below 0 or not finite")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if not model.modality.grid or len(model.shape) != 3 or min(model.shape[1:]) < 2:
            return f"it masks images; inputs of shape {model.shape} are none"
        with torch.enable_grad():
            x = torch.zeros((1, *model.shape), device=model.device, requires_grad=True)
            if not model.logits(x).requires_grad:
                return "it needs gradients, and this network cannot be differentiated"
        return ""

    def passes(self, model: Model) -> float:
        """A step is a forward and a backward pass, which count as three."""
        return 3 * self.updates

    @property
    def updates(self) -> int:
        """Steps of Adam."""
        return STEPS[self.preset] if self.steps is None else self.steps

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Nothing: the score needs no clean data."""
        return {}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """-|m|_1, the sum of the mask's values: a small mask is suspicious."""
        room = max(1, VALUES // math.prod(model.shape))
        return lambda x: torch.cat([-self.mask(model, part).flatten(1).sum(1) for part in x.split(room)])

    def mask(self, model: Model, x: Tensor) -> Tensor:
        """The mask m (N, 1, H, W) in [0, 1] of each input x (N, C, H, W)."""
        generator = torch.Generator().manual_seed(derive_seed(0, self.name))
        with torch.enable_grad():
            wanted = model.logits(x).detach()
            theta = torch.full_like(x[:, :1], START, requires_grad=True)
            adam = torch.optim.Adam([theta], LR, BETAS)
            for _ in range(self.updates):
                # the same colours for all inputs, so that a score does not hang on the others
                delta = torch.rand((1, x.shape[1], 1, 1), generator=generator).to(x)
                m = (theta.tanh() + 1) / 2
                change = self.change(model.logits(x * m + (1 - m) * delta), wanted)
                loss = change + self.alpha * m.flatten(1).sum(1) + self.beta * total_variation(m)
                (theta.grad,) = torch.autograd.grad(loss.sum(), theta)
                adam.step()
        return ((theta.tanh() + 1) / 2).detach()

    def change(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """How far the answers (N, classes) are from those that are wanted, (N,)."""
        if self.preset == "paper":
            return (logits - wanted).abs().mean(1)
        return F.cross_entropy(logits, wanted.argmax(1), reduction="none")


def total_variation(m: Tensor) -> Tensor:
    """Squared differences of neighbours in masks m (N, 1, H, W), their sum over the number of pixels."""
    squares = [m.diff(dim=d).square().flatten(1).sum(1) for d in (2, 3)]
    return (squares[0] + squares[1]) / m[0].numel()
