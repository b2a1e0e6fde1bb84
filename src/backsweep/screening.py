"""What looks at samples: a `SampleDetector` at single inputs, a `SetDetector` at a whole training set.

A sample detector learns tensors from clean samples and scores inputs while a model runs; a guard is
made of them. A set detector is given all features of a training set at once and scores its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.base import Method, derive_seed
from backsweep.components import LEAST_STATISTIC
from backsweep.data import Data
from backsweep.errors import BadInput
from backsweep.model import Model
from backsweep.outliers import outlier_findings
from backsweep.report import Evidence, Finding
from backsweep.trigger import Trigger

Score = Callable[[Tensor], Tensor]
BATCH = 256
LEAST_SPREAD = 0.5  # of the logarithms of clean classes


@dataclass(frozen=True, eq=False)
class Scorer:
    """What a `SampleDetector` learned: called with inputs x (N, *shape) in [0, 1] it gives scores (N,) on the
    CPU, higher = more suspicious.

    Attributes:
        of: scores of one batch, on the device of the batch.
        device: where the batches go.
        clean: scores of clean samples from which nothing was learned.
        batch: inputs in a pass.
        learned: what `of` was made from, the guard's file holds it.
    """

    of: Score
    device: torch.device
    clean: Tensor
    batch: int = BATCH
    learned: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x):
            return torch.empty(0)
        with torch.no_grad():
            return torch.cat([self.of(b.to(self.device)).float().cpu() for b in x.split(self.batch)])

    def threshold(self, fpr: float) -> float:
        """The score that a clean input exceeds with probability at most `fpr`.

        The ceil((n + 1)(1 - fpr))-th smallest of the n clean scores; infinite where n are too few to tell.
        """
        return threshold(self.clean, fpr)


def threshold(clean: Tensor, fpr: float) -> float:
    """The conformal threshold of n clean scores (N,): one more like them exceeds it with chance <= `fpr`."""
    k = math.ceil((len(clean) + 1) * (1 - fpr) - 1e-9)  # what rounding adds is no sample more
    return math.inf if k > len(clean) else float(clean.sort().values[max(k, 1) - 1])


@dataclass(frozen=True)
class SampleDetector(Method):
    """Tells triggered inputs from clean ones while a model runs.

    `learn` gives the tensors that have to be remembered, `scorer` makes the scoring function from them;
    so a fitted guard is a file of tensors. The score of an input hangs on that input alone, not on the
    others in its batch.

    Attributes:
        learns: share of the clean samples to learn from; the rest is only scored, so that it is known what
            clean inputs get. 0: there is nothing to learn.
        batch: inputs in a pass of `Scorer`.
    """

    learns: ClassVar[float] = 0.5
    batch: ClassVar[int] = BATCH

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        """Why this detector cannot be used here (what it needs and is not there), "" when it can."""
        return ""

    def passes(self, model: Model) -> float:
        """Forward passes of the model that one input costs, the served answer's own left out."""
        raise NotImplementedError

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """What has to be remembered, as tensors on the CPU.

        Args:
            model: a frozen working copy.
            data: clean samples; with `learns` 0 they are none of its business.
            triggers: what a scan recovered; may be empty.
        """
        raise NotImplementedError

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """The function from inputs (N, *shape) on the model's device to scores (N,)."""
        raise NotImplementedError

    def fit(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> Scorer:
        """Learn from some clean samples, score the others.

        Raises:
            BadInput: it does not apply.
        """
        reason = self.applies(model, data, triggers)
        if reason:
            raise BadInput(f"{self.name}: {reason}")
        learned, rest = self.halves(data)
        return self.restored(model, self.learn(model, learned, triggers), rest)

    def halves(self, data: Data) -> tuple[Data, Data]:
        """The samples to learn from and those that are only scored."""
        if self.learns == 0:
            return data, data
        seed = derive_seed(0, self.name)
        return data.split(seed) if self.learns == 0.5 else data.parted(self.learns, seed)

    def restored(self, model: Model, learned: dict[str, Tensor], clean: Data | Tensor) -> Scorer:
        """The scorer from what was learned, with the scores of clean samples, or those samples."""
        scorer = Scorer(self.scorer(model, learned), model.device, torch.empty(0), self.batch, learned)
        scores = scorer(clean.x) if isinstance(clean, Data) else clean
        return Scorer(scorer.of, scorer.device, scores, scorer.batch, learned)


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

    def generator(self, *parts: object) -> torch.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *parts))


@dataclass(frozen=True)
class SetDetector(Method):
    """Says which samples of a training set are poisoned, and whether any are.

    `measure` has no opinion: a score for every sample, and for every class one record of evidence with the
    `statistic` (above 0, higher = more suspicious) and its `cut`, the score above which samples of that
    class are flagged if the class is found poisoned. `judge` decides about classes alone.
    """

    code: ClassVar[str] = ""

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
        values = [-math.log(max(float(e.values["statistic"] or 0), LEAST_STATISTIC)) for e in evidence]
        found = outlier_findings(self, evidence, values, alpha, classes, _message, least_spread=LEAST_SPREAD)
        statistic = {e.target: float(e.values["statistic"] or 0) for e in evidence}
        return [replace(f, score=statistic[f.target], threshold=_at(f)) for f in found]


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
        return f"two kinds of samples bear this label: {found:.3g}, the median class {usual:.3g}"
    return f"no class is an outlier; the largest statistic is {found:.3g}, the median class has {usual:.3g}"
