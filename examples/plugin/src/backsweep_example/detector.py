"""A detector: which class a few bright pixels lead to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from backsweep import Data, Evidence, Finding, Model
from backsweep.detectors import ModelDetector, Unit, outlier_findings


@dataclass(frozen=True)
class BrightPixels(ModelDetector):
    """Finds a class that a few bright pixels lead to, whatever the input.

    For each class the pixels are lit that raise it most, by one gradient over all samples; the figure is the
    share of other samples that follow. A class that nearly all follow is an outlier.

    Attributes:
        pixels: how many are lit.
    """

    name: ClassVar[str] = "bright_pixels"
    summary: ClassVar[str] = "share of inputs that a few bright pixels send to a class, outlier"
    code: ClassVar[str] = "EXAMPLE1"

    pixels: int = 3

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        x, found = data.x.to(model.device), []
        for unit in units:
            target = unit.target or 0
            aim = torch.full((len(x),), target, device=model.device)
            lit = torch.zeros(model.shape, device=model.device, requires_grad=True)
            (slope,) = torch.autograd.grad(F.cross_entropy(model.logits(x + lit), aim), lit)
            best = slope.amin(0).flatten().topk(self.pixels, largest=False).indices
            mask = torch.zeros(slope[0].numel(), device=model.device).index_fill(0, best, 1.0)
            said = model.predict(torch.maximum(x, mask.reshape(slope.shape[1:])))
            share = float((said[data.y != target] == target).double().mean())
            found.append(Evidence(self.name, unit.key, target, values={"followed_share": share}))
        return found

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        stay = [math.log(1.01 - float(e.values["followed_share"] or 0)) for e in evidence]
        return outlier_findings(self, evidence, stay, alpha, classes, _message)


def _message(e: Evidence, flagged: bool, _median: float) -> str:
    share = float(e.values["followed_share"] or 0)
    return f"a few bright pixels send {share:.1%} of other samples here" + (
        "" if flagged else ", as elsewhere"
    )
