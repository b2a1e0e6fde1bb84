"""The search for a trigger in a learnt space (UNICORN, 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.image.learned_space import Transformed, blend, box, inside, ssim, unet
from backsweep.models.model import Model

BETAS = (0.5, 0.9)  # of Adam
SUCCESS, STEALTH, SPREAD, SHARE = 0.9, 0.15, 1.0, 0.15  # bounds; SHARE of both masks


def spread_of(z: Tensor, mask: Tensor) -> Tensor:
    """Sum of the standard deviations of masked features z (N, D), relative to the mask's L1 norm."""
    return z.std(0, correction=min(1, len(z) - 1)).sum() / mask.sum()


@dataclass
class Weights:
    """Dynamic weights: 1 at first, after every epoch the violation of a bound relative to it."""

    success: float = 1.0
    stealth: float = 1.0
    spread: float = 1.0


class Search:
    """P, Q, m, t and the feature mask m' of one class, while they are optimised."""

    def __init__(self, model: Model, nets: Sequence[Tensor], size: tuple[int, int], target: int) -> None:
        self.model, self.size, self.target = model, size, target
        self.weight, self.bias = model.head()
        self.into, self.back = (w.clone().requires_grad_() for w in nets)
        one = torch.ones(model.shape, device=model.device)
        self.mask, self.pattern = one.requires_grad_(), torch.zeros_like(one).requires_grad_()
        self.feature_mask = torch.ones(self.weight.shape[1], device=model.device).requires_grad_()
        self.nets = torch.optim.Adam([self.into, self.back], lr=1e-3, betas=BETAS)
        self.space = torch.optim.Adam([self.mask, self.pattern], lr=0.1, betas=BETAS)
        self.features = torch.optim.Adam([self.feature_mask], lr=0.1, betas=BETAS)
        self.w = Weights()

    def mixed(self, z: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Logits of m' * z(x~) + (1 - m') * z(other clean samples)."""
        return F.linear(mask * z + (1 - mask) * other, self.weight, self.bias)

    def loss(self, x: Tensor, new: Tensor, other: Tensor, anchor: Tensor, least: float) -> tuple[Tensor, ...]:
        """Misclassification and the broken constraints; success, 1 - SSIM and feature spread as measured."""
        z, f = self.model.features(new), box(self.feature_mask.detach())
        logits = self.mixed(z, other, f)
        success = (logits.argmax(1) == self.target).float().mean()
        stealth = 1 - ssim(new, x)
        spread = spread_of(z * f, f)
        cosine = torch.cosine_similarity(z.mean(0), anchor, dim=0)
        loss = cosine * (cosine >= least) + 10 * (1 + self.w.spread) * spread * (spread > SPREAD)
        loss = loss + 10 * (1 + self.w.stealth) * stealth * (stealth > STEALTH)
        if success < SUCCESS:
            goal = torch.full((len(x),), self.target, device=x.device)
            loss = loss + (1 + self.w.success) * F.cross_entropy(logits, goal)
        return loss, success, stealth.detach(), spread.detach()

    def step(self, x: Tensor, other: Tensor, anchor: Tensor, inner: int) -> list[float]:
        """One update of P and Q, then `inner` of m and t, then as many of m'; what was measured last."""
        mask, pattern = box(self.mask.detach()), box(self.pattern.detach())
        z = unet(self.into, x, *self.size)
        both = torch.cat([blend(z, mask, pattern, z.min(), z.max()), z])
        new, same = unet(self.back, both, *self.size).chunk(2)
        loss, *seen = self.loss(x, inside(new), other, anchor, 0.0)
        self._update(self.nets, loss + 200 * F.mse_loss(same, x))
        with torch.no_grad():
            z = unet(self.into, x, *self.size)
        for _ in range(inner):
            mask, pattern = box(self.mask), box(self.pattern)
            new = inside(unet(self.back.detach(), blend(z, mask, pattern, z.min(), z.max()), *self.size))
            loss, *seen = self.loss(x, new, other, anchor, 0.5)
            self._update(self.space, loss + 10 * mask.sum() * (mask.mean() > SHARE))
        with torch.no_grad():
            features = self.model.features(new)
        goal = torch.full((len(x),), self.target, device=x.device)
        for _ in range(inner):
            f = box(self.feature_mask)
            loss = F.cross_entropy(self.mixed(features, other, f), goal)
            self._update(self.features, loss + f.sum() * (f.mean() > SHARE))
        return [float(v) for v in seen]

    def _update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def trigger(self, x: Tensor) -> Transformed:
        """What was found so far; P's values are scaled as on x."""
        z = unet(self.into, x, *self.size)
        mask, pattern = box(self.mask).cpu(), box(self.pattern).cpu()
        nets = (self.into.detach().cpu().clone(), self.back.detach().cpu().clone())
        ends = (float(z.min()), float(z.max()))
        return Transformed(self.target, None, *nets, *self.size, mask, pattern, *ends, x[0].cpu().clone())

    @torch.no_grad()
    def measure(self, trigger: Transformed, x: Tensor) -> dict[str, float]:
        """How well it works on x and what it costs."""
        new, f = trigger(x), box(self.feature_mask)
        z, other = self.model.features(new), self.model.features(x).roll(1, 0)
        plain, mixed = F.linear(z, self.weight, self.bias), self.mixed(z, other, f)
        goal = torch.full((len(x),), self.target, device=x.device)
        return {
            "success": float((plain.argmax(1) == self.target).float().mean()),
            "mixed_success": float((mixed.argmax(1) == self.target).float().mean()),
            "error": float(F.cross_entropy(mixed, goal)),
            "dissimilarity": float(1 - ssim(new, x)),
            "change": float((new - x).flatten(1).norm(dim=1).mean()),
            "spread": float(spread_of(z * f, f)),
            "mask_share": float(box(self.mask).mean()),
            "feature_share": float(f.mean()),
        }
