"""Activation clustering (Chen et al., SafeAI 2019): two clusters of last hidden activations in a class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC, runners_up, separation, variety
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding

JUDGINGS = ("standard", "size", "silhouette", "distance", "exclusionary")
SHARPNESS = 2.5  # power of the separation, so that its logarithm spreads by about 0.5 among clean classes
SAMPLE, STARTS, BATCH = (
    1000,
    10,
    512,
)  # rows of a silhouette (its cost is quadratic), 2-means, inputs in a pass


@dataclass(frozen=True)
class ActivationClustering(SetDetector):
    """Splits every class in two by its activations, and judges what was split off.

    Attributes:
        reduction: "pca", or "ica" as the paper prefers, of the activations of each class.
        dimensions: that it leaves.
        judging: which classes are poisoned. "standard": those that fall into two much more clearly than
            the others; the paper's rules: "size" of the smaller cluster, "silhouette", "distance" to the
            other classes, "exclusionary" reclassification by a network trained without the smaller clusters.
        share: "size": a smaller cluster is poison. Elsewhere: from here on clusters are alike in size.
        silhouette: "silhouette": a class with a larger one is poisoned.
        ratio: "exclusionary": T, a cluster with l / p below it is poison.
    """

    name: ClassVar[str] = "activation_clustering"
    summary: ClassVar[str] = "classes whose activations fall into two clusters (Chen et al. 2018)"
    code: ClassVar[str] = "BSW203"

    reduction: str = "pca"
    dimensions: int = 10
    judging: str = "standard"
    share: float = 0.35
    silhouette: float = 0.15
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.reduction not in ("pca", "ica"):
            raise ValueError(f"reduction {self.reduction!r} is neither pca nor ica")
        if self.judging not in JUDGINGS:
            raise ValueError(f"judging {self.judging!r} is none of {', '.join(JUDGINGS)}")
        if self.dimensions < 1 or self.ratio <= 0:
            raise ValueError(f"dimensions {self.dimensions} is below 1 or ratio {self.ratio} not above 0")
        if not (0 < self.share <= 0.5 and -1 <= self.silhouette < 1):
            raise ValueError(f"share {self.share} is not in (0, 0.5] or {self.silhouette} no silhouette")

    def applies(self, given: TrainingSet) -> str:
        return given.all_too_small()

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        found = [self._split(given, label) for label in given.looked_at]
        given.tick(0.5 if self.judging == "exclusionary" else 1.0)
        if self.judging == "distance":
            found = self._by_distance(given, found)
        elif self.judging == "exclusionary":
            found = self._by_reclassification(given, found)
        scores, evidence = torch.full((len(given.data),), -1.0), []
        for s in found:
            scores[given.of(s.label)] = s.position.float()
            evidence.append(class_evidence(
                self.name, s.label, max(s.statistic, LEAST_STATISTIC), 0.0, share=s.share,
                silhouette=s.silhouette, source_class=s.source, own=s.own, other=s.other,
            ))  # fmt: skip
        return scores, evidence

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outlier among the classes, or by one of the paper's rules those above its limit."""
        if self.judging == "standard":
            return super().judge(evidence, classes, alpha)
        limits = {"size": 0.5 / self.share, "silhouette": self.silhouette, "exclusionary": 1 / self.ratio}
        limit = limits.get(self.judging, 1.0)
        order = sorted(((float(e.values["statistic"] or 0), e.target) for e in evidence), reverse=True)
        flagged = [pair for pair in order if pair[0] > limit]
        text = f"{'a' if flagged else 'no'} cluster of this class is poison by its {self.judging}"
        found, level = (flagged, ERROR) if flagged else (order[:1], NOTE)
        return [Finding(self.code, self.name, level, text, t, None, v, limit) for v, t in found]

    def _split(self, given: TrainingSet, label: int) -> Split:
        """2-means of the reduced activations of a class, and what the standard judging makes of it."""
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score

        rows, seed = given.of(label), derive_seed(given.seed, self.name, label) % 2**31
        z = reduced(given.features[rows].double().numpy(), self.dimensions, self.reduction, seed)
        if z is None:  # all activations are the same
            return Split(label, torch.full((len(rows),), -1.0, dtype=torch.float64), LEAST_STATISTIC)
        means = KMeans(2, n_init=STARTS, random_state=seed).fit(z)
        k = int(np.bincount(means.labels_, minlength=2).argmin())
        low, high = means.cluster_centers_[1 - k], means.cluster_centers_[k]
        # where a sample stands along the line between the centres: they are at -1 and 1, the border is 0
        position = torch.from_numpy((z - (low + high) / 2) @ (high - low) * 2 / ((high - low) ** 2).sum())
        some = torch.randperm(len(z), generator=given.generator(self.name, label))[:SAMPLE].numpy()
        part = means.labels_[some]
        silhouette = float(silhouette_score(z[some], part)) if 0 < part.sum() < len(part) else 0.0
        upper, second = position > 0, runners_up(given.logits[rows], label)
        share = float(upper.double().mean())
        by_size = self.judging in ("size", "silhouette") or share < self.share
        if not by_size and variety(second[upper]) < variety(second[~upper]):
            position, upper, share = -position, ~upper, 1 - share
        rule = {"size": 0.5 / max(share, 1e-9), "silhouette": silhouette}
        statistic = rule.get(self.judging, separation(position) ** SHARPNESS)
        source = int(second[upper].bincount(minlength=given.classes).argmax())
        return Split(label, position, statistic, share, silhouette, source)

    def _by_distance(self, given: TrainingSet, found: Sequence[Split]) -> list[Split]:
        """Poison: its median is nearer another class's median than its own class's; its sibling's is not."""
        judged = list(found)
        medians = torch.stack([given.features[given.of(s.label)].median(0).values for s in found])
        for i, s in enumerate(found):
            if len(found) < 2 or not 0 < s.share < 1:
                continue
            features, ratios, nearest = given.features[given.of(s.label)], [], []
            for part in (s.position > 0, s.position <= 0):
                far = (features[part].median(0).values - medians).norm(dim=1).double()
                own, far[i] = float(far[i]), math.inf
                ratios.append(own / max(float(far.min()), 1e-12))
                nearest.append(found[int(far.argmin())].label)
            k = int(ratios[1] > ratios[0])
            statistic = min(ratios[k], 1 / max(ratios[1 - k], 1e-12))  # above 1: this one, not its sibling
            judged[i] = replace(s.turned() if k else s, statistic=statistic, source=nearest[k])
        return judged

    def _by_reclassification(self, given: TrainingSet, found: Sequence[Split]) -> list[Split]:
        """Left out of the training, poison is not taken for its label: l / p < T.

        Half of a class or more may be poison: clusters alike in size are left out in turn. A class is not
        recognised without its clean samples either: of two such clusters the poison is surely of others.
        """
        chosen = self._reclassified(given, [s if s.share <= 0.5 else s.turned() for s in found], 0)
        alike = [s.turned() for s in chosen if s.share >= self.share]
        for t in self._reclassified(given, alike, 1) if alike else []:
            i = next(i for i, s in enumerate(chosen) if s.label == t.label)
            chosen[i] = max(chosen[i], t, key=lambda s: (s.statistic > 1 / self.ratio, s.sure))
        return chosen

    def _reclassified(self, given: TrainingSet, found: Sequence[Split], turn: int) -> list[Split]:
        """One training without the upper clusters of all these splits, and what it says of each."""
        kept = torch.ones(len(given.data), dtype=torch.bool)
        for s in found:
            kept[given.of(s.label)[s.position > 0]] = False
        model = given.train(given.data[kept], derive_seed(given.seed, self.name, "without", turn))
        judged = list(found)
        for i, s in enumerate(found):
            rows = given.of(s.label)[s.position > 0]
            if len(rows):
                with torch.no_grad():
                    batches = [b.to(model.device) for b in given.data.x[rows].split(BATCH)]
                    chances = torch.cat([model.logits(b).softmax(1).cpu() for b in batches])
                count, sure = (
                    chances.argmax(1).bincount(minlength=given.classes),
                    float(chances.amax(1).mean()),
                )
                own, count[s.label] = int(count[s.label]), 0
                other, source = int(count.max()), int(count.argmax())
                statistic = other / max(own, LEAST_STATISTIC)
                judged[i] = replace(s, statistic=statistic, source=source, own=own, other=other, sure=sure)
        return judged


