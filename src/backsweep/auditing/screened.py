"""A detector of inputs in an audit: it is asked about every sample of the set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import two_components
from backsweep.core.method import Method
from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector
from backsweep.inputs.samples import Data
from backsweep.reports.report import Evidence

LEARNED = 2000  # samples of the training set itself that a detector of inputs learns from, without clean ones
BATCH = 512


@dataclass(frozen=True)
class Screened(SetDetector):
    """A detector of inputs in an audit: it learns from clean samples, or from some of the set itself.

    The statistic of a class is what two components explain of its scores better than one, times how far
    the upper one lies above what the samples of all classes get.
    """

    code: ClassVar[str] = "BSW210"
    detector: SampleDetector

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.detector.name

    @property
    def itself(self) -> Method:
        return self.detector

    def settings(self) -> dict[str, Any]:
        return self.detector.settings()

    def applies(self, given: TrainingSet) -> str:
        return self.detector.applies(given.model, self._source(given))

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        scorer = self.detector.fit(given.model, self._source(given))
        parts = []
        for i, x in enumerate(given.data.x.split(BATCH)):
            parts.append(scorer(x))
            given.tick(min(1.0, (i + 1) * BATCH / len(given.data)))
        score = torch.cat(parts)
        middle = score.median()
        spread = (1.4826 * (score - middle).abs().median()).clamp_min(1e-6)
        evidence = []
        for label in range(given.classes):
            two = two_components(((score[given.of(label)] - middle) / spread).double().numpy())
            if two is not None:
                cut = float(middle + spread * two.cut)
                evidence.append(class_evidence(
                    self.name, label, two.gain * max(two.high, 0.0), cut, gain=two.gain, upper=two.high,
                    share=two.share,
                ))  # fmt: skip
        return score, evidence

    def _source(self, given: TrainingSet) -> Data:
        seed = derive_seed(given.seed, self.name, "learned")
        return given.data.sample(LEARNED, seed) if given.clean is None else given.clean
