"""Cross confusion, ours: samples that keep their label when the network forgets what its classes look like.

A network that learns wrong labels for clean samples forgets its classes within some dozen updates. What it
learned from a trigger has nothing to do with their look and stays (the observation behind Confusion
Training, Qi et al. 2023, and BaDExpert, Xie et al. 2024, which both need samples that are known to be
clean). Here the samples come from the suspect set itself:

1. Two experts. The samples of every class fall into two clusters; an expert is confused on samples of the
   one and judges those of the other. However many samples of a class are poisoned, one of the experts
   never saw them with wrong labels.
2. A third expert is confused on the half of every class that seemed least suspicious.

score(x) = log p(y | x) - mean over x' not labelled y of log p(y | x'),  of the experts, standardised.

A class is suspicious if its scores have two components and the upper one is far above what the samples of
all classes get. Within a class the order is that of a linear discriminant between the two components in
the penultimate layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST, two_components
from backsweep.auditing.untangling import parted
from backsweep.core.seeds import derive_seed
from backsweep.models.confusion_training import confused, log_probabilities, usual
from backsweep.models.model import Model
from backsweep.reports.report import Evidence

PARTS = ("clusters", "groups")
CLUSTER_DIMENSIONS, DISCRIMINANT_DIMENSIONS = 5, 50
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CrossConfusion(SetDetector):
    """Flags samples whose label survives the confusion of the network.

    Attributes:
        parts: how the samples of a class are parted in two: "clusters", 2-means on five principal axes;
            "groups", as SCAn does, by the clearest split given how classes scatter (decision 0033).
        samples: that an expert is confused with, the same number of every class.
        updates: at most, of an expert.
        batch_size: samples in an update.
        lr: learning rate of Adam.
        stop: share of the samples that still get their own label, at which the confusion ends.
        rounds: of the discriminant, at most.
        spill: share of the lower component of a poisoned class that may be flagged with the upper one, so
            that few poisoned samples stay behind.
    """

    name: ClassVar[str] = "cross_confusion"
    summary: ClassVar[str] = "samples that keep their label when the network forgets its classes (ours)"
    code: ClassVar[str] = "BSW200"

    parts: str = "clusters"
    samples: int = 2000
    updates: int = 300
    batch_size: int = 128
    lr: float = 5e-4
    stop: float = 0.15
    rounds: int = 10
    spill: float = 0.05

    def __post_init__(self) -> None:
        if self.parts not in PARTS:
            raise ValueError(f"parts {self.parts!r} is neither groups nor clusters")
        if min(self.samples, self.updates, self.batch_size, self.rounds) < 1:
            raise ValueError("samples, updates, batch_size and rounds are at least 1")
        if not (self.lr > 0 and 0 < self.stop < 1 and 0 <= self.spill < 1):
            raise ValueError("lr is above 0, stop between 0 and 1, spill from 0 to below 1")

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Before there was a choice samples were parted by 2-means."""
        return {"parts": "clusters", **settings}

    def applies(self, given: TrainingSet) -> str:
        if not given.looked_at:
            return f"no class has {LEAST} samples, which it takes to tell two kinds of them"
        if not any(True for _ in given.model.net.parameters()):
            return "the network has no weights that could be trained"
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        y, every = given.data.y, torch.ones(len(given.data), dtype=torch.bool)
        cluster = (clusters if self.parts == "clusters" else groups)(given)
        crossed = torch.zeros(len(y))
        for k in (0, 1):
            expert = self._confused(given, cluster != k, k)
            own = cluster == k
            crossed[own] = kept(expert, given, own)
            given.tick(0.3 * (k + 1))
        calm = least_suspicious(crossed, y)
        settled = kept(self._confused(given, calm, 2), given, every)
        given.tick(0.9)
        score = crossed / crossed.std().clamp_min(1e-6) + settled / settled.std().clamp_min(1e-6)
        median = score.median()
        score = (score - median) / (1.4826 * (score - median).abs().median()).clamp_min(1e-6)
        return self._classes(given, score)

    def _confused(self, given: TrainingSet, among: Tensor, which: int) -> Model:
        """An expert: the network, confused with samples `among` those of the set."""
        generator = given.generator(self.name, which)
        rows = []
        for label in range(given.classes):
            own = torch.nonzero(among & (given.data.y == label)).flatten()
            most = max(1, self.samples // given.classes)
            rows.append(own[torch.randperm(len(own), generator=generator)[:most]])
        return confused(
            given.model, given.data[torch.cat(rows)], generator, updates=self.updates,
            batch_size=self.batch_size, lr=self.lr, stop=self.stop,
        )  # fmt: skip

    def _classes(self, given: TrainingSet, score: Tensor) -> tuple[Tensor, list[Evidence]]:
        """The statistic of every class, and its samples in the order of the discriminant."""
        scores, evidence = score.clone(), []
        for label in range(given.classes):
            rows = given.of(label)
            own = score[rows].double().numpy()
            two = two_components(own)
            if two is None:
                continue
            line, cut = self._discriminant(given.features[rows], own > two.cut)
            if line is not None:  # the order of the discriminant, the values of the score
                ordered = np.sort(own)
                place = line.argsort(kind="stable").argsort(kind="stable")
                own, cut = ordered[place], float(ordered[max(0, int((line <= cut).sum()) - 1)])
                scores[rows] = torch.as_tensor(own, dtype=torch.float32)
            else:
                cut = two.cut
            evidence.append(class_evidence(
                self.name, label, two.gain * max(two.high, 0.0), float(np.float32(cut)), gain=two.gain,
                upper=two.high, share=two.share, above_cut=int((scores[rows] > np.float32(cut)).sum()),
            ))  # fmt: skip
        return scores, evidence

    def _discriminant(self, features: Tensor, upper: NDArray[np.bool_]) -> tuple[Array | None, float]:
        """Linear discriminant between the components, told anew what belongs to which until that stays.

        Returns the values of the samples and the cut, None where there is nothing to tell apart.
        """
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        z, line = standardised(principal(features, DISCRIMINANT_DIMENSIONS)), None
        for _ in range(self.rounds):
            if not z.shape[1] or min(upper.sum(), (~upper).sum()) < 3:
                break
            line = (
                LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z, upper).decision_function(z)
            )
            changed, upper = bool(((line > 0) != upper).any()), line > 0
            if not changed:
                break
        two = None if line is None else two_components(line)
        if line is None or two is None:
            return None, 0.0
        lower = line[line <= two.cut]
        return line, float(np.quantile(lower, 1 - self.spill)) if len(lower) else two.cut


