"""Adversarial Neuron Pruning, ANP (Wu and Wang, NeurIPS 2021): prune what is sensitive to noise on its gain.

A backdoored network falls into its target class soon when its neurons are disturbed; the neurons that
carry the backdoor are the ones that do it. Masks m of the neurons are learned under the worst noise,

    min_{m in [0,1]^n}  alpha L(m w, b) + (1 - alpha) max_{|delta|, |xi| <= eps} L((m + delta) w, (1 + xi) b)

and neurons with a small mask are pruned. w and b are gamma and beta of the normalisation that follows
a layer, or the layer's own weight and bias where none does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.inversion.loop import batches
from backsweep.models.model import Model
from backsweep.models.neurons import Layer, layers, pruned, with_weights
from backsweep.repairing.method import Case, Repair, strongest

PRESETS = {"standard": (60, 64), "paper": (2000, 128)}  # updates, samples in each
LR = 0.2  # of the masks
# Where a BatchNorm's statistics stay fixed, noise multiplies from layer to layer and the gradient with
# it, and at LR all masks fall to 0 at once: the learning rate then, and the longest gradient.
FIXED_LR, LONGEST = 0.002, 1.0
MOMENTUM = 0.9


@dataclass(frozen=True)
class Anp(Repair):
    """Prunes the neurons that adversarial noise on their gain and offset finds.

    Attributes:
        preset: "paper" is the authors' 2000 updates of 128 samples; "standard" fewer and smaller ones.
        eps: bound of the noise, as a share of a gain and an offset.
        alpha: weight of the loss without noise; the rest is the loss under noise.
        updates: of the masks; None: those of the preset.
        loss: accuracy on the held-out samples that may be given up.
    """

    name: ClassVar[str] = "anp"
    summary: ClassVar[str] = "prunes neurons sensitive to adversarial noise (ANP, 2021)"

    preset: str = "standard"
    eps: float = 0.4
    alpha: float = 0.2
    updates: int | None = None
    loss: float = 0.03

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not (self.eps >= 0 and 0 <= self.alpha <= 1 and (self.updates is None or self.updates >= 1)):
            raise ValueError("eps is not negative, alpha lies in [0, 1], updates is at least 1")

    def applies(self, case: Case) -> str:
        if not layers(case.model):
            return "it needs neurons to prune: the network has no layer with weights before its head"
        return ""

    def apply(self, case: Case) -> Model:
        return strongest(case, pruned(case.model, self.masks(case)), self.loss)

    def masks(self, case: Case) -> dict[Layer, Tensor]:
        """The learned masks m of all neurons, (D,) for each layer."""
        model, data = case.model, case.clean
        usual, batch = PRESETS[self.preset]
        updates = self.updates or usual
        parts, weights = layers(model), dict(model.net.named_parameters())
        masks = [torch.ones(len(weights[p.weight]), device=model.device, requires_grad=True) for p in parts]
        fixed = self.preset == "standard" and any(p.variance for p in parts)
        lr, longest = (FIXED_LR, LONGEST) if fixed else (LR, math.inf)
        optimizer = torch.optim.SGD(masks, lr, MOMENTUM)
        draw = case.generator(self.name, "noise")
        queue = batches(torch.arange(len(data)), derive_seed(case.seed, self.name, "order"), batch)

        def loss(noise: Sequence[tuple[Tensor, Tensor]] | None) -> Tensor:
            shaken = _shaken(weights, parts, masks, noise)
            return F.cross_entropy(with_weights(model, shaken).logits(x).float(), y)

        for k in range(updates):
            rows = next(queue)
            x, y = data.x[rows].to(model.device), data.y[rows].to(model.device)
            noise = [_uniform(m, self.eps, draw) for m in masks]
            flat = [n for pair in noise for n in pair]
            # one step of the size of the whole range, up the sign of the gradient
            slopes = torch.autograd.grad(loss(noise), flat, allow_unused=True)
            for n, slope in zip(flat, slopes, strict=True):
                if slope is not None:
                    n.data.add_(self.eps * slope.sign()).clamp_(-self.eps, self.eps)
            total = self.alpha * loss(None) + (1 - self.alpha) * loss(noise)
            for m, slope in zip(masks, torch.autograd.grad(total, masks), strict=True):
                m.grad = slope
            nn.utils.clip_grad_norm_(masks, longest)
            optimizer.step()
            for m in masks:
                m.data.clamp_(0, 1)
            if k % 10 == 9:
                case.tick((k + 1) / updates)
        return {p: m.detach() for p, m in zip(parts, masks, strict=True)}


def _shaken(
    weights: Mapping[str, Tensor],
    parts: Sequence[Layer],
    masks: Sequence[Tensor],
    noise: Sequence[tuple[Tensor, Tensor]] | None,
) -> dict[str, Tensor]:
    """(m + delta) w and (1 + xi) b of every layer; m w and b where there is no noise."""
    found = {}
    for i, (part, m) in enumerate(zip(parts, masks, strict=True)):
        delta, xi = noise[i] if noise else (torch.zeros_like(m), torch.zeros_like(m))
        gain, offset = part.gains
        w = weights[gain].detach()
        found[gain] = (m + delta).reshape(-1, *[1] * (w.ndim - 1)) * w
        if offset:
            found[offset] = (1 + xi) * weights[offset].detach()
    return found


def _uniform(like: Tensor, eps: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """delta and xi of a layer's neurons, drawn from [-eps, eps]."""
    a, b = (eps * (2 * torch.rand(2, len(like), generator=draw) - 1)).to(like.device)
    return a.requires_grad_(), b.requires_grad_()
