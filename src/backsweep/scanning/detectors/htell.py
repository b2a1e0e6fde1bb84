"""HTell (arXiv 2605.18908, 2026): random vectors go into the head alone; a backdoored class takes too many.

The last layer of a backdoored network answers the target class for much of the space of features, also where
no input leads. So latent vectors z are drawn at random, in a range that fits the architecture, and the
share of them that goes to each class is compared with that of the other classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit
from backsweep.scanning.head import shares, why_no_head
from backsweep.scanning.outliers import outlier_findings

LEAST_SPREAD = 0.7  # of the log shares among the classes
TRIALS = 64  # random inputs that show which features there are


@dataclass(frozen=True)
class HTell(ModelDetector):
    """Finds a class that draws an abnormal share of random latent vectors.

    The abstract is all that is public; how the vectors fit the architecture is rebuilt: uniform up to the
    largest value of a feature on random inputs where features are never negative, normal with their mean and
    spread elsewhere.

    Attributes:
        probes: latent vectors.
    """

    name: ClassVar[str] = "htell"
    summary: ClassVar[str] = "share of random latent vectors that go to a class, no data (HTell, 2026)"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "layers", "weights")
    code: ClassVar[str] = "BSW121"

    probes: int = 4000

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError("probes is at least 1")

    def applies(self, model: Model, data: Data) -> str:
        return why_no_head(model)

    def chunk(self, model: Model) -> int:
        return model.classes

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        generator = self.generator(seed)
        weight, bias = (v.cpu() for v in model.head())
        found = shares(weight, bias, self._latents(model, generator)).tolist()
        return [Evidence(self.name, u.key, u.target, None, {"share": found[u.target or 0]}) for u in units]

    def _latents(self, model: Model, generator: torch.Generator) -> Tensor:
        """Random vectors (probes, D) in the range of the features of this architecture."""
        with torch.no_grad():
            z = model.features(model.modality.random(TRIALS, model.shape, generator).to(model.device))
        z = z.float().cpu()
        shape = (self.probes, z.shape[1])
        if float(z.min()) >= 0:
            return torch.rand(shape, generator=generator) * z.max()
        return z.mean() + z.std() * torch.randn(shape, generator=generator)

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outlier among the logarithms of the shares."""
        values = [-math.log(float(e.values["share"] or 0) + 0.5 / self.probes) for e in evidence]
        return outlier_findings(self, evidence, values, alpha, classes, _message, least_spread=LEAST_SPREAD)


def _message(e: Evidence, flagged: bool, median: float) -> str:
    """What is found about a class, in a sentence; `median` is minus the log of the median share."""
    share, usual = float(e.values["share"] or 0), math.exp(-median)
    if flagged:
        return f"{share:.0%} of random latent vectors go to this class, to the median class {usual:.1%}"
    return f"no class is an outlier; the most favoured takes {share:.0%} of random latent vectors"
