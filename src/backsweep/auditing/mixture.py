"""Are there two kinds of samples in a class? Two normal components against one, on one number a sample.

What an audit looks for is a second kind of sample under one label. A score of the samples of a class is
described by one normal distribution and by two; how much better two are, per sample, does not hang on the
unit of the score, and hardly on the number of samples.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST_STATISTIC = 1e-3  # of a class; smaller ones are alike
REMOVED = 1.5  # times eps n samples of a class go, where at most eps n of them may be poisoned
LEAST = 20  # samples of a class, below which it is not looked at
LEAST_SPREAD = 0.1  # of a component, in standard deviations of all samples: a heap of equal values is none
HIGH = 0.995  # quantile at which the upper component is looked for first


@dataclass(frozen=True)
class Two:
    """Two normal components of a number, the upper one suspected.

    Attributes:
        gain: twice the mean log-likelihood that two components gain over one, at least 0.
        low, high: their means.
        share: weight of the upper component.
        cut: where a sample is as likely to be of either, at least the mean of the lower one.
    """

    gain: float
    low: float
    high: float
    share: float
    cut: float


def two_components(values: NDArray[np.float64]) -> Two | None:
    """Fit both to values (n,); None where there are too few or nothing spreads."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    v = np.asarray(values, dtype=np.float64)
    if len(v) < LEAST or not np.isfinite(v).all() or v.std() <= 1e-12 * max(1.0, float(np.abs(v).max())):
        return None
    centre, spread = float(np.median(v)), float(v.std())
    z = ((v - centre) / spread)[:, None]
    start = np.quantile(z, [0.3, HIGH])[:, None]
    both = GaussianMixture(
        2, means_init=start, weights_init=[0.9, 0.1], reg_covar=LEAST_SPREAD**2, tol=1e-4, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is as good a description
        both.fit(z)
    gain = 2 * (both.score(z) - GaussianMixture(1, random_state=0).fit(z).score(z))
    low, high = np.argsort(both.means_.ravel())
    means, weights = both.means_.ravel(), both.weights_
    line = np.linspace(means[low], max(means[high], z.max()), 2001)[:, None]
    upper = both.predict_proba(line)[:, high] >= 0.5
    # the first point from which on the upper component stays the likelier one, up to its own mean
    own = np.nonzero(upper & (line.ravel() <= means[high] + 1e-12))[0]
    cut = float(line[own[0], 0]) if len(own) else float(means[high])
    return Two(
        max(0.0, float(gain)), centre + spread * float(means[low]), centre + spread * float(means[high]),
        float(weights[high]), centre + spread * cut,
    )  # fmt: skip


def separation(position: Tensor) -> float:
    """What two normal components gain over one on a line cut at 0: T / W exp(-2 H(p)).

    T: variance, W: within the two parts, p: share of one. The squared likelihood ratio of a sample; about 1
    for what is no two heaps (0.69 for one normal distribution cut in its middle).
    """
    upper = position > 0
    p = float(upper.double().mean())
    if not 0 < p < 1:
        return LEAST_STATISTIC
    low, high = (float(position[part].var(correction=0)) for part in (~upper, upper))
    within = (1 - p) * low + p * high
    return float(position.var(correction=0)) / max(within, 1e-12) * (p**p * (1 - p) ** (1 - p)) ** 2


def runners_up(logits: Tensor, label: int) -> Tensor:
    """The likeliest class (N,) other than `label`: the trace of what a relabelled sample was."""
    return logits.index_fill(1, torch.tensor([label]), -math.inf).argmax(1)


def variety(classes: Tensor) -> float:
    """Entropy of class indices (N,): large for a mixture of samples from all classes."""
    share = classes.bincount().double() / max(len(classes), 1)
    return float(torch.special.entr(share).sum())


def budget_cut(scores: Tensor, eps: float) -> float:
    """The score that the ceil(1.5 eps n) largest of scores (n,) exceed."""
    removed = min(math.ceil(REMOVED * eps * len(scores) - 1e-9), len(scores) - 1)
    return float(scores.sort(descending=True).values[removed])
