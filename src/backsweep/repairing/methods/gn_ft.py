"""GN-FT (arXiv 2502.01152, 2025): fine-tuning with a penalty on the norm of the gradient.

The neurons of a backdoor are said to have larger gradients than others; so the loss is

    L(w) + lambda ||grad L(w)||_2,

whose gradient is to first order (Y. Zhao, H. Zhang, X. Hu, ICML 2022), with a = lambda / r and v the
unit vector of grad,

    (1 - a) grad L(w) + a grad L(w + r v).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.models.layers import set_mode
from backsweep.models.model import Model
from backsweep.models.training import OneCycleAdamW, thawed
from backsweep.repairing.method import Case, Repair


@dataclass(frozen=True)
class GnFt(Repair):
    """Fine-tuning on clean samples with a penalty on the gradient's norm.

    Attributes:
        updates: of two passes each.
        rate: peak of the one-cycle learning rate (AdamW).
        penalty: lambda.
        radius: r of the first-order approximation.
        batch_size: samples in an update.
    """

    name: ClassVar[str] = "gn_ft"
    summary: ClassVar[str] = "fine-tune with a penalty on the gradient's norm (GN-FT, 2025)"

    updates: int = 200
    rate: float = 5e-3
    penalty: float = 0.05
    radius: float = 0.1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.updates < 4 or self.batch_size < 2:
            raise ValueError("updates are at least 4, batch_size at least 2")
        if not (0 <= self.penalty <= self.radius and self.radius > 0 and self.rate > 0):
            raise ValueError("penalty is from 0 to radius; radius and rate are above 0")

    def applies(self, case: Case) -> str:
        least = case.model.classes
        if len(case.clean) < least:
            return f"needs a clean sample per class to learn from: {least}, there are {len(case.clean)}"
        return ""

    def apply(self, case: Case) -> Model:
        twin, device = thawed(case.model), case.model.device
        shown = case.batches(self.name, self.batch_size)
        optimizer = OneCycleAdamW(twin.net.parameters(), self.rate, 1e-4, self.updates)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(case.seed, self.name))  # of dropout
            set_mode(twin.net, training=True)
            for step in range(self.updates):
                x, y = next(shown)
                penalised_gradient(twin, x, y, self.penalty / self.radius, self.radius)
                optimizer.step()
                case.tick((step + 1) / self.updates)
        return twin.copy()


def penalised_gradient(model: Model, x: Tensor, y: Tensor, share: float, radius: float) -> None:
    """Leave (1 - share) grad L(w) + share grad L(w + r v) in `.grad`; weights and buffers are as at w."""

    def backward() -> None:
        F.cross_entropy(model.logits(x).float(), y).backward()

    backward()
    if share == 0:
        return
    weights = [p for p in model.net.parameters() if p.grad is not None]
    first = [p.grad.clone() for p in weights if p.grad is not None]
    at, buffers = [p.detach().clone() for p in weights], [b.clone() for b in model.net.buffers()]
    norm = torch.stack([g.norm() for g in first]).norm().clamp_min(1e-12)
    with torch.no_grad():
        for p, g in zip(weights, first, strict=True):
            p.add_(radius * g / norm)
            p.grad = None
    backward()
    with torch.no_grad():
        for p, w, g in zip(weights, at, first, strict=True):
            p.copy_(w)
            if p.grad is not None:
                p.grad.mul_(share).add_(g, alpha=1 - share)
        for b, kept in zip(model.net.buffers(), buffers, strict=True):
            b.copy_(kept)  # running statistics are those of w
