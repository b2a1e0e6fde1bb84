"""CUBE (Cui et al., NeurIPS 2022 Datasets and Benchmarks): a second cluster under one label.

Poisoned samples share what a network made of the trigger, so they lie together: all samples are put into few
dimensions that keep neighbours together, HDBSCAN finds the dense groups, and of every label the largest group
is kept.

The authors reduce with UMAP. Here it is Laplacian eigenmaps of the graph of nearest neighbours, which UMAP
starts from (scikit-learn's `SpectralEmbedding`): no further library is needed. `standard` suspects groups
of which nearly all bear one label: clean samples that a network takes for another class lie in that one's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST, LEAST_STATISTIC
from backsweep.core.seeds import derive_seed
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding

PRESETS = ("standard", "paper")
MOST = 20_000  # samples that are clustered; more go to the group of their nearest neighbour
FIRST = 32  # principal axes in which neighbours are looked for
DIMENSIONS = {"standard": 5, "paper": 10}  # that samples are put into
NEIGHBOURS = {"standard": 30, "paper": 100}  # of a sample in the graph
DENSE = {"standard": 20, "paper": 100}  # neighbours that HDBSCAN takes for dense
LEAST_SHARE = 0.01  # of all samples, in a group
SCALE = 1e3  # eigenvectors are about 1 / sqrt(N) long
OWN = 0.9  # of a suspected group bear one label
HALF = 0.5  # of a label: larger groups stay (paper); of the largest suspected group: smaller ones do
BATCH = 512


@dataclass(frozen=True)
class Cube(SetDetector):
    """Dense groups of a label beside its largest one.

    It looks at what enters the last affine operation before the head, where that is one vector a sample (the
    state of the first token of BERT), else at the penultimate features.

    Attributes:
        preset: "standard", or "paper": all samples outside the largest group of their label are flagged,
            whether there is poison or not.
        share: of a label, in one group beside the largest, from which on it is suspected.
    """

    name: ClassVar[str] = "cube"
    summary: ClassVar[str] = "a second dense group of samples under one label (CUBE, 2022)"
    code: ClassVar[str] = "BSW207"

    preset: str = "standard"
    share: float = 0.12

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not 0 < self.share < 1:
            raise ValueError(f"share {self.share} is not between 0 and 1")

    @property
    def cautious(self) -> bool:
        """Clean networks of some kinds have such groups too: an alarm alone is no verdict."""
        return self.preset == "standard"

    def applies(self, given: TrainingSet) -> str:
        if reason := given.all_too_small():
            return reason
        return "" if bool(torch.isfinite(given.features).all()) else "it needs features that are all finite"

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        states = hidden(given)
        given.tick(0.3)
        group = groups(states, self.preset, derive_seed(given.seed, self.name) % 2**31)
        given.tick(1.0)
        scores, labels, evidence = np.zeros(len(group)), given.data.y.numpy(), []
        for label in given.looked_at:
            rows = labels == label
            suspected = self._outside(group, rows)
            for own in suspected:
                scores[rows & (group == own)] = suspected[own]
            largest = max(suspected.values(), default=0.0)
            evidence.append(class_evidence(
                self.name, label, max(largest, LEAST_STATISTIC), self._cut(largest),
                groups=float(len(suspected)), samples=float(rows.sum()),
                outside=float((rows & (scores > 0)).sum()),
            ))  # fmt: skip
        return torch.from_numpy(scores), evidence

    def _outside(self, group: NDArray[Any], rows: NDArray[Any]) -> dict[int, float]:
        """Suspected groups of a label with their shares of it."""
        found, counts = np.unique(group[rows], return_counts=True)
        share = {int(g): float(n / rows.sum()) for g, n in zip(found, counts, strict=True)}
        main = max(share, key=lambda g: share[g] if g >= 0 or self.preset == "paper" else -1.0)
        if self.preset == "paper":
            return {g: s for g, s in share.items() if g != main and s < HALF}
        return {
            g: s for g, s in share.items()
            if g not in (main, -1) and (rows & (group == g)).sum() >= OWN * (group == g).sum()
        }  # fmt: skip

    def _cut(self, largest: float) -> float:
        return 0.0 if self.preset == "paper" else HALF * largest * (1 - 1e-6)

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Every class on its own; there is no p-value."""
        paper = self.preset == "paper"
        bound = LEAST_STATISTIC if paper else self.share
        order = sorted(evidence, key=lambda e: -float(e.values["statistic"] or 0))
        some = [e for e in order if float(e.values["statistic"] or 0) > bound]
        return [
            Finding(
                self.code, self.name, ERROR if some else NOTE, _message(e, bool(some), paper), e.target,
                score=float(e.values["statistic"] or 0), threshold=bound,
            )
            for e in some or order[:1]
        ]  # fmt: skip


def hidden(given: TrainingSet) -> NDArray[np.float64]:
    """What stands before the last affine operation below the head (N, D), or the penultimate features."""
    last = given.model.layers() - 1
    if last >= 0:
        batches = given.data.x.split(BATCH)
        first = given.model.entering(batches[0][:2].to(given.model.device), last)
        if first.ndim == 2 and len(first) == min(2, len(batches[0])) and bool(torch.isfinite(first).all()):
            parts = [given.model.entering(b.to(given.model.device), last).float().cpu() for b in batches]
            return torch.cat(parts).double().numpy()
    return given.features.double().numpy()


def groups(states: NDArray[np.float64], preset: str, seed: int) -> NDArray[np.int64]:
    """The dense group of every sample (N,) of states (N, D), -1 for none."""
    from sklearn.cluster import HDBSCAN
    from sklearn.decomposition import PCA
    from sklearn.manifold import SpectralEmbedding
    from sklearn.neighbors import KNeighborsClassifier

    z = states - states.mean(0)
    if float(np.abs(z).max(initial=0.0)) <= 1e-12 or len(z) <= NEIGHBOURS["paper"]:
        return np.zeros(len(z), dtype=np.int64)
    z = PCA(min(FIRST, *z.shape), random_state=seed).fit_transform(z)
    some = np.random.default_rng(seed).permutation(len(z))[:MOST]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # groups that are far apart are what is looked for
        places = SCALE * SpectralEmbedding(
            DIMENSIONS[preset], n_neighbors=NEIGHBOURS[preset], random_state=seed, eigen_solver="arpack"
        ).fit_transform(z[some])  # fmt: skip
    least = max(LEAST, round(LEAST_SHARE * len(some))) if preset == "standard" else 5
    own = HDBSCAN(min_samples=DENSE[preset], min_cluster_size=least, copy=True).fit_predict(places)
    if len(some) == len(z):
        found = np.empty(len(z), dtype=np.int64)
        found[some] = own
        return found
    return np.asarray(KNeighborsClassifier(1).fit(z[some], own).predict(z), dtype=np.int64)


def _message(e: Evidence, flagged: bool, paper: bool) -> str:
    share, outside = float(e.values["statistic"] or 0), float(e.values.get("outside") or 0)
    if paper:
        return f"{outside:.0f} samples lie outside the largest group of this label, poison or not"
    if flagged:
        return f"{share:.1%} of the samples with this label lie together, apart from the largest group"
    return f"no label has a second large group; the largest holds {share:.1%} of its label"
