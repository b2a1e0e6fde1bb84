"""Clean networks of many kinds: how much their classes differ from a reference, and what that is worth.

A kind is task x architecture x training. From clean networks of some kinds follow, for every space, how the
difference d = beta log r - log s scatters among the classes of a network and among networks (`Prior`), how the spaces are joined
(`weights`), and how the joint score of a clean network scatters within a kind and between kinds (`Null`).
A network of a kind that nobody has seen is then judged by its own classes as far as it has some, and by the
others for the rest, so that two classes are enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from backsweep.core.statistics import MAD_TO_SIGMA

MAD_EFFICIENCY = 0.37  # of the median absolute deviation, for normal values
CAP = 6.0  # sigmas that a single space can say at most


@dataclass(frozen=True)
class Prior:
    """The differences in one space, in clean networks.

    Attributes:
        center: usual difference.
        between: standard deviation of a network's usual difference around it.
        within: standard deviation of the classes of a network.
        freedom: how many degrees of freedom that is worth beside a network's own.
    """

    center: float
    between: float
    within: float
    freedom: float

    def z(self, d: Sequence[float]) -> list[float]:
        """How far each class lies above what is usual, in sigmas.

        What is usual follows from the *other* classes, shrunk towards the prior (the best linear predictor), and
        so does the spread (the moderated variance of Smyth 2004):

            m_t = w median(d_-t) + (1 - w) center,    w = (C - 1) / (C - 1 + within^2 / between^2)
            s_t^2 = (freedom within^2 + f MAD(d_-t)^2) / (freedom + f),   f = 0.37 (C - 2)
            z_t = (d_t - m_t) / sqrt(s_t^2 + within^2 / (C - 1 + within^2 / between^2))

        turned from Student's t with freedom + f degrees into a normal deviate.
        """
        values, ratio = np.asarray(d, dtype=np.float64), (self.within / self.between) ** 2
        found = []
        for t in range(len(values)):
            others = np.delete(values, t)
            count = len(others)
            middle = float(np.median(others)) if count else self.center
            w = count / (count + ratio)
            free = MAD_EFFICIENCY * max(0, count - 1)
            own = (MAD_TO_SIGMA * float(np.median(np.abs(others - middle)))) ** 2 if count > 1 else 0.0
            variance = (self.freedom * self.within**2 + free * own) / (self.freedom + free)
            spread = math.sqrt(variance + self.within**2 / (count + ratio))
            value = (values[t] - w * middle - (1 - w) * self.center) / spread
            found.append(float(-special.ndtri(stats.t.sf(value, self.freedom + free))))
        return found
