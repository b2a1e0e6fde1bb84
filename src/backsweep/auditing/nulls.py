"""Unpoisoned sets that an audit is compared with: one p-value for all its detectors together.

A table holds, for every one of n unpoisoned sets, the largest statistic that each detector gave a class.
The set under suspicion is set number n + 1. Within these n + 1 sets

    r_d(k) = share of the sets to which detector d gives at least what it gives set k
    m(k)   = the smallest r_d(k) of the detectors that ran
    p      = share of the sets with m(k) <= m(the set)                       (the smallest p-value, ranked)

and where the table has sets of several kinds, shares are over kinds: each counts alike, however many sets it
has, and the set under suspicion is a kind of its own (Dunn, Wasserman and Ramdas 2022; statistics.md).
Sets with the same m are told apart by how far the statistic lies above the median, in robust sigmas of its
logarithm. All n + 1 sets are treated alike, so p holds exactly if the set, being unpoisoned, is one more
draw like those of the table, however the detectors hang together (single-step min P, Westfall, Young 1993).
A class with a smaller statistic than the largest of its set gets the p-value that the set would have if that
were its largest.

A scan of the network says of every class how likely it is planted, and does not look at the samples that are
suspected. The two p-values of a class are joined (`joined`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from backsweep.auditing.mixture import LEAST_STATISTIC
from backsweep.core.statistics import MAD_TO_SIGMA
from backsweep.scanning.calibration import Judging, list_of, measured_as

FOLDER = Path(__file__).parent / "unpoisoned"
ANY = "*"  # layout of a table for networks of every kind
ALIKE = 2.0  # sets of up to so many times more or fewer samples are of one size
# Sets, or kinds, that can decide at 0.05: a table of fewer only speaks where no other does.
ENOUGH = 19
STEPS = 60  # of the search for the statistic at which an alarm begins
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sets:
    """Unpoisoned sets of one kind and size, and what the detectors gave each.

    Attributes:
        layout: digest of the shapes of the weights of their networks (`Model.layout`), or `ANY`: for
            statistics that do not hang on the kind of network; then shape and classes do not count.
        shape, classes: of their inputs and outputs.
        samples: of one set; the median where they differ.
        columns: for every detector its name, its settings and its `scores`, the largest statistic in each set
            in the order of the sets; None where it was not asked.
        made: how: kind, sets, versions.
        kinds: of every set, where there are several; empty: each set counts for itself.
    """

    layout: str
    shape: Sequence[int]
    classes: int
    samples: int
    columns: Sequence[Mapping[str, Any]]
    made: Mapping[str, Any]
    kinds: Sequence[str] = ()

    def of(self, detector: Judging) -> Mapping[str, Any] | None:
        """The column of a detector as it is set."""
        for column in self.columns:
            if column["detector"] == detector.name and measured_as(column["settings"], detector):
                return column
        return None

    def of_kind(self, model: Mapping[str, Any]) -> bool:
        """Whether its networks are like this one, as a report describes it."""
        keys = ("layout", "shape", "classes")
        return all(list_of(model.get(k)) == list_of(getattr(self, k)) for k in keys)

    def speaks(self, model: Mapping[str, Any]) -> bool:
        """Whether networks like this one are among its own, or of another kind of image."""
        return self.of_kind(model) or (self.layout == ANY and not model.get("modality"))

    def far(self, samples: int) -> float:
        """How many times larger or smaller its sets are than one of so many samples, at least 1."""
        return max(self.samples, samples) / max(1, min(self.samples, samples))


@dataclass(frozen=True)
class Together:
    """Detectors that are judged by one table, and what they gave the set under suspicion.

    Attributes:
        names: of the detectors.
        table: their largest statistics in the sets of the table (n, detectors).
        own: in the set under suspicion (detectors,).
        words: what the sets are.
        kinds: of every set of the table; None: each set counts for itself.
        second: by class a p-value that does not hang on the samples, of a scan of the network; empty: none.
    """

    names: tuple[str, ...]
    table: Array
    own: Array
    words: str
    kinds: Sequence[str] | None = None
    second: Mapping[int, float] = field(default_factory=dict)

    @cached_property
    def weights(self) -> Array:
        """Of the set under suspicion, first, and of those of the table: those of a kind add up to 1."""
        kinds = [str(i) for i in range(len(self.table))] if self.kinds is None else list(self.kinds)
        count = Counter(kinds)
        return np.array([1.0, *(1 / count[k] for k in kinds)])

    @property
    def least(self) -> float:
        """The smallest p-value that there can be."""
        return 0.0 if self.second else 1 / (1 + round(math.fsum(self.weights[1:]), 9))

    def p_value(self, name: str, score: float | None) -> float:
        """The p-value of the set if `score` were the largest statistic of a detector."""
        place = self.names.index(name)
        logs = np.log(np.maximum(np.vstack([self.own, self.table]), LEAST_STATISTIC))
        logs[0, place] = -math.inf if score is None else math.log(max(score, LEAST_STATISTIC))
        # r_d(k), rounded: sums of weights in another order are no other rank
        ranks = np.round(np.einsum("i,ikd->kd", self.weights, logs[:, None] >= logs[None]), 9)
        center = np.median(logs, axis=0)
        spread = MAD_TO_SIGMA * np.median(np.abs(logs - center), axis=0)
        with np.errstate(invalid="ignore"):
            sigmas = np.nan_to_num((logs - center) / np.maximum(spread, 1e-9), nan=-math.inf, posinf=1e300)
        least = ranks.min(axis=1)
        tie = np.where(ranks == least[:, None], sigmas, -math.inf).max(axis=1)
        rank, sigma = ranks[0, place], sigmas[0, place]
        as_far = (least[1:] < rank) | ((least[1:] == rank) & (tie[1:] >= sigma))
        far = round(math.fsum(self.weights[1:][as_far]), 9)
        return (1 + far) / (1 + round(math.fsum(self.weights[1:]), 9))

    def of(self, name: str) -> Rank:
        """The p-values of one of the detectors."""
        return Rank(self, name)


@dataclass(frozen=True)
class Rank:
    """What `calibration.judge` asks of a null, for one detector among several."""

    together: Together
    name: str

    @property
    def words(self) -> str:
        """What the p-value of a finding rests on."""
        return self.together.words + (", and a scan of the network" if self.together.second else "")

    def p_value(self, score: float | None, target: int | None = None) -> float:
        """Share of unpoisoned sets that are as suspicious, the set itself counted in; joined with what the
        scan of the network says of the class `target`."""
        own, second = self.together.p_value(self.name, score), self.together.second
        return joined(own, second.get(target, 1.0) if target is not None else 1.0) if second else own

    def critical(self, alpha: float, target: int | None = None) -> float | None:
        """Statistic that must be exceeded for a p-value of at most `alpha`; None where none is that small.

        Args:
            target: the class; None: any, whatever the scan says of it.
        """
        if self.together.second:
            alpha = 1.0 if target is None else left_by(self.together.second.get(target, 1.0), alpha)
        if self.together.p_value(self.name, math.inf) > alpha:
            return None
        return self._critical(alpha)

    def _critical(self, alpha: float) -> float:
        """That statistic, by the samples alone; there is one."""
        p_value = partial(self.together.p_value, self.name)
        known = np.unique(self.together.table[:, self.together.names.index(self.name)]).tolist()
        low = max((v for v in known if p_value(v) > alpha), default=LEAST_STATISTIC)
        if p_value(math.nextafter(low, math.inf)) <= alpha:
            return float(low)
        high = min((v for v in known if v > low), default=low * 1e9)
        for _ in range(STEPS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if p_value(middle) > alpha else (low, middle)
        return float(low)


def joined(first: float, second: float) -> float:
    """One p-value of two that are independent where nothing is poisoned (Fisher 1925).

    p = P(chi^2_4 >= -2 log(p_1 p_2)) = q (1 - log q),   q = p_1 p_2

    Both p-values hold for a whole set, whatever the class; so does this one, for the class that stands out
    most in both.
    """
    q = first * second
    return min(1.0, q * (1 - math.log(q))) if q > 0 else 0.0


def left_by(second: float, alpha: float) -> float:
    """The largest p-value that is `joined` to at most `alpha` by another one."""
    q = optimize.brentq(lambda v: joined(v, 1.0) - alpha, 1e-300, 1.0) if alpha < 1 else 1.0
    return float(min(1.0, q / second)) if second > 0 else 1.0


def measured(detector: Judging) -> bool:
    """Whether some table speaks of a detector as it is set, if not of every network."""
    return any(table.of(detector) is not None for table in tables())


@lru_cache(maxsize=1)
def tables() -> tuple[Sets, ...]:
    """The tables that come with the package."""
    return tuple(
        Sets(**table)
        for path in sorted(FOLDER.glob("*.json"))
        for table in json.loads(path.read_text(encoding="utf-8"))
    )


def together(
    detectors: Sequence[Judging], own: Mapping[str, float], model: Mapping[str, Any], samples: int
) -> list[Together]:
    """The detectors that a table speaks of, in groups of which each has one table; others are in none.

    A table of this kind of network and, within a factor of `ALIKE`, of this size comes first, if it has
    `ENOUGH` sets; of others the one that speaks of more detectors, of this kind before any kind, then the
    nearest in size. Where the size is another one the words say so.

    Args:
        detectors: those that ran.
        own: the largest statistic that each gave a class of the set.
        model: how a report describes the network.
        samples: of the set.
    """
    left, groups = list(detectors), []
    while left:
        found = []
        for table in tables():
            if table.speaks(model):
                columns = {d.name: c for d in left if (c := table.of(d)) is not None}
                rows, known_by = _complete([c["scores"] for c in columns.values()])
                if len(rows):
                    far = table.far(samples)
                    wide = table.layout == ANY
                    few = len({table.kinds[i] for i in known_by} if table.kinds else rows) < ENOUGH
                    pooled = wide and not table.kinds
                    key = (few, wide or far > ALIKE, -len(columns), wide, pooled, far)
                    found.append((key, table, tuple(columns), rows, known_by))
        if not found:
            break
        _, table, names, rows, known_by = min(found, key=lambda f: f[0])
        known = np.array([own[n] for n in names], dtype=np.float64)
        kinds = [table.kinds[i] for i in known_by] if table.kinds else None
        groups.append(Together(names, rows, known, _words(table, len(rows), samples, kinds), kinds))
        left = [d for d in left if d.name not in names]
    return groups


def _complete(columns: Sequence[Sequence[float | None]]) -> tuple[Array, list[int]]:
    """The sets that every column knows, (sets, columns), and which they are."""
    rows = [(i, row) for i, row in enumerate(zip(*columns, strict=True)) if None not in row]
    return np.array([row for _, row in rows], dtype=np.float64).reshape(len(rows), len(columns)), [
        i for i, _ in rows
    ]


def _words(table: Sets, sets: int, samples: int, kinds: Sequence[str] | None) -> str:
    """40 unpoisoned sets of digits with about 1,500 samples"""
    if kinds is not None:
        return f"{sets} unpoisoned sets of {len(set(kinds))} other kinds"
    kind = f"{sets} unpoisoned sets of {table.made.get('kind', 'this kind')}"
    if table.layout == ANY:
        return kind
    size = f"{kind} with about {table.samples:,} samples"
    return size + (f" (this one has {samples:,})" if table.far(samples) > ALIKE else "")


# ---------------------------------------------------------------------- making tables


@dataclass
class _Kind:
    """What is gathered of one kind and size."""

    about: dict[str, Any]
    kinds: dict[str, str] = field(default_factory=dict)  # of every set
    sizes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        sets = sorted(self.sizes)
        columns = []
        for key, scores in self.columns.items():
            name, settings = json.loads(key)
            known = [scores.get(s) for s in sets]
            columns.append({"detector": name, "settings": settings, "scores": known})
        size = int(np.median(list(self.sizes.values())))
        kinds = sorted(set(self.kinds.values()))
        made = {"kind": " and ".join(kinds), "sets": sets, **self.versions}
        wide = self.about["layout"] == ANY and len(kinds) >= ENOUGH
        several = [self.kinds[s] for s in sets] if wide else []  # of few kinds, sets are pooled
        return asdict(Sets(**self.about, samples=size, columns=columns, made=made, kinds=several))


def make(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tables from audits of unpoisoned sets, one for every kind and size and one of all together.

    Args:
        lines: of the bench, each a detector on a set: `audit`, `settings`, `score`, `net` (name of the set),
            `task`, `arch`, `layout`, `shape`, `classes`, `samples`.
    """
    found: dict[str, _Kind] = {}
    everything = {"layout": ANY, "shape": [], "classes": 0}
    for line in lines:
        if line.get("attack") is not None or line.get("score") is None:
            continue
        own = {k: line[k] for k in ("layout", "shape", "classes")}
        for about, size in ((own, line["samples"]), (everything, 0)):
            kind = found.setdefault(json.dumps([about, size]), _Kind(about))
            words = [line["task"], line.get("arch")]
            if about["layout"] == ANY:
                words.append(f"{line['samples']:,} samples")
            kind.kinds[line["net"]] = " ".join(filter(None, words))
            kind.sizes[line["net"]] = line["samples"]
            column = kind.columns.setdefault(
                json.dumps([line["audit"], line["settings"]], sort_keys=True), {}
            )
            column[line["net"]] = round(float(line["score"]), 6)
            kind.versions = {k: line[k] for k in ("backsweep", "torch")}
    return [kind.table() for kind in sorted(found.values(), key=lambda k: k.about["layout"] == ANY)]
