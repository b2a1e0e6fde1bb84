"""Statistics of an outlier among classes, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAD_TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal
DRAWS, BOOTSTRAP_SEED = 2000, 20_190_520
Array = NDArray[np.float64]


def anomaly_index(values: Sequence[float], least_spread: float = 0.0) -> Array:
    """Neural Cleanse's index of every value, signed: how far *below* the median, in robust sigmas.

    index_i = (median - v_i) / max(1.4826 * median|v - median|, least_spread)   (section IV-B)

    For an even number of values the two middle ones are averaged. A value of +inf ("larger than
    could be measured") takes part in the ranks; where half of the values are infinite, or nothing
    spreads, every index is 0.

    Args:
        values: one per class.
        least_spread: a smaller spread than this is taken for an accident of few values.
    """
    v = np.asarray(values, dtype=np.float64)
    return _index(v[None], least_spread)[0]


def center_and_spread(v: Array, least_spread: float = 0.0) -> tuple[Array, Array]:
    """Median and robust sigma (1.4826 * MAD, at least `least_spread`) along the last axis, kept."""
    with np.errstate(invalid="ignore"):
        center = np.median(v, axis=-1, keepdims=True)
        spread = MAD_TO_SIGMA * np.median(np.abs(v - center), axis=-1, keepdims=True)
    return center, np.maximum(spread, least_spread)


def _index(v: Array, least_spread: float = 0.0) -> Array:
    """`anomaly_index` along the last axis."""
    center, spread = center_and_spread(v, least_spread)
    with np.errstate(invalid="ignore", divide="ignore"):
        index = (center - v) / spread
    usable = np.isfinite(center) & np.isfinite(spread) & (spread > 0)
    return np.where(usable, np.where(np.isfinite(index), index, -np.inf), 0.0)


def without_medians(table: Array, rows: Sequence[int], columns: Sequence[int]) -> Array:
    """A flat table less the medians of its rows, then of its columns; infinite entries stay."""
    left = np.array(table, dtype=np.float64)
    for keys in (np.asarray(rows), np.asarray(columns)):
        for key in np.unique(keys):
            center = np.median(left[keys == key])
            left[keys == key] -= center if np.isfinite(center) else 0.0
    return left


# The null of an index with a least spread: clean models spread twice as widely as that.
NULL_SPREAD = 2.0


@lru_cache(maxsize=32)
def _null(classes: int, floored: bool) -> Array:
    """Sorted largest index of clean models with normal values, by simulation (fixed seed)."""
    draws = int(min(400_000, max(20_000, 20_000_000 // classes)))
    if classes > 10_000:  # as many as take a few seconds
        draws = max(200, 200_000_000 // classes)
    rng = np.random.default_rng(20_190_520)
    parts, most = [], max(1, min(20_000, 20_000_000 // classes))  # draws at once; the numbers stay the same
    for start in range(0, draws, most):
        v = rng.standard_normal((min(most, draws - start), classes))
        parts.append(_index(v, 1 / NULL_SPREAD if floored else 0.0).max(axis=1))
    return np.sort(np.concatenate(parts))


def chance_of_index(index: float, classes: int, floored: bool = False) -> float:
    """Probability that the largest index among `classes` classes of a clean model is >= `index`.

    Null: the values of a clean model are independent draws from one normal distribution (for norms:
    their logarithms are). The estimate (1 + hits) / (1 + draws) never says 0.

    Args:
        index: of `anomaly_index`.
        classes: number of values.
        floored: whether the index was taken with a `least_spread`. The null then spreads
            `NULL_SPREAD` times as widely, so that the floor helps against an accidentally small
            spread and a model that truly spreads up to that much raises no more alarms than stated.
    """
    if classes < 3 or not math.isfinite(index):
        return 1.0
    null = _null(classes, floored)
    return float(1 + len(null) - np.searchsorted(null, index, side="left")) / (1 + len(null))


def index_at(alpha: float, classes: int, floored: bool = False) -> float | None:
    """Index that a clean model exceeds with probability `alpha`; None where none can (2 classes)."""
    return float(np.quantile(_null(classes, floored), 1 - alpha)) if classes >= 3 else None


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson interval of a share (95 % by default)."""
    if n == 0:
        return (0.0, 1.0)
    p = hits / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(0.0, center - half), min(1.0, center + half)
    return (min(low, p), max(high, p))  # rounding may push an end past the share, where it is 0 or 1


@dataclass(frozen=True)
class Share:
    """Hits among n networks."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share itself, 0 of none."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson(self.hits, self.n)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval; `fpr` is the false-alarm rate that it comes with."""

    value: float
    low: float
    high: float
    fpr: float | None = None


def estimate(value: float, drawn: Array, fpr: float | None = None) -> Estimate:
    """A figure with the middle 95 % of its bootstrap draws."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), fpr)


def mean_estimate(values: Sequence[float]) -> Estimate | None:
    """The mean; the bootstrap draws values with a fixed seed, their order changes nothing."""
    if not values:
        return None
    v = np.sort(np.asarray(values, dtype=np.float64))
    rows = np.random.default_rng(BOOTSTRAP_SEED).integers(len(v), size=(DRAWS, len(v)))
    return estimate(float(v.mean()), v[rows].mean(axis=1))
