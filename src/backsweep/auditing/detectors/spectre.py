"""SPECTRE (Hayase, Kong, Somani, Oh, ICML 2021): whiten with a robust covariance, then quantum scores.

P: the centred features of a class on their k leading principal axes;  S: what a robust filter keeps of them

    W = Cov(P_S)^(-1/2) P,   Sigma = Cov(W),   Q = expm(alpha (Sigma - I) / (||Sigma|| - 1)),   Q /= tr Q
    tau_i = W_i' Q W_i

What clean samples have is 1 in every direction of W; poisoned samples, left out by the filter, stick out.
The number of axes k is the one whose largest tau, left out, make the rest of the class stick out most:

    op_k = tr(Sigma_k Q_k),   Sigma_k: covariance of all samples on all axes, whitened without those
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC, REMOVED, budget_cut, two_components
from backsweep.reports.report import ERROR, Evidence, Finding

C, FAILURE, SHIFT, LIMIT = 10.0, 0.1, 3.0, 2.0  # of the filter; LIMIT times eps n samples leave at most
FLOOR = 0.1  # quantile of tau; with few axes the logarithm has a long lower tail, which says nothing
STEPS = 10  # numbers of axes that are tried
SAMPLES_PER_AXIS = 10  # at least
FLAT = 1e-4  # ||Sigma|| - 1, below which no direction stands out
ROUNDING = 1e-9  # of the largest eigenvalue: smaller ones are none
ITERATIONS, CONVERGED = 20, 0.02  # of the power method

PRESETS = ("standard", "paper")


@dataclass(frozen=True)
class Spectre(SetDetector):
    """Flags samples that stick out once their class is whitened without outliers.

    Attributes:
        preset: "paper" flags the ceil(1.5 eps n) largest tau of the class with the largest op, whether there
            is poison or not; "standard" the upper component of log tau, of classes that are outliers.
        eps: share of a class that may be poisoned; the filter leaves out at most twice as much.
        alpha: how much Q prefers the directions that stick out most.
        dimensions: principal axes at most.
    """

    name: ClassVar[str] = "spectre"
    summary: ClassVar[str] = "samples that stick out of their class after robust whitening"
    code: ClassVar[str] = "BSW202"

    preset: str = "standard"
    eps: float = 0.1
    alpha: float = 4.0
    dimensions: int = 100

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not 0 < self.eps <= 0.3:
            raise ValueError(f"eps {self.eps} is not above 0 and at most 0.3")
        if self.alpha <= 0 or self.dimensions < 1:
            raise ValueError("alpha is above 0 and dimensions at least 1")

    def applies(self, given: TrainingSet) -> str:
        return "" if bool(torch.isfinite(given.features).all()) else "it needs features that are all finite"

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        scores, evidence = torch.zeros(len(given.data)), []
        for label in given.looked_at:
            rows = given.of(label)
            found = self.scores(given.features[rows])
            if found is None:
                continue
            tau, op, k = found
            scores[rows] = own = tau.float()
            if self.preset == "paper":
                evidence.append(
                    class_evidence(self.name, label, op, budget_cut(own, self.eps), op=op, axes=k)
                )
            else:
                logs = tau.clamp_min(max(float(tau.quantile(FLOOR)), 1e-12)).log()
                two = two_components(logs.numpy())
                if two is None:
                    continue
                sure = surer(given.logits[rows], label, logs > two.cut)
                evidence.append(class_evidence(
                    self.name, label, max((two.high - two.low) ** 2 * math.exp(sure), LEAST_STATISTIC),
                    math.exp(two.cut), op=op, axes=k, gain=two.gain, share=two.share, surer=sure,
                ))  # fmt: skip
            given.tick((label + 1) / given.classes)
        return scores, evidence

    def scores(self, features: Tensor) -> tuple[Tensor, float, int] | None:
        """tau (n,) of the samples of a class from features (n, D), the largest op, and its number of axes."""
        z = principal_axes(features, self.dimensions)
        n, most = z.shape
        if most == 0:
            return None
        removed, best = min(math.ceil(REMOVED * self.eps * n - 1e-9), n - 2), None
        for k in sorted({min(most, round(r * r)) for r in torch.linspace(1, 10, STEPS).tolist()}):
            p = z[:, :k].contiguous()
            tau = p[:, 0] ** 2  # Q = 1
            if k > 1:
                tau = quantum(p @ whitener(p[robust_subset(p, self.eps)]), self.alpha)[0]
            kept = z[tau.argsort(stable=True)[: n - removed]]
            op = quantum(z @ whitener(kept), self.alpha)[1]
            if best is None or op > best[1]:
                best = tau, op, k
        return best

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """With the preset "paper" the class with the largest op is found poisoned: it has no other answer."""
        if self.preset == "standard" or not evidence:
            return super().judge(evidence, classes, alpha)
        first = max(evidence, key=lambda e: float(e.values["statistic"] or 0))
        message = "the class that sticks out most, whether there is poison or not: eps is taken as known"
        op = float(first.values["statistic"] or 0)
        return [Finding(self.code, self.name, ERROR, message, first.target, score=op)]


def principal_axes(features: Tensor, most: int) -> Tensor:
    """Centred features (n, D) on their leading principal axes, some samples for each."""
    centred = features.double() - features.double().mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    used = int((values > ROUNDING * values[-1].clamp_min(1e-12)).sum())
    return centred @ axes.flip(1)[:, : min(used, most, max(1, len(features) // SAMPLES_PER_AXIS))]


def inverse_root(covariance: Tensor) -> Tensor:
    """Its power -1/2."""
    values, axes = torch.linalg.eigh(covariance)
    return (axes * values.clamp_min(ROUNDING * float(values[-1].clamp_min(1e-12))).rsqrt()) @ axes.T


def whitener(kept: Tensor) -> Tensor:
    """What makes the covariance of samples kept (n, k) the unit matrix."""
    return inverse_root(torch.cov(kept.T, correction=0).reshape(kept.shape[1], -1))


def quantum(w: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Quantum entropy scores tau (n,) of whitened samples w (n, k), and tr(Sigma Q)."""
    sigma, unit = torch.cov(w.T).reshape(w.shape[1], -1), torch.eye(w.shape[1], dtype=w.dtype)
    above = float(torch.linalg.matrix_norm(sigma, 2)) - 1
    q = torch.matrix_exp(alpha * (sigma - unit) / above) if len(unit) > 1 and above > FLAT else unit
    q = q / q.trace()
    return ((w @ q) * w).sum(1), float((sigma @ q).trace())


