"""FT-SAM (Zhu et al., ICCV 2023): fine-tuning with adaptive sharpness-aware minimisation.

Plain fine-tuning starts in a minimum that a backdoored network need not leave, as its clean loss is
low. FT-SAM asks for weights whose neighbours are as good,

    min_w  max_{||T_w^-1 e||_2 <= rho}  L(w + e),   T_w = diag(|w_1|, ..., |w_d|),

so large weights, such as those of the neurons that a backdoor lives on, are shaken the most. To
first order the worst neighbour is e = rho T_w^2 g / ||T_w g||_2, g the gradient at w. An update takes
two passes: the first finds e, the second the gradient at w + e, which is applied at w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.models.layers import set_mode
from backsweep.models.model import Model
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, affordable

# Updates, and the attempts: share of the updates, learning rate.
RECIPES: dict[str, tuple[int, tuple[tuple[float, float], ...]]] = {
    "standard": (200, ((1.0, 0.2), (0.5, 0.1))),
    "paper": (2000, ((1.0, 0.01),)),
}
CLIP = 1.0  # longest gradient of `standard`; without it rates this high can ruin a network


@dataclass(frozen=True)
class FtSam(Repair):
    """Adaptive sharpness-aware fine-tuning on clean samples.

    Attributes:
        preset: "paper" makes many updates with a low learning rate. "standard" makes a tenth of them
            with a high one and gradients shortened to 1; where that costs accuracy it starts again,
            with half the updates and half the rate.
        rho: radius of the neighbourhood, relative to the weights.
        updates: gradient steps of two passes each; None: 2000 and 200.
        loss: how much held-out accuracy the first attempt may cost.
        batch_size: samples in an update.
        smoothing: of the labels.
        weight_decay: pulls all weights towards 0.
    """

    name: ClassVar[str] = "ft_sam"
    summary: ClassVar[str] = "fine-tune to weights whose neighbours are as good (FT-SAM, 2023)"

    preset: str = "standard"
    rho: float = 2.0
    updates: int | None = None
    loss: float = 0.03
    batch_size: int = 128
    smoothing: float = 0.1
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.preset not in RECIPES:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(RECIPES)}")
        if self.batch_size < 1 or (self.updates is not None and self.updates < 2):
            raise ValueError("batch_size is at least 1, updates at least 2")
        if self.rho < 0 or not 0 <= self.loss <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError("rho is not negative, loss between 0 and 1, smoothing at least 0 and below 1")

    def applies(self, case: Case) -> str:
        least, held_out = case.model.classes, len(case.held_out)
        if len(case.clean) < least:
            return (
                f"needs a clean sample per class to learn from: {least} at least, there are {len(case.clean)}"
            )
        if self.preset == "standard" and held_out < least:
            return f"needs held-out samples to choose its strength by: {least} at least, there are {held_out}"
        return ""

    def apply(self, case: Case) -> Model:
        updates, attempts = RECIPES[self.preset]
        updates = self.updates or updates
        tries = [partial(self._tuned, updates=round(share * updates), rate=rate) for share, rate in attempts]
        return affordable(case, tries, self.loss)

    def _tuned(self, case: Case, updates: int, rate: float) -> Model:
        """The suspect after so many updates."""
        twin, device = thawed(case.model), case.model.device
        weights, shown = list(twin.net.parameters()), case.batches(self.name, self.batch_size)
        optimizer = torch.optim.SGD(weights, rate, 0.9, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=updates)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(case.seed, self.name))  # of dropout
            set_mode(twin.net, training=True)
            for step in range(updates):
                x, y = next(shown)
                optimizer.zero_grad(set_to_none=True)
                sharp_gradient(twin, x, y, self.rho, self.smoothing)
                if self.preset == "standard":
                    torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimizer.step()
                schedule.step()
                case.tick((step + 1) / updates)
        return twin.copy()


def sharp_gradient(model: Model, x: Tensor, y: Tensor, rho: float, smoothing: float) -> None:
    """Leave the gradient at the worst neighbour in `.grad`; weights and buffers are as after a pass at w."""

    def backward() -> None:
        F.cross_entropy(model.logits(x).float(), y, label_smoothing=smoothing).backward()

    backward()
    weights = [p for p in model.net.parameters() if p.grad is not None]
    at, buffers = [p.detach().clone() for p in weights], [b.clone() for b in model.net.buffers()]
    with torch.no_grad():
        for p, e in zip(weights, neighbour(weights, rho), strict=True):
            p.add_(e)
            p.grad = None
    backward()
    with torch.no_grad():
        for p, w in zip(weights, at, strict=True):
            p.copy_(w)
        for b, kept in zip(model.net.buffers(), buffers, strict=True):
            b.copy_(kept)  # running statistics are those of w, not of a shaken network


def neighbour(weights: Sequence[Tensor], rho: float) -> list[Tensor]:
    """e = rho T_w^2 g / ||T_w g||_2, the step to the worst neighbour, from weights and their gradients."""
    scaled = [p.detach().abs() * p.grad for p in weights if p.grad is not None]  # T_w g
    norm = torch.stack([s.norm() for s in scaled]).norm().clamp_min(1e-12)
    return [rho * p.detach().abs() * s / norm for p, s in zip(weights, scaled, strict=True)]
