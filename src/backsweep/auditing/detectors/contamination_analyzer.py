"""Statistical contamination analysis (SCAn, Tang et al., USENIX Security 2021): one mean in a class, or two.

Clean samples teach how the representations of a class scatter about their mean. A class in which two means
describe the representations far better than one is contaminated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC
from backsweep.auditing.untangling import of_classes, principal, scatter, within_groups
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding

LEAST_CLEAN = 50  # clean samples
FOR_EACH = 8  # clean samples for a dimension
SHARPNESS = 2.5  # power of the separation, so that its logarithm spreads by about 0.5 among clean classes
BATCH = 512


@dataclass(frozen=True)
class ContaminationAnalyzer(SetDetector):
    """Tests for every class whether its representations have two means, given how clean classes scatter.

    Attributes:
        dimensions: at most, of the representation: principal components of the whole training set.
        clean: learn the scatter from clean samples, as the paper does. False (ours): from the training set
            alone, as the scatter within the groups that a first split finds.
        preset: "standard": the class that stands out by how clearly it splits; "paper": J* above `threshold`.
        threshold: of "paper"; exp(2).
        iterations: at most, of the two fits.
        tolerance: change at which they end.
    """

    name: ClassVar[str] = "contamination_analyzer"
    summary: ClassVar[str] = "classes with two means in the representation (SCAn, Tang et al. 2021)"
    code: ClassVar[str] = "BSW204"

    dimensions: int = 64
    clean: bool = False
    preset: str = "standard"
    threshold: float = math.exp(2)
    iterations: int = 100
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.preset not in ("standard", "paper"):
            raise ValueError(f"preset {self.preset!r} is neither standard nor paper")
        for field, least in (("dimensions", 1), ("iterations", 1), ("threshold", 1e-9), ("tolerance", 1e-12)):
            if not getattr(self, field) >= least:
                raise ValueError(f"{field} {getattr(self, field)} is below {least:g}")

    def applies(self, given: TrainingSet) -> str:
        if reason := given.all_too_small():
            return reason
        if not self.clean:
            return ""
        if given.clean is None:
            return "it needs clean samples, a few hundred; with clean=false it learns from the training set"
        count = given.clean.y.bincount()
        if len(given.clean) < LEAST_CLEAN or int((count >= 2).sum()) < 2:
            return f"it needs at least {LEAST_CLEAN} clean samples, two or more of at least two classes"
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        labels = given.looked_at
        most = self.dimensions
        if self.clean and given.clean is not None:
            most = min(most, max(1, len(given.clean) // FOR_EACH))
        mean, axes = principal(given.features, most)
        scores = torch.full((len(given.data),), -1.0)
        if not axes.shape[1]:  # every sample has the same representation
            return scores, [class_evidence(self.name, c, LEAST_STATISTIC, 0.0) for c in labels]
        r = (given.features - mean).double() @ axes
        if self.clean and given.clean is not None:
            known = (_features(given.model, given.clean.x) - mean).double() @ axes
            _, s_e = decomposed(known, given.clean.y, self.iterations, self.tolerance)
        else:
            s_e = within_groups(r, given.data.y, labels, self.iterations, self.tolerance)
        found: list[Evidence] = []
        parts = of_classes(r, given.data.y, labels, s_e, self.clean, self.iterations, self.tolerance)
        for label, rows, best in parts:
            scores[rows] = best.position.float()
            clear = best.separation**SHARPNESS
            found.append(class_evidence(
                self.name, label, max(best.ratio if self.preset == "paper" else clear, LEAST_STATISTIC), 0.0,
                likelihood_ratio=best.ratio, separation=best.separation, share=best.share,
                distance=best.distance,
            ))  # fmt: skip
            given.tick(len(found) / len(labels))
        return scores, found

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outlier among the classes, or the paper's: J* = (J - median) / (1.4826 MAD) > exp(2)."""
        if self.preset == "standard":
            return super().judge(evidence, classes, alpha)
        j = np.array([float(e.values["statistic"] or 0) for e in evidence])
        spread = 1.4826 * float(np.median(np.abs(j - np.median(j))))
        index = (j - np.median(j)) / max(spread, 1e-12)
        order = np.argsort(-index, kind="stable").tolist()
        flagged = [i for i in order if index[i] > self.threshold]
        text = "two means describe this class much better than one" if flagged else "every class has one mean"
        level = ERROR if flagged else NOTE
        found = [(evidence[i].target, float(index[i])) for i in flagged or order[:1]]
        return [Finding(self.code, self.name, level, text, t, None, v, self.threshold) for t, v in found]


def decomposed(r: Tensor, y: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """S_mu and S_e of r = mu_c + e, mu_c ~ N(0, S_mu), e ~ N(0, S_e), by EM on rows (N, d) of classes y.

    The mean of class c given its n samples with mean m is normal, with mean S_mu (S_mu + S_e / n)^-1 m and
    covariance V = S_mu - S_mu (S_mu + S_e / n)^-1 S_mu.
    """
    labels = y.unique()
    r = r - torch.stack([r[y == c].mean(0) for c in labels]).mean(0)
    m = torch.stack([r[y == c].mean(0) for c in labels])
    n = torch.stack([(y == c).sum() for c in labels]).to(r)
    s_mu, s_e = torch.cov(m.T, correction=0).reshape(r.shape[1], -1), scatter(r, y)
    within, eye = s_e * len(r), torch.eye(r.shape[1]).to(r)
    for _ in range(iterations):
        before = torch.cat((s_mu, s_e))
        both = s_mu + s_e / n[:, None, None]
        gain = torch.linalg.solve(both + 1e-9 * both.diagonal(dim1=1, dim2=2).mean() * eye, s_mu).mT
        mu, v = (gain @ m[:, :, None])[:, :, 0], s_mu - gain @ s_mu
        s_mu = mu.T @ mu / len(labels) + v.mean(0)
        s_e = (within + ((m - mu).T * n) @ (m - mu) + (v * n[:, None, None]).sum(0)) / len(r)
        if float((torch.cat((s_mu, s_e)) - before).norm() / before.norm().clamp_min(1e-30)) <= tolerance:
            break
    return s_mu, s_e


@torch.no_grad()
def _features(model: Model, x: Tensor) -> Tensor:
    return torch.cat([model.features(b.to(model.device)).float().cpu() for b in x.split(BATCH)])