def groups(given: TrainingSet) -> Tensor:
    """The two groups of every class in the penultimate layer, 0 or 1 (N,); halves where there are none."""
    found = parted(given.features, given.data.y, given.looked_at)[1].long()
    for label in range(given.classes):
        rows = given.of(label)
        if len(rows) and found[rows].unique().numel() == 1:
            found[rows] = torch.arange(len(rows)) % 2
    return found


def clusters(given: TrainingSet) -> Tensor:
    """Two clusters of every class in the penultimate layer, (N,) in {0, 1}.

    On the leading principal axes, all brought to one spread: the widest one is often a matter of the class.
    """
    from sklearn.cluster import KMeans

    found = torch.zeros(len(given.data), dtype=torch.long)
    for label in given.looked_at:
        rows = given.of(label)
        z = standardised(principal(given.features[rows], CLUSTER_DIMENSIONS))
        if not z.shape[1]:  # all alike: any two halves
            found[rows] = torch.arange(len(rows)) % 2
            continue
        seed = derive_seed(given.seed, "clusters", label)
        found[rows] = torch.as_tensor(KMeans(2, n_init=3, random_state=seed).fit_predict(z)).long()
    return found


def principal(features: Tensor, dimensions: int) -> Tensor:
    """Centred features (n, D) on their leading principal axes, at most `dimensions` of them."""
    centred = (features - features.mean(0)).double()
    values, axes = torch.linalg.eigh(centred.T @ centred)
    used = values > 1e-12 * values[-1].clamp_min(1e-30)
    return (centred @ axes[:, used].flip(1)[:, :dimensions]).float()


def standardised(z: Tensor) -> Array:
    """Centred columns (n, D), each over its standard deviation."""
    v: Array = z.double().numpy()
    return v / np.maximum(v.std(0), 1e-12)


def kept(expert: Model, given: TrainingSet, rows: Tensor) -> Tensor:
    """log p(y | x) of the samples at `rows` (a mask), less what samples of other labels give to y."""
    log_p, y = log_probabilities(expert, given.data.x), given.data.y
    return (log_p[torch.arange(len(y)), y] - usual(log_p, y)[y])[rows]


def least_suspicious(score: Tensor, y: Tensor) -> Tensor:
    """The half of every class with the lowest scores, a boolean mask."""
    calm = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique().tolist():
        rows = torch.nonzero(y == label).flatten()
        calm[rows[score[rows].argsort(stable=True)[: max(1, len(rows) // 2)]]] = True
    return calm
