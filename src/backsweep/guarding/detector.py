"""What looks at samples: a `SampleDetector` at single inputs, a `SetDetector` at a whole training set.

A sample detector learns tensors from clean samples and scores inputs while a model runs; a guard is
made of them. A set detector is given all features of a training set at once and scores its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.checks import lacking
from backsweep.models.model import Model

Score = Callable[[Tensor], Tensor]
BATCH = 256


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

    of: Score = field(compare=False)
    device: torch.device
    clean: Tensor
    batch: int = BATCH
    learned: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x):
            return torch.empty(0)
        with torch.no_grad():
            parts = [x] if len(x) <= self.batch else x.split(self.batch)
            return torch.cat([self.of(b.to(self.device)).float().cpu() for b in parts])

    def threshold(self, fpr: float) -> float:
        """The score that a clean input exceeds with probability at most `fpr`.

        The ceil((n + 1)(1 - fpr))-th smallest of the n clean scores; infinite where n are too few to tell.
        """
        return threshold(self.clean, fpr)


def answer(model: Model, x: Tensor) -> Tensor:
    """Logits (N, classes) of inputs x (N, *shape), for which a guard asks once for all detectors."""
    known = model.kept.answer(x)
    return model.logits(x) if known is None else known


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

    noun: ClassVar[str] = "detector"
    package: ClassVar[str] = "backsweep.guarding.detectors"
    group: ClassVar[str] = "backsweep.guards"
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
        reason = lacking(self, model) or self.applies(model, data, triggers)
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
