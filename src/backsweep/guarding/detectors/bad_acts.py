"""BadActs (Yi et al., ACL Findings 2024): inputs under which neurons leave the range that clean inputs keep.

With z the features that enter a layer, pooled over places or tokens, and mu_i, sigma_i of neuron i over
clean samples,

    score(x) = share of the neurons with |z_i(x) - mu_i| > delta sigma_i ,

one minus the authors' activation score. It asks nothing of the input, so it takes every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import pool
from backsweep.models.model import Model

FLOOR = 1e-3  # of the mean spread: what is constant over clean samples is never quite so


@dataclass(frozen=True)
class BadActs(SampleDetector):
    """Scores an input by the share of neurons that it drives out of their clean range.

    Attributes:
        delta: half width of a range in standard deviations.
        layer: whose inputs are the neurons, counted from the end: -1 is the head, -2 the affine operation
            before it.
    """

    name: ClassVar[str] = "bad_acts"
    summary: ClassVar[str] = "inputs that drive neurons out of their clean range (BadActs, 2024)"
    needs: ClassVar[tuple[str, ...]] = ("layers",)

    delta: float = 3.0
    layer: int = -1

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta {self.delta} is not above 0")
        if self.layer >= 0:
            raise ValueError(f"layer {self.layer} is counted from the end: -1 is the head")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if self.layer < -1 and model.layers() + 1 < -self.layer:
            return f"layer {self.layer} is not there: the network has {model.layers() + 1} affine operations"
        if len(self.halves(data)[0]) < 2:
            return "it needs two clean samples to learn from"
        try:
            with torch.no_grad():
                self.neurons(model, data.x[:1].to(model.device))
        except BadInput as e:
            return str(e)
        return ""

    def passes(self, model: Model) -> float:
        return 1

    def neurons(self, model: Model, x: Tensor) -> Tensor:
        """Features (N, D) of inputs x (N, *shape)."""
        if self.layer == -1:
            return model.features(x).float()
        return pool(model.entering(x, model.layers() + 1 + self.layer)).float()

    @torch.no_grad()
    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Mean and standard deviation of every neuron (D,)."""
        parts = [self.neurons(model, x.to(model.device)).cpu() for x in data.x.split(self.batch)]
        z = torch.cat(parts)
        return {"mean": z.mean(0), "spread": z.std(0)}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        mean, spread = (learned[k].to(model.device) for k in ("mean", "spread"))
        least = (FLOOR * spread.mean()).clamp_min(1e-12)
        wide = self.delta * torch.maximum(spread, least)

        def score(x: Tensor) -> Tensor:
            return ((self.neurons(model, x) - mean).abs() > wide).float().mean(1)

        return score
