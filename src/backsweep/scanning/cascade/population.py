"""Clean networks of many kinds: what is usual in each space, and a null for what stands out most.

A kind is task x architecture x training. From clean networks of some kinds follow, for every space, how the
difference d = beta log r - log s scatters among the classes of a network and among networks (`Prior`), and
how the joint score of a clean network scatters within a kind and between kinds (`Null`). Nothing is learned
from attacked ones. A network of a kind that nobody has seen is judged by its own classes as far as it has
some, and by the others for the rest: two classes are enough.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from backsweep.core.statistics import MAD_TO_SIGMA
from backsweep.scanning.cascade.contrast import ALONE, Suspect, of_many
from backsweep.scanning.cascade.measured import Measured

FOLDER = Path(__file__).with_name("populations")  # a file for each kind of input
PAIRS = "pairs"
PAIR_SHARE = 0.2  # of alpha, that pairs have; the rest is the classes'
EFFICIENCY = 0.37  # of the median absolute deviation, for normal values
CAP = 6.0  # that a single signal can say at most
LEADING = 0.5  # of the signals of a class: those that say most, which are joined
SHARE = 0.2  # of clean classes that lie in the tail


@dataclass(frozen=True)
class Prior:
    """The differences in one space, in clean networks of many kinds.

    Attributes:
        center: a network's usual difference.
        between: its standard deviation among networks.
        within: standard deviation of the classes of a network.
        freedom: how many degrees of freedom that is worth beside a network's own classes.
    """

    center: float
    between: float
    within: float
    freedom: float

    def z(self, differences: Mapping[int, float]) -> dict[int, float]:
        """How far each class lies above what is usual among the others, as a normal deviate."""
        keys, values = list(differences), np.array(list(differences.values()), dtype=np.float64)
        return {key: self.deviate(float(values[i]), np.delete(values, i)) for i, key in enumerate(keys)}

    def deviate(self, d: float, others: NDArray[np.float64]) -> float:
        """How far a difference lies above what is usual, as a normal deviate.

        What is usual follows from n others, shrunk towards the prior (the best linear predictor), and so does
        the spread (the moderated variance of Smyth 2004):

            m = (n median(others) + k center) / (n + k),                        k = within^2 / between^2
            v = (freedom within^2 + f MAD(others)^2) / (freedom + f),           f = 0.37 (n - 1)
            t = (d - m) / sqrt(v + within^2 / (n + k))

        is Student's t with freedom + f degrees of freedom.
        """
        count, ratio = len(others), (self.within / self.between) ** 2
        middle = float(np.median(others)) if count else self.center
        free = EFFICIENCY * max(0, count - 1)
        own = (MAD_TO_SIGMA * float(np.median(np.abs(others - middle)))) ** 2 if count > 1 else 0.0
        variance = (self.freedom * self.within**2 + free * own) / (self.freedom + free)
        usual = (count * middle + ratio * self.center) / (count + ratio)
        t = (d - usual) / math.sqrt(variance + self.within**2 / (count + ratio))
        p = float(np.clip(stats.t.sf(t, self.freedom + free), 1e-12, 1 - 1e-12))
        return float(-special.ndtri(p))


@dataclass(frozen=True)
class Null:
    """Scores of clean networks within a kind and between kinds.

    Within a kind the score, minus the log of a chance, is exponential; its rates in the kinds are a Gamma
    distribution. A clean network of a kind that was drawn like them, but not seen, exceeds x with probability

        p(x) = (1 + x / rate)^(-shape)                                                          (Lomax)

    Attributes:
        shape, rate: of that Gamma distribution.
    """

    shape: float
    rate: float

    def p_value(self, score: float) -> float:
        return float((1 + score / self.rate) ** -self.shape)

    def score(self, p_value: float) -> float:
        """The score with that p-value."""
        return float(self.rate * (p_value ** (-1 / self.shape) - 1))


@dataclass(frozen=True)
class Tail:
    """What classes of clean networks are joined to: beyond `start` a share SHARE falls exponentially.

    Attributes:
        start, scale: of that tail.
    """

    start: float
    scale: float

    def chance(self, joint: float) -> float:
        """That one clean class is joined to at least this."""
        if joint >= self.start:
            return SHARE * math.exp(-(joint - self.start) / self.scale)
        return 1 - (1 - SHARE) * joint / self.start


def bounded(z: float) -> float:
    """What a signal says at most, and at least."""
    return min(max(z, 0.0), CAP)


@dataclass(frozen=True)
class Population:
    """What clean networks of many kinds are like.

    Attributes:
        settings: of the detector that measured them.
        priors: by space.
        tried: spaces in which the smallest change was tried on the references.
        pairs: the prior of usual pairs.
        two, many: the tail of clean classes, of networks with two and with more: with two, all that is
            usual comes from other networks.
        null, null_of_pairs: of the scores of networks.
        classes: fewest and most that a network may have.
        references: networks that each was compared with.
        made: kinds, networks, versions.
    """

    settings: Mapping[str, Any]
    priors: Mapping[str, Prior]
    tried: tuple[str, ...]
    pairs: Prior
    two: Tail
    many: Tail
    null: Null
    null_of_pairs: Null
    classes: tuple[int, int]
    references: int
    made: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Population:
        d = dict(document)
        d["priors"] = {name: Prior(**p) for name, p in d["priors"].items()}
        d |= {"pairs": Prior(**d["pairs"]), "classes": tuple(d["classes"]), "tried": tuple(d["tried"])}
        d |= {name: Tail(**d[name]) for name in ("two", "many")}
        return cls(**{**d, "null": Null(**d["null"]), "null_of_pairs": Null(**d["null_of_pairs"])})

    @property
    def words(self) -> str:
        """What a p-value rests on."""
        return f"{self.made.get('networks')} clean networks of {len(self.made.get('kinds', ()))} kinds"

    def fits(self, measured: Measured) -> bool:
        """Whether it speaks of such a network: measured alike, and with about so many classes."""
        low, high = self.classes
        alike = set(measured.sizes) == set(self.priors) and set(measured.works) == set(self.tried)
        return alike and measured.references == self.references and low <= measured.classes <= high

    def z(self, measured: Measured) -> dict[int, dict[str, float]]:
        """By class, what every signal says: sigmas of a space, and log odds of a change that was tried."""
        found: dict[int, dict[str, float]] = {}
        for name, prior in self.priors.items():
            for t, z in prior.z(measured.differences(name)).items():
                found.setdefault(t, {})[name] = z
        for name in self.tried:
            for t, a in measured.alone(name).items():
                found.setdefault(t, {})[ALONE + name] = a
        return found

    def joint(self, z: Mapping[str, float]) -> float:
        """One score of a class: the mean of the half of its signals that say most, each from 0 to CAP.

        Not one, because what is natural often stands out in one space alone; not all, because a backdoor
        need not show in each.
        """
        values = sorted((bounded(v) for v in z.values()), reverse=True)
        return statistics.fmean(values[: max(1, round(LEADING * len(values)))])

    def score(self, joint: float, classes: int) -> float:
        """Minus the log of the chance that the first of so many clean classes is joined to at least this."""
        chance = (self.two if classes == 2 else self.many).chance(joint)
        return -math.log(max(of_many(chance, classes), 1e-300))

    def best_pairs(self, measured: Measured) -> dict[int, tuple[float, float, int]]:
        """By target, of the pair that stands out most: its sigmas, its score, and its source."""
        usual = np.array([p.difference for p in measured.pairs if p.usual])
        standing = [p for p in measured.pairs if not p.usual] if measured.classes > 2 else []
        found: dict[int, tuple[float, float, int]] = {}
        for pair in standing:
            z = self.pairs.deviate(pair.difference, usual)
            chance = of_many(float(stats.norm.sf(z)), len(standing))
            found[pair.target] = max(
                found.get(pair.target, (-math.inf, 0.0, 0)), (z, -math.log(chance), pair.source)
            )
        return found

    def suspects(self, measured: Measured) -> list[Suspect]:
        """All classes that were measured, or stand out in a pair, most suspicious first.

        A class and its pairs share alpha (weighted Bonferroni); of two classes a pair is a class.
        """
        z, pairs, found = self.z(measured), self.best_pairs(measured), []
        for t in sorted({*z, *pairs}):
            own = self.null.p_value(self.score(self.joint(z[t]), measured.classes)) if t in z else 1.0
            sigma, score, source = pairs.get(t, (0.0, 0.0, 0))
            in_pair = self.null_of_pairs.p_value(score)
            p_value = own if measured.classes < 3 else min(1.0, own / (1 - PAIR_SHARE), in_pair / PAIR_SHARE)
            by_pair = t in pairs and in_pair / PAIR_SHARE < own / (1 - PAIR_SHARE)
            said = {**z.get(t, {}), **({PAIRS: sigma} if t in pairs else {})}
            found.append(Suspect(t, p_value, p_value, source if by_pair else None, said))
        return sorted(found, key=lambda s: (s.p_value, s.target))


def speaks(spaces: Iterable[str], classes: int) -> bool:
    """Whether clean networks are known with about so many classes that were measured in these spaces."""
    names = set(spaces)
    return any(set(p.priors) == names and p.classes[0] <= classes <= p.classes[1] for p in known())


@lru_cache(maxsize=1)
def known() -> tuple[Population, ...]:
    """The populations that come with the package."""
    return tuple(
        Population.read(document)
        for path in sorted(FOLDER.glob("*.json"))
        for document in json.loads(path.read_text(encoding="utf-8"))
    )
