"""Features of texts, counted, and naive Bayes on them: what does the rest of a text say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FOLDS, SMOOTH = 5, 1.0
Array = NDArray[np.float64]


@dataclass
class Tied:
    """A feature with a label.

    Attributes:
        feature: its column.
        rows: texts that have it and the label.
        agrees: share of them to which the rest gives the label.
        over: share of the texts with the feature, whose rest says another label, that have this one.
        p: the larger of two p-values: the rest agrees so seldom, the feature overrules it so often.
        surely: a lower bound of `over`.
    """

    feature: int
    rows: NDArray[np.int64]
    agrees: float
    over: float
    p: float
    surely: float


def counted(named: Sequence[Sequence[str]], least: int) -> tuple[list[str], Any]:
    """Names of the features that at least so many texts have, and which have them: a sparse matrix (N, F)."""
    from scipy.sparse import csr_matrix

    index: dict[str, int] = {}
    places = [[index.setdefault(n, len(index)) for n in row] for row in named]
    ends = np.cumsum([0, *map(len, places)])
    flat = np.fromiter((p for row in places for p in row), dtype=np.int64, count=int(ends[-1]))
    matrix = csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(named), max(1, len(index))))
    kept = np.flatnonzero(np.asarray(matrix.sum(0)).ravel() >= least)
    names = list(index)
    return [names[i] for i in kept], matrix[:, kept].tocsr()


def by_label(matrix: Any, labels: Any, classes: int) -> Array:
    """How many texts of each label have each feature, (classes, F)."""
    return np.stack([np.asarray(matrix[labels == y].sum(0)).ravel() for y in range(classes)])


def likely(counts: Array, sizes: Array) -> tuple[Array, Array]:
    """Naive Bayes of what is there: log chances of features given labels (classes, F), and of labels."""
    return np.log((counts + SMOOTH) / (sizes[:, None] + 2 * SMOOTH)), np.log((sizes + 1e-9) / sizes.sum())


def folded(matrix: Any, labels: Any, classes: int, generator: torch.Generator) -> Array:
    """How often naive Bayes is right about each label, on folds that it did not learn from."""
    fold = torch.randint(FOLDS, (len(labels),), generator=generator).numpy()
    counts, sizes = by_label(matrix, labels, classes), np.bincount(labels, minlength=classes).astype(float)
    right = np.zeros(len(labels), dtype=bool)
    for k in range(FOLDS):
        rows = np.flatnonzero(fold == k)
        less = np.bincount(labels[rows], minlength=classes).astype(float)
        chance, prior = likely(counts - by_label(matrix[rows], labels[rows], classes), sizes - less)
        right[rows] = (matrix[rows] @ chance.T + prior).argmax(1) == labels[rows]
    return np.array([right[labels == y].mean() if (labels == y).any() else 1.0 for y in range(classes)])


class Left:
    """The texts that are left, when those of some features were taken out.

    Args:
        matrix, columns: features of texts (N, F), by rows and by columns.
        labels: (N,).
    """

    def __init__(self, matrix: Any, columns: Any, labels: Any, classes: int) -> None:
        self.matrix, self.columns, self.labels, self.classes = matrix, columns, labels, classes
        self.there = np.ones(len(labels), dtype=bool)
        self.counts = by_label(matrix, labels, classes)
        self.sizes = np.bincount(labels, minlength=classes).astype(float)

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Take texts out."""
        self.there[rows] = False
        counts, sizes = self._of(rows)
        self.counts, self.sizes = self.counts - counts, self.sizes - sizes

    def read(self, g: int, y: int, right: float, slack: float, natural: float, least: int) -> Tied | None:
        """What the rest of the texts with a feature says, to naive Bayes of those without it.

        Args:
            right: how often it is right about the label.
            slack: by how much the odds of that may be smaller.
            natural: how often a feature may get its label where the rest says another one.
            least: texts with both, below which nothing is said.
        """
        from scipy.stats import beta, binom

        having = self.columns.indices[self.columns.indptr[g] : self.columns.indptr[g + 1]]
        having = having[self.there[having]]
        rows = having[self.labels[having] == y]
        if len(rows) < least:
            return None
        counts, sizes = self._of(having)
        chance, prior = likely(self.counts - counts, self.sizes - sizes)
        says = (self.matrix[having] @ chance.T + prior).argmax(1)
        own = self.labels[having] == y
        agree, other = int((own & (says == y)).sum()), int((says != y).sum())
        over = int((own & (says != y)).sum())
        odds = right / (slack * max(1 - right, 1e-6))
        seldom = float(binom.cdf(agree, len(rows), odds / (1 + odds)))
        always = float(binom.sf(over - 1, other, natural)) if over else 1.0
        least_over = float(beta.ppf(0.05, over, other - over + 1)) if over else 0.0
        return Tied(g, rows, agree / len(rows), over / max(1, other), max(seldom, always), least_over)

    def _of(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        labels = self.labels[rows]
        sizes = np.bincount(labels, minlength=self.classes).astype(float)
        return by_label(self.matrix[rows], labels, self.classes), sizes


def adjusted(p: Sequence[float], tests: int) -> list[float]:
    """p-values adjusted for the share of false discoveries among all tests (Benjamini, Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    every = np.concatenate([p, np.ones(tests - len(p))])  # those that are not among p say nothing
    return [float(v) for v in false_discovery_control(every)[: len(p)]]
