"""Clean scores as a scale: how surprising a new score is, and whether many new ones have drifted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

FOLDS = 100  # in which clean scores are left out, where there are more of them
TAIL, LEAST_TAIL = 0.1, 10  # share and number of the highest clean scores that the tail is fitted to
MOST_SURPRISE = 1e6  # also of a score that is no number: fail closed
DRIFT_INPUTS, DRIFT_P, DRIFT_DISTANCE = 100, 0.001, 0.1


@dataclass(frozen=True)
class Drift:
    """Whether inputs are still like the clean samples that the guard was calibrated with.

    Attributes:
        p_value: of the Kolmogorov-Smirnov test over unflagged inputs; None for too few of them.
        distance: its statistic: the largest gap between the two distribution functions.
        drifted: whether both the p-value is small and the distance large.
        message: one sentence.
        flagged: share of flagged inputs.
        flagged_p_value: chance that so many or more clean inputs are flagged.
    """

    p_value: float | None
    distance: float | None
    drifted: bool
    message: str
    flagged: float
    flagged_p_value: float


class Surprise:
    """How rare a score would be among clean inputs: -log10 of its conformal tail probability.

    For n clean scores p(s) = (1 + #{clean >= s}) / (n + 1), at the clean scores themselves. Between them the
    logarithm is linear. Above the largest one p falls as an exponential tail does that is fitted to
    the highest tenth, so the surprise rises strictly, without end.
    """

    def __init__(self, clean: Tensor) -> None:
        s = np.sort(clean.double().numpy())
        self.knots, counts = np.unique(s, return_counts=True)
        above = np.cumsum(counts[::-1])[::-1]  # how many are as large as each of them, or larger
        self.values = -np.log10((1 + above) / (len(s) + 1))
        k = min(len(s) - 1, max(LEAST_TAIL, math.ceil(TAIL * len(s))))
        scale = float((s[-k:] - s[-k - 1]).mean()) if k > 0 else 0.0
        least = 1e-6 * max(1.0, abs(float(s[-1])))  # where all clean scores are alike
        self.slope = 1 / (max(scale, least) * math.log(10))

    def __call__(self, scores: Tensor) -> Tensor:
        """Surprises (N,), float64, finite; a score that is no number is as surprising as can be."""
        s = np.nan_to_num(scores.double().numpy(), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        beyond = np.maximum(s - self.knots[-1], 0) + np.minimum(s - self.knots[0], 0)
        found = np.interp(s, self.knots, self.values) + beyond * self.slope
        return torch.from_numpy(np.clip(found, -MOST_SURPRISE, MOST_SURPRISE))


def joint(surprises: Sequence[Tensor], bounded: bool = True) -> Tensor:
    """One score (N,) of the surprises of several detectors: their sum, as Fisher joins p-values.

    Beside others a surprise is at least 0, since p is at most 1: a detector to which an input looks less
    suspicious than any clean one does not speak for it. With `bounded` off it does, as in guards of before.
    """
    if bounded and len(surprises) > 1:
        surprises = [s.clamp_min(0) for s in surprises]
    return torch.stack(list(surprises)).sum(0)


def left_out(clean: Tensor) -> Tensor:
    """Surprises (N,) of N clean scores, each among the others: as a new score's is among all of them.

    With more than `FOLDS`, those of a fold are left out together (the jackknife, and its K-fold form).
    """
    found = torch.empty(len(clean), dtype=torch.float64)
    folds = torch.arange(len(clean)) % FOLDS
    for fold in folds.unique():
        out = folds == fold
        found[out] = Surprise(clean[~out])(clean[out])
    return found


def compared(scores: Tensor, calibration: Tensor, threshold: float, fpr: float) -> Drift:
    """Compare the scores of inputs in service with those of the calibration.

    Both are cut at the threshold, so that attacked inputs alone are no drift. How many are flagged is
    judged on its own, by the beta-binomial law of a threshold that so many clean samples have set.
    """
    new, n = scores.double().flatten(), len(calibration)
    count, flagged = len(new), int((new > threshold).sum())
    rank = math.ceil((n + 1) * (1 - fpr) - 1e-9)
    p_flagged = float(stats.betabinom.sf(flagged - 1, count, n + 1 - rank, rank)) if flagged else 1.0
    kept, known = (s[s <= threshold].numpy() for s in (new, calibration))
    if len(kept) < DRIFT_INPUTS:
        p_value, distance, drifted = None, None, False
        message = f"{len(kept)} unflagged inputs are too few to tell; {DRIFT_INPUTS} are needed"
    else:
        test = stats.ks_2samp(kept, known, method="asymp")
        p_value, distance = float(test.pvalue), float(test.statistic)
        drifted = p_value < DRIFT_P and distance > DRIFT_DISTANCE
        like = "unlike the clean samples: drifted, or attacked unnoticed" if drifted else "as before"
        message = f"unflagged inputs score {like} (distance {distance:.3f}, p = {p_value:.2g})"
    share = flagged / count if count else 0.0
    if p_flagged < DRIFT_P:
        message += f"; {share:.1%} are flagged, of clean inputs {fpr:.1%} would be: under attack, or drifted"
    return Drift(p_value, distance, drifted, message, share, p_flagged)
