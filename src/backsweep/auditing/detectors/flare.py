"""FLARE (Hou et al., TIFS 2025): poisoned samples leave what the normalisation of some layer expects.

A BatchNorm knows mean and variance of every channel c of its layer l over the training set. Of a sample x

    LL_l(x) = min over channels c and positions p of  log N(a_lcp(x); mean_lc, var_lc)

says how far the oddest activation a lies out; one number a layer, no label. `paper` puts these vectors into
the plane by UMAP, takes the tree of HDBSCAN and walks down its largest heap until one holds together for
longer than xi in density: what then lies in other heaps is poison. While none does, a last layer is left out.

`standard` (ours) keeps every channel: with z = (a - mean) / sd,

    r_lc(x) = max over positions of |z_lcp(x)|

and asks of every class whether its samples have two means there, as SCAn asks of the penultimate features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC
from backsweep.auditing.neighbours import Tree, layout
from backsweep.auditing.normalisation import likelihood, normalised, outlying, remotest
from backsweep.auditing.untangling import of_classes, reduced, within_groups
from backsweep.core.seeds import derive_seed
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding

PRESETS = ("standard", "paper")
NEIGHBOURS, HEAP, STEPS = 40, 100, 3  # of UMAP; samples in a heap; heaps that the walk looks at
BEFORE = 1e-4  # density before a heap falls apart at which heaps are told
MOST = 20_000  # samples that are laid out; more go with their nearest one
DIMENSIONS = 64  # of the representation, at most
SHARPNESS = 2.5  # power of the separation, so that its logarithm spreads by about 0.5 among clean classes


@dataclass(frozen=True)
class Flare(SetDetector):
    """Samples whose activations lie outside what BatchNorm layers expect.

    Attributes:
        preset: "paper" looks for heaps in the whole set, without labels, and flags all but the largest,
            whether there is poison or not; "standard" for a second kind of samples in each class.
        xi: density that a heap holds together for, of the preset "paper".
    """

    name: ClassVar[str] = "flare"
    summary: ClassVar[str] = "samples outside what BatchNorm layers expect (FLARE, 2025)"
    code: ClassVar[str] = "BSW208"

    preset: str = "standard"
    xi: float = 0.02

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not self.xi > 0:
            raise ValueError(f"xi {self.xi} is not above 0")

    @property
    def cautious(self) -> bool:
        """Unpoisoned sets have such classes by nature (thin digits): an alarm alone is no verdict."""
        return self.preset == "standard"

    def applies(self, given: TrainingSet) -> str:
        if reason := given.all_too_small():
            return reason
        if not normalised(given.model, given.data.x[:1], remotest):
            return "it needs BatchNorm layers with running statistics; this network has none"
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        what = likelihood if self.preset == "paper" else remotest
        seen = outlying(given.model, given.data.x, what, lambda share: given.tick(0.6 * share))
        told = self._heaps if self.preset == "paper" else self._classes
        return told(given, torch.cat(seen, 1))

    def _classes(self, given: TrainingSet, r: Tensor) -> tuple[Tensor, list[Evidence]]:
        """Two means in every class, in the space of the channels (N, C)."""
        labels = given.looked_at
        scores = torch.full((len(r),), -1.0)
        z, y, evidence = reduced(r.log1p(), DIMENSIONS), given.data.y, []
        if not z.shape[1]:
            return scores, [class_evidence(self.name, c, LEAST_STATISTIC, 0.0) for c in labels]
        for label, rows, best in of_classes(z, y, labels, within_groups(z, y, labels)):
            scores[rows] = best.position.float()
            evidence.append(class_evidence(
                self.name, label, max(best.separation**SHARPNESS, LEAST_STATISTIC), 0.0,
                separation=best.separation, share=best.share, distance=best.distance,
            ))  # fmt: skip
        return scores, evidence

    def _heaps(self, given: TrainingSet, ll: Tensor) -> tuple[Tensor, list[Evidence]]:
        """Everything outside the largest heap of the first layers that have a lasting one."""
        odd, kept = np.zeros(len(ll), dtype=bool), 0
        seed = derive_seed(given.seed, self.name) % 2**31
        some = np.random.default_rng(seed).permutation(len(ll))[:MOST]
        for count in range(ll.shape[1], 0, -1):
            x = ll[:, :count].double().numpy()
            heap = split(Tree.of(layout(x[some], NEIGHBOURS, seed), HEAP), self.xi)
            given.tick(0.6 + 0.4 * (ll.shape[1] - count + 1) / ll.shape[1])
            if heap is not None:
                odd, kept = _everywhere(x, some, heap), count
                break
        scores, evidence = torch.from_numpy(odd).float(), []
        for label in given.looked_at:
            rows = given.of(label)
            share = float(scores[rows].mean())
            evidence.append(class_evidence(
                self.name, label, max(share, LEAST_STATISTIC), 0.5, layers=float(kept),
                outside=float(scores[rows].sum()),
            ))  # fmt: skip
        return scores, evidence

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outliers among the classes; with "paper" every class of which anything is flagged."""
        if self.preset == "standard":
            return super().judge(evidence, classes, alpha)
        order = sorted(evidence, key=lambda e: -float(e.values["statistic"] or 0))
        some = [e for e in order if float(e.values.get("outside") or 0) > 0]
        return [
            Finding(
                self.code, self.name, ERROR if some else NOTE, _message(e), e.target,
                score=float(e.values["statistic"] or 0), threshold=LEAST_STATISTIC,
            )
            for e in some or order[:1]
        ]  # fmt: skip


def _message(e: Evidence) -> str:
    outside = float(e.values.get("outside") or 0)
    if not outside:
        return "the set does not fall into heaps; nothing is flagged"
    return f"{outside:.0f} samples of this label lie outside the largest heap of the set, poison or not"


def split(tree: Tree, xi: float) -> NDArray[np.bool_] | None:
    """Which samples (N,) lie in another heap than the largest one, once that lasts; None: it never does.

    A heap lasts when the density at which it falls apart is by more than xi above that of its birth.
    """
    parts = tree.halves(2 * len(tree.left), HEAP)  # of all samples
    for _ in range(STEPS):
        if parts is None:
            return None
        born, largest, _small = parts
        parts = tree.halves(largest, HEAP)
        if parts is None or parts[0] - born > xi:
            at = born * (1 + 1e-9) if parts is None else parts[0] - BEFORE
            heap = tree.cut(max(at, born * (1 + 1e-9)), HEAP)
            names, counts = np.unique(heap[heap >= 0], return_counts=True)
            return (heap >= 0) & (heap != names[counts.argmax()]) if len(names) else None
    return None


def _everywhere(x: NDArray[Any], some: NDArray[Any], heap: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is known of some rows of x, for all: as the nearest of them."""
    from sklearn.neighbors import KNeighborsClassifier

    if len(some) == len(x):
        found = np.empty(len(x), dtype=bool)
        found[some] = heap
        return found
    return np.asarray(KNeighborsClassifier(1).fit(x[some], heap).predict(x), dtype=bool)