@dataclass(frozen=True, eq=False)
class Split:
    """Two clusters of a class: `position` of its samples along the line between them, poison above 0; share,
    source class of the upper one; l, p and mean confidence where a network trained without it was asked."""

    label: int
    position: Tensor
    statistic: float
    share: float = 0.0
    silhouette: float = 0.0
    source: int | None = None
    own: int | None = None
    other: int | None = None
    sure: float = 0.0

    def turned(self) -> Split:
        """The other cluster is the suspicious one."""
        return replace(self, position=-self.position, share=1 - self.share)


def reduced(features: NDArray[np.float64], most: int, how: str, seed: int) -> NDArray[np.float64] | None:
    """Features (n, D) in their first principal components, or as many independent ones; None: no spread."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    z = features - features.mean(0)
    variance, axes = np.linalg.eigh(z.T @ z / len(z))
    z = z @ axes[:, variance > max(1e-9 * float(variance[-1]), 1e-15)][:, -most:]
    if not z.shape[1] or how == "pca":
        return z if z.shape[1] else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is as good a rotation
        return np.asarray(FastICA(whiten="unit-variance", random_state=seed).fit_transform(z))


def relabelled(data: Data, flagged: Tensor, sources: Mapping[int, int]) -> Data:
    """The repair: flagged samples (N,) get the source class of their label, or go where none is known;
    the network is then fine-tuned on the result."""
    y = data.y.clone()
    for label, source in sources.items():
        y[flagged & (data.y == label)] = source
    known = torch.isin(data.y, torch.tensor(list(sources), dtype=data.y.dtype))
    return data.like(data.x, y)[~flagged | known]
