"""Perturbation spaces of text: a faint shift of every embedding, and few inserted tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor

from backsweep.inputs.space import Ball, per
from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import START, inserted, positions
from backsweep.inputs.text.tokens import Layout, Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.inputs.trigger import Trigger

STEEP = 8  # tokens of a place that a step raises
WHOLE = 0.2  # of a token, from which on it counts in a trigger


@dataclass(frozen=True)
class Drift(Ball):
    """One shift of the embedding of every token but padding, ||delta||_2.

    Budgets are shares of the mean distance of an embedding from the mean embedding.

    Attributes:
        layout: which tokens are padding.
        width: of an embedding.
        scale: that mean distance.
    """

    title: ClassVar[str] = "faint change of every token"
    brief: ClassVar[str] = "every token"

    layout: Layout = field(default_factory=Layout)
    width: int = 1
    scale: float = 1.0
    low: float = 0.02
    high: float = 4.0

    def range(self, x: Tensor) -> tuple[float, float]:
        return self.low * self.scale, self.high * self.scale

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, self.width), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return cast(Tensor, Changed(x, self.layout, shift=delta))

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return None


@dataclass(frozen=True)
class Few:
    """A few tokens before the text, each a mixture of the vocabulary: sum of the shares, in tokens.

    delta (count, k, V) >= 0, and the shares of a place sum to at most 1; the mean embedding is what is
    missing. Half a token in two places costs what one whole token does. Budgets are tokens.

    Attributes:
        tokens: the tokenizer; special tokens are never inserted.
        slots: k, places.
    """

    title: ClassVar[str] = "few tokens"
    brief: ClassVar[str] = "few tokens"

    tokens: Tokens | None = None
    slots: int = 3
    low: float = 0.05

    @property
    def layout(self) -> Layout:
        return self.tokens.layout if self.tokens is not None else Layout()

    def range(self, x: Tensor) -> tuple[float, float]:
        return self.low, float(self.slots)

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, self.slots, len(self.tokens or "")), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        at = positions(x, self.layout, START, self.slots)
        room = torch.full((self.slots,), self.tokens.plain if self.tokens is not None else 0, device=x.device)
        return cast(Tensor, Changed(inserted(x, room, at, self.layout), self.layout, at, delta))

    def steepen(self, grad: Tensor) -> Tensor:
        """The few tokens of every place that help most; towards those that hurt there is no way."""
        gain = (-grad).clamp_min(0)
        if self.tokens is not None and self.tokens.specials:
            gain[..., sorted(self.tokens.specials)] = 0
        best = gain.topk(min(STEEP, gain.shape[-1]), dim=-1)
        return -torch.zeros_like(gain).scatter(-1, best.indices, best.values.square())

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).sum(1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        each = _onto_simplex(delta.flatten(0, 1), 1.0).reshape(delta.shape)
        return _onto_simplex(each.flatten(1), budget).reshape(delta.shape)

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        share, token = delta.max(dim=-1)
        kept = token[share >= min(WHOLE, float(share.max()))]
        if self.tokens is None or float(share.max()) <= 0:
            return None
        return Insert.of(self.tokens, kept.tolist(), target, source)


def _onto_simplex(v: Tensor, budget: float) -> Tensor:
    """The nearest rows >= 0 whose sums are at most the budget."""
    v = v.clamp_min(0)
    most = min(v.shape[1], 64)  # more are never left: every step raises few
    top = v.topk(most, dim=1).values
    count = torch.arange(1, most + 1, device=v.device)
    tau = (top.cumsum(1) - budget) / count
    last = (top > tau).sum(1, keepdim=True).clamp_min(1) - 1
    cut = tau.gather(1, last).clamp_min(0)
    kept = (v - cut).clamp_min(0)
    total = kept.sum(1)
    return kept * per((budget / total.clamp_min(1e-12)).clamp(max=1), kept)
