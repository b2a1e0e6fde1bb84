"""The input filter of Neural Cleanse (Wang et al., IEEE S&P 2019, section VI): a profile of neurons.

An input that carries the trigger raises the neurons that the recovered trigger raises. The mean
activation of those few neurons tells it from a clean input, while the network runs.
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
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.model import Model

BATCH = 256
LEAST_SPREAD = 0.01  # of what the trigger adds: neurons that clean inputs leave at 0 have no spread


@dataclass(frozen=True)
class ActivationFilter(SampleDetector):
    """Scores an input by the neurons that recovered triggers raise most.

    Attributes:
        share: of the penultimate neurons that make the profile of a trigger, at least one neuron.
    """

    name: ClassVar[str] = "activation_filter"
    summary: ClassVar[str] = "inputs that raise a recovered trigger's neurons (Neural Cleanse)"
    needs: ClassVar[tuple[str, ...]] = ("layers",)

    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} is not in (0, 1]")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if not triggers:
            return "it needs a recovered trigger; the scan recovered none"
        learned, rest = self.halves(data)
        if not len(rest) or not all(bool(acted_on(t, learned.y, model.classes).any()) for t in triggers):
            return "no clean sample is of a class that a recovered trigger acts on"
        try:
            with torch.no_grad():
                model.features(learned.x[:1].to(model.device))
        except BadInput as e:
            return str(e)
        return ""

    def passes(self, model: Model) -> float:
        return 1

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The neurons of each trigger's profile, and what clean inputs give them on average."""
        clean = features(model, data.x)
        profiles, means, spreads = [], [], []
        for trigger in triggers:
            rows = acted_on(trigger, data.y, model.classes)
            gap = features(model, data.x[rows], trigger).mean(0) - clean[rows].mean(0)
            neurons = gap.argsort(descending=True, stable=True)[: max(1, round(self.share * len(gap)))]
            usual = clean[:, neurons].mean(1)
            profiles.append(neurons)
            means.append(usual.mean())
            least = max(LEAST_SPREAD * float(gap[neurons].mean()), 1e-6)
            spreads.append(usual.std(correction=0).clamp_min(least))
        return {
            "profiles": torch.stack(profiles),
            "means": torch.stack(means),
            "spreads": torch.stack(spreads),
        }

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """Mean activation of each profile's neurons, in standard deviations of clean inputs; the largest."""
        profiles, means, spreads = (learned[k].to(model.device) for k in ("profiles", "means", "spreads"))

        def score(x: Tensor) -> Tensor:
            activity = model.features(x).float()[:, profiles].mean(2)
            return ((activity - means) / spreads).amax(1)

        return score


@torch.no_grad()
def features(model: Model, x: Tensor, trigger: Trigger | None = None) -> Tensor:
    """Penultimate activations (N, D) on the CPU, of triggered inputs if a trigger is given."""
    parts = []
    for batch in x.split(BATCH):
        stamped = batch if trigger is None else trigger(batch)
        parts.append(model.features(stamped.to(model.device)).float().cpu())
    return torch.cat(parts)