def robust_subset(p: Tensor, eps: float) -> Tensor:
    """Indices of the samples p (n, k) that the covariance filter of Diakonikolas et al. (2017) keeps."""
    kept, room, v = torch.arange(len(p)), round(LIMIT * eps * len(p)), None
    while room > 0:
        own = p[kept]
        n, k = own.shape
        y = own @ inverse_root(own.T @ own / n)
        far = (y * y).sum(1)
        out = far >= C * k * math.log(n / FAILURE)
        if not out.any():
            value, v = fourth_moment(y, v)
            if value <= 1 + C * eps * math.log(1 / eps) ** 2:  # as if the samples were normal
                break
            s = ((y @ v * y).sum(1) - v.trace()) / math.sqrt(2)
            far = (s - s.median()).abs()
            cut = tail_cut(far, eps)
            if cut is None:
                break
            out = far > cut
        leave = min(int(out.sum()), room)
        kept = kept[far.argsort(stable=True)[: n - leave].sort().values]
        room -= leave
    return kept


def fourth_moment(y: Tensor, start: Tensor | None) -> tuple[float, Tensor]:
    """Largest eigenvalue of E[vec(yy') vec(yy')'] - vec(I) vec(I)' for white y (n, k), and its matrix V.

    By the power method on matrices, E[(y'Vy - tr V) yy']; single precision is enough for it.
    """
    y, value = y.float(), 0.0
    unit = torch.eye(y.shape[1])
    v = (y * (y * y).sum(1, keepdim=True)).T @ y / len(y) - len(unit) * unit if start is None else start
    v = v.float() / v.float().norm().clamp_min(1e-30)
    for _ in range(ITERATIONS):
        q = (y @ v * y).sum(1) - v.trace()
        v = (y * q[:, None]).T @ y / len(y) - q.mean() * unit
        v, last, value = (v + v.T) / 2, value, float(v.norm())
        v = v / max(value, 1e-30)
        if abs(value - last) <= CONVERGED * value:
            break
    return value, v.double()


def tail_cut(far: Tensor, eps: float) -> float | None:
    """The smallest T with more samples beyond T + `SHIFT` than normal ones would be; None without one."""
    sizes = far.sort().values
    t = sizes - SHIFT
    beyond = torch.arange(len(far), 0, -1) / len(far)
    bound = 3 * eps / (t * t.clamp_min(1e-9).log()) ** 2
    heavy = torch.nonzero((t > 10 * math.log(1 / eps)) & (beyond >= bound)).flatten()
    return float(t[heavy[0]]) if len(heavy) else None


def surer(logits: Tensor, label: int, upper: Tensor) -> float:
    """How much surer of the label the network is for some samples than for the others, in deviations.

    Rare samples that truly are of a class are hard ones; a trigger is learned by heart.
    """
    if not bool(upper.any()) or bool(upper.all()):
        return 0.0
    others = logits.double().clone()
    others[:, label] = -math.inf
    margin = logits[:, label].double() - others.amax(1)
    gap = (margin[upper].mean() - margin[~upper].mean()) / margin.std().clamp_min(1e-12)
    return min(max(float(gap), -5.0), 5.0)
