"""Reclassification, ours: what a network that never saw a group of samples makes of them.

A poisoned sample looks like the class that it was taken from; only its label says otherwise. The samples of
every class are split in two (SCAn's split, Tang et al. 2021), a fresh network learns from all that is *not*
suspected, and says what the suspected samples are. Chen et al. (SafeAI 2019) ask so of each cluster whether
it belongs to its label ("exclusionary reclassification"). A second way of writing a digit splits a class too,
but it is taken for that digit or for one other; poison is taken for the many classes that it came from:

    statistic = exp(H) sqrt(share)

with the entropy H of the classes that the contradicted samples of the suspected group are taken for, and
their share of the class. exp(H) is between 1 and the number of the other classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC, variety
from backsweep.auditing.untangling import parted
from backsweep.core.seeds import derive_seed
from backsweep.reports.report import Evidence


@dataclass(frozen=True)
class Reclassification(SetDetector):
    """Asks a network that learned from the unsuspected samples what the suspected ones are.

    Attributes:
        dimensions: at most, of the representation: principal components of the whole training set.
        samples: that the fresh network learns from, at most.
    """

    name: ClassVar[str] = "reclassification"
    summary: ClassVar[str] = "groups that a network without them takes for many other classes (ours)"
    code: ClassVar[str] = "BSW205"
    cautious: ClassVar[bool] = True  # on small sets of other kinds nothing is known of it (decision 0033)

    dimensions: int = 64
    samples: int = 10000

    def __post_init__(self) -> None:
        if min(self.dimensions, self.samples) < 1:
            raise ValueError("dimensions and samples are at least 1")

    def applies(self, given: TrainingSet) -> str:
        if reason := given.all_too_small():
            return reason
        if not any(True for _ in given.model.net.parameters()):
            return "the network has no weights, so none like it can be trained"
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        y = given.data.y
        labels = given.looked_at
        scores, upper = parted(given.features, y, labels, self.dimensions)
        if not upper.any():  # every sample has the same representation
            return scores, [class_evidence(self.name, c, LEAST_STATISTIC, 0.0) for c in labels]
        given.tick(0.3)
        kept = torch.nonzero(~upper).flatten()
        some = torch.randperm(len(kept), generator=given.generator(self.name))[: self.samples]
        fresh = given.train(given.data[kept[some]], derive_seed(given.seed, self.name))
        taken = y.clone()
        taken[upper] = fresh.predict(given.data.x[upper]).cpu()
        given.tick(1.0)
        return scores, [self._class(given, label, upper, taken) for label in labels]

    def _class(self, given: TrainingSet, label: int, upper: Tensor, taken: Tensor) -> Evidence:
        rows = given.of(label)
        suspects = rows[upper[rows]]
        others = taken[suspects][taken[suspects] != label]
        share = len(others) / len(rows)
        classes = math.exp(variety(others)) if len(others) else 0.0
        return class_evidence(
            self.name, label, max(classes * math.sqrt(share), LEAST_STATISTIC), 0.0,
            suspected=float(len(suspects)), contradicted=float(len(others)), classes=classes,
        )  # fmt: skip
