"""Spectral signatures (Tran, Li, Madry, NeurIPS 2018): poisoned samples stand out along one direction.

R: features of the n samples of a class (n, D);  M = R - mean(R);  v: top right singular vector of M

    tau_i = <R_i - mean(R), v>^2        the largest ceil(1.5 eps n) of every class are removed

The standard preset keeps the sign of the projection and asks whether it has two components, and whether
the second choices of the network are more varied in one of them: clean samples are nearly mistaken for the
few classes that look like theirs, poisoned ones for those that they were taken from, many or only one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import Two, budget_cut, two_components
from backsweep.reports.report import ERROR, Evidence, Finding

PRESETS = ("standard", "paper")
CHANCE_GAIN = 0.1  # of two components, which one uneven kind of samples has
PSEUDO = 10  # samples that second choices are smoothed with


@dataclass(frozen=True)
class SpectralSignatures(SetDetector):
    """Flags samples far out along the main direction of their class.

    Attributes:
        preset: "paper" flags the ceil(1.5 eps n) largest squared projections of every class, whether there
            is poison or not; "standard" one side of the signed projection, of classes that are outliers.
        eps: share of a class that may be poisoned, of the preset "paper" alone.
    """

    name: ClassVar[str] = "spectral_signatures"
    summary: ClassVar[str] = "samples far out along the main direction of their class's features"
    code: ClassVar[str] = "BSW201"

    preset: str = "standard"
    eps: float = 0.05

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not 0 < self.eps <= 0.5:
            raise ValueError(f"eps {self.eps} is not above 0 and at most 0.5")

    def applies(self, given: TrainingSet) -> str:
        return "" if bool(torch.isfinite(given.features).all()) else "it needs features that are all finite"

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        scores, evidence = torch.zeros(len(given.data)), []
        second, usual = second_choices(given)
        for label in given.looked_at:
            rows = given.of(label)
            p, share = projections(given.features[rows])
            if self.preset == "paper":
                scores[rows] = (p * p).float()
                evidence.append(class_evidence(
                    self.name, label, share, budget_cut(scores[rows], self.eps), share_of_variance=share
                ))  # fmt: skip
            elif (side := suspicious_side(p, second[rows], given.classes, usual)) is not None:
                sign, two, odd = side
                scores[rows] = (sign * p).float()
                evidence.append(class_evidence(
                    self.name, label, (CHANCE_GAIN + two.gain) * odd, two.cut, gain=two.gain,
                    odd=odd, share=two.share, share_of_variance=share,
                ))  # fmt: skip
            given.tick((label + 1) / given.classes)
        return scores, evidence

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """With the preset "paper" every class is found poisoned: the method has no other answer."""
        if self.preset == "standard":
            return super().judge(evidence, classes, alpha)
        message = (
            "a fixed share of this class is flagged, whether there is poison or not: eps is taken as known"
        )
        return [Finding(
            self.code, self.name, ERROR, message, e.target, score=float(e.values["statistic"] or 0)
        ) for e in evidence]  # fmt: skip


def projections(features: Tensor) -> tuple[Tensor, float]:
    """Centred features (n, D) along their top right singular vector, and its share of their variance."""
    centred = features.double() - features.double().mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, -1], float(values[-1] / values.sum().clamp_min(1e-30))


def second_choices(given: TrainingSet) -> tuple[Tensor, float]:
    """The most likely class (N,) other than the label, and how many there are for a class, as a median."""
    others, y = given.logits.clone(), given.data.y
    others[torch.arange(len(y)), y] = -math.inf
    second = others.argmax(1)
    every = [second[y == c] for c in given.looked_at]
    numbers = [effective(s, torch.ones_like(s, dtype=torch.bool), given.classes) for s in every]
    return second, float(torch.tensor(numbers).median()) if numbers else 1.0


def suspicious_side(p: Tensor, second: Tensor, classes: int, usual: float) -> tuple[float, Two, float] | None:
    """Which side of the projections p (n,) is suspected; None where nothing spreads.

    Its sign, the components, and how many times as varied the second choices are on one side as on the
    other. Suspected is the side whose number of second choices is farther from the usual one; poison can
    be the majority.
    """
    farthest, found = -1.0, None
    for sign in (1.0, -1.0) if float((p**3).mean()) >= 0 else (-1.0, 1.0):  # the longer tail first
        two = two_components((sign * p).numpy())
        if two is None:
            return None
        upper = sign * p > two.cut
        number, other = effective(second, upper, classes), effective(second, ~upper, classes)
        far = abs(math.log(number / usual)) - abs(math.log(other / usual))
        if found is None or far > farthest + 1e-9:
            farthest, found = far, (sign, two, max(number / other, other / number))
    return found


def effective(second: Tensor, among: Tensor, classes: int) -> float:
    """Effective number of second choices among some samples, exp(entropy); of few, drawn to that of all."""
    every = torch.bincount(second, minlength=classes).double()
    counts = torch.bincount(second[among], minlength=classes) + PSEUDO * every / every.sum()
    share = counts / counts.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
