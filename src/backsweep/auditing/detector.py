"""What a detector of training sets is: it is given all features at once and scores every sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.auditing.mixture import LEAST, LEAST_STATISTIC
from backsweep.core.method import Method
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, WARNING, Evidence, Finding
from backsweep.scanning.outliers import TWO_CLASSES, outlier_findings

FOUND = "two kinds of samples bear this label"
LEAST_SPREAD = 0.5  # of the logarithms of clean classes


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What an audit is given of a training set and the network that was trained on it.

    Attributes:
        data: the samples, with the labels that they were trained with.
        classes: number of classes.
        features: penultimate representation (N, D), float32 on the CPU.
        logits: (N, classes), likewise.
        model: a frozen working copy of the network.
        clean: samples that are known to be clean; None where the user has none.
        train: a fresh network of the same kind, trained on other samples with a seed.
        seed: of everything that is drawn.
        tick: told now and then which share is done.
    """

    data: Data
    classes: int
    features: Tensor
    logits: Tensor
    model: Model
    train: Callable[[Data, int], Model]
    clean: Data | None = None
    seed: int = 0
    tick: Callable[[float], None] = lambda _: None

    def of(self, label: int) -> Tensor:
        """Rows of the samples that are labelled `label`."""
        return torch.nonzero(self.data.y == label).flatten()

    @property
    def looked_at(self) -> list[int]:
        """Classes with at least `LEAST` samples; others are not looked at."""
        return [c for c in range(self.classes) if len(self.of(c)) >= LEAST]

    def all_too_small(self) -> str:
        """Why no class can be looked at, "" where one can."""
        return "" if self.looked_at else f"it needs a class with at least {LEAST} samples"

    def too_small(self) -> str:
        """Which classes have too few samples to be looked at and how many it takes, "" where none has."""
        count = self.data.y.bincount(minlength=self.classes)
        few = int(((count > 0) & (count < LEAST)).sum())
        if not few:
            return ""
        present = int((count > 0).sum())
        return (
            f"{few} of {present} classes have fewer than {LEAST} samples and cannot be looked at; it takes "
            f"{LEAST} of each class, {LEAST * present:,} in all, the set has {len(self.data):,}"
        )

    def generator(self, *parts: object) -> torch.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *parts))


@dataclass(frozen=True)
class SetDetector(Method):
    """Says which samples of a training set are poisoned, and whether any are.

    `measure` has no opinion: a score for every sample, and for every class one record of evidence with the
    `statistic` (above 0, higher = more suspicious) and its `cut`, the score above which samples of that
    class are flagged if the class is found poisoned. `judge` decides about classes alone.

    Attributes:
        independent: whether its evidence has a `p_value` of every class that does not hang on the samples, so
            that it is joined with those of detectors that do (`nulls.joined`).
    """

    noun: ClassVar[str] = "detector"
    package: ClassVar[str] = "backsweep.auditing.detectors"
    group: ClassVar[str] = "backsweep.audits"
    code: ClassVar[str] = ""
    independent: ClassVar[bool] = False

    def applies(self, given: TrainingSet) -> str:
        """Why this detector cannot be used here (what it needs and is not there), "" when it can."""
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        """Scores (N,) of the samples, and one record of evidence for every class."""
        raise NotImplementedError

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outliers among the logarithms of the classes' statistics; the largest at least, as a note.

        The statistic itself is the score: it is a pure number that clean sets of other kinds can be asked
        about (`calibration.py`).
        """
        if classes < 3:
            return self._of_two(evidence, alpha)
        values = [-math.log(max(float(e.values["statistic"] or 0), LEAST_STATISTIC)) for e in evidence]
        found = outlier_findings(self, evidence, values, alpha, classes, _message, least_spread=LEAST_SPREAD)
        statistic = {e.target: float(e.values["statistic"] or 0) for e in evidence}
        return [replace(f, score=statistic[f.target], threshold=_at(f)) for f in found]

    def _of_two(self, evidence: Sequence[Evidence], alpha: float) -> list[Finding]:
        """Neither of two classes stands out from the other: each has p-value 1, for a table to overrule."""
        order = sorted(evidence, key=lambda e: -float(e.values["statistic"] or 0))
        return [
            Finding(
                self.code, self.name, ERROR if alpha >= 1 else WARNING,
                FOUND if alpha >= 1 else TWO_CLASSES, e.target, score=float(e.values["statistic"] or 0),
                p_value=1.0 if alpha >= 1 else None,
            )
            for e in (order if alpha >= 1 else order[:1])
        ]  # fmt: skip


def _at(finding: Finding) -> float | None:
    """The statistic at the threshold of its index."""
    median, spread = finding.details.get("median"), finding.details.get("spread")
    if finding.threshold is None or not isinstance(median, float) or not isinstance(spread, float):
        return None
    return math.exp(finding.threshold * spread - median)


def class_evidence(
    name: str, label: int, statistic: float, cut: float, **values: float | str | None
) -> Evidence:
    """One record of a set detector: statistic (> 0, higher = more suspicious) and cut of a class."""
    return Evidence(
        name, f"class-{label}", target=label, values={"statistic": statistic, "cut": cut, **values}
    )


def _message(e: Evidence, flagged: bool, median: float) -> str:
    """What is found about a class, in a sentence; `median` is minus the log of the median statistic."""
    found, usual = float(e.values["statistic"] or 0), math.exp(-median)
    if flagged:
        return f"{FOUND}: {found:.3g}, the median class {usual:.3g}"
    return f"no class is an outlier; the largest statistic is {found:.3g}, the median class has {usual:.3g}"
