"""A class against itself in a reference: from log sizes to p-values, one for every target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from backsweep.core.statistics import MAD_TO_SIGMA, anomaly_index, without_medians
from backsweep.reports.report import Evidence
from backsweep.scanning.cascade.schedule import REFERENCES
from backsweep.scanning.cascade.screens import unit_name

Cell = tuple[int | None, int]  # source (None: every class) and target
ALONE = "alone_"  # before the name of a space: what `Measured.alone` says of it
TAIL = 5  # degrees of freedom of Student's t that stands for the tail of z in clean networks


@dataclass(frozen=True)
class Contrast:
    """How much smaller the suspect's cells are than the reference's, in one space.

    Attributes:
        z: for every cell (beta log r - log s - median) / spread; large is suspicious.
        spread: robust sigma of the differences, at least the least spread.
    """

    z: Mapping[Cell, float]
    spread: float

    @property
    def differences(self) -> dict[Cell, float]:
        """beta log r - log s - median."""
        return {c: v * self.spread for c, v in self.z.items()}

    def p_value(self, cell: Cell) -> float:
        """Chance that one cell of a clean network reaches this z; 1/2 for one that was not measured."""
        return float(stats.t.sf(self.z[cell], TAIL)) if cell in self.z else 0.5


def contrast(
    sizes: Mapping[Cell, float],
    reference: Mapping[Cell, float],
    least_spread: float,
    center: Iterable[Cell] | None = None,
    fitted: bool = True,
) -> Contrast:
    """Compare every cell with itself in the reference, as far as the reference says anything.

    d = beta log r - log s, with the robust slope (Theil-Sen) of log s on log r, in [0, 1]: a reference
    that is as the suspect takes all of the natural spread off, one that has little to do with it is
    left aside. A cell that was not measured in the reference counts as a usual one there.

    Args:
        sizes, reference: log sizes in the suspect and in the reference.
        least_spread: a smaller spread is taken for an accident of few cells.
        center: cells that say what is usual, where the others were chosen because they are small.
        fitted: whether beta is estimated; else it is 1, as where many cells may be planted.
    """
    if not sizes:
        return Contrast({}, least_spread)
    known = {c: reference[c] for c in sizes if c in reference}
    usual_size = float(np.median(list(known.values()))) if known else 0.0
    beta = slope(list(known.values()), [sizes[c] for c in known]) if fitted else 1.0
    d = {c: beta * known.get(c, usual_size) - s for c, s in sizes.items()}
    usual = [d[c] for c in (d if center is None else center) if c in d] or list(d.values())
    middle = float(np.median(usual))
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(np.subtract(usual, middle)))), least_spread)
    return Contrast({c: (v - middle) / spread for c, v in d.items()}, spread)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Theil-Sen slope of y on x, in [0, 1]; 1 for fewer than 4 points, 0 where x does not vary."""
    if len(x) < 4:
        return 1.0
    if max(x) - min(x) < 1e-6:
        return 0.0
    with np.errstate(invalid="ignore"):  # of its interval, where sizes tie
        return float(np.clip(stats.theilslopes(y, x).slope, 0.0, 1.0))


def stand_below(sizes: Mapping[Cell, float], least_spread: float) -> dict[int, float]:
    """Within one network: how far below the median each class lies, in robust sigmas."""
    index = anomaly_index(list(sizes.values()), least_spread) if sizes else np.zeros(0)
    return {t: float(i) for (_, t), i in zip(sizes, index, strict=True)}


def mean_of(spaces: Sequence[Contrast], least_spread: float) -> Contrast:
    """The mean of the differences over several spaces: what is small a little everywhere."""
    shared = [c for c in spaces[0].z if all(c in s.z for s in spaces)]
    mean = {c: -sum(s.differences[c] for s in spaces) / len(spaces) for c in shared}
    return contrast(mean, dict.fromkeys(mean, 0.0), least_spread)


def stand_out(looks: Sequence[Mapping[Cell, float]], count: int) -> tuple[list[Cell], list[Cell]]:
    """The `count` cells that are smallest for their source and their target, and as many usual ones.

    The median of its row (source), then of its column (target), is taken off every cell; the usual ones lie
    around the median of what is left. Cells that were looked at again are ordered by that.

    Args:
        looks: log sizes of all cells, and of some that were measured again.
    """
    cells, again = looks[0], looks[-1]
    keys = list(cells)
    sizes = np.array([cells[c] for c in keys])
    left = without_medians(sizes, [c[0] or 0 for c in keys], [c[1] for c in keys])
    rest = dict(zip(keys, left.tolist(), strict=True))
    order = sorted(rest, key=lambda c: (rest[c], c[0] or 0, c[1]))
    first, half = order[:count], len(order) // 2
    if len(looks) > 1:
        usual_of = {c: cells[c] - rest[c] for c in keys}
        first = sorted(again, key=lambda c: (again[c] - usual_of[c], c[0] or 0, c[1]))[:count]
    usual = order[max(0, half - count // 2) : half + (count + 1) // 2]
    return first, [c for c in usual if c not in first]


def of_many(p: float, tests: float) -> float:
    """Chance that the smallest of `tests` independent p-values is at most `p` (Sidak)."""
    return -math.expm1(tests * math.log1p(-p)) if p < 1 else 1.0


def cauchy(p_values: Iterable[float]) -> float:
    """One p-value from several that may depend on each other (Liu and Xie, JASA 2020, eq. 3).

    p = 1/2 - arctan(mean_i tan((1/2 - p_i) pi)) / pi
    """
    p = np.clip(np.asarray(list(p_values), dtype=np.float64), 1e-300, 0.99)  # one near 1 must not hide others
    small = p < 1e-12  # where 1/2 - p is 1/2 in floating point
    parts = np.where(small, 1 / (p * math.pi), np.tan((0.5 - np.where(small, 0.5, p)) * math.pi))
    mean = float(parts.mean())
    return 1 / (math.pi * mean) if mean > 1e12 else 0.5 - math.atan(mean) / math.pi


@dataclass(frozen=True)
class Suspect:
    """A target class and what speaks against it.

    Attributes:
        chance: that one class of a clean network is as suspicious.
        p_value: that the most suspicious of all its classes is.
        source: where the suspicion hangs on one cell, its source; None: on all classes.
        z: by space.
    """

    target: int
    chance: float
    p_value: float
    source: int | None
    z: Mapping[str, float]

    @property
    def said(self) -> dict[str, float]:
        """What the signals say, as a report names it."""
        return {k if k.startswith(ALONE) else f"z_{k}": v for k, v in self.z.items()}


def suspects(spaces: Mapping[str, Contrast], pairs: Contrast | None, classes: int) -> list[Suspect]:
    """All classes, most suspicious first: the spaces, and the best cell of the column, fused by Cauchy."""
    found = []
    for t in range(classes):
        parts = {name: c.p_value((None, t)) for name, c in spaces.items()}
        z = {name: c.z[None, t] for name, c in spaces.items() if (None, t) in c.z}
        source = None
        if pairs is not None:
            column = [c for c in pairs.z if c[1] == t]
            best = max(column, key=lambda c: pairs.z[c], default=(None, t))
            cell = of_many(pairs.p_value(best), classes - 1)
            source = best[0] if cell < cauchy(parts.values()) else None
            parts["pairs"] = cell
            z |= {"pairs": pairs.z[best]} if column else {}
        chance = cauchy(parts.values())
        found.append(Suspect(t, chance, of_many(chance, classes), source, z))
    return sorted(found, key=lambda s: s.chance)


def sizes_of(evidence: Iterable[Evidence], start: str, key: str = "log_size") -> dict[Cell, float]:
    """Log sizes of the units whose names begin with `start`, by (source, target)."""
    chosen = (e for e in evidence if e.unit.startswith(start) and e.values.get(key) is not None)
    return {(e.source, int(e.target or 0)): float(e.values[key] or 0) for e in chosen}


def in_references(evidence: Sequence[Evidence], space: str, key: str = "log_size") -> dict[Cell, list[float]]:
    """Log sizes of every class in a space, or another value, in the references in which it was measured.

    In their order, up to one that learned too little: what comes after it would stand in its place.
    """
    found: dict[Cell, list[float]] = {}
    for kind in REFERENCES:
        if any(e.values.get("log_size", 0.0) is None for e in evidence if e.unit.startswith(f"{kind}-")):
            break
        for cell, size in sizes_of(evidence, f"{kind}-{space}-", key).items():
            found.setdefault(cell, []).append(size)
    return found


def sample(order: Sequence[Cell], most: int) -> list[Cell]:
    """All of an ordering; of more than `most`, the first half of that and as many evenly from the rest."""
    if len(order) <= most:
        return list(order)
    rest = np.linspace(most // 2, len(order) - 1, most - most // 2).round().astype(int)
    return [*order[: most // 2], *(order[i] for i in rest)]


def message(
    s: Suspect, trial: Evidence | None, flagged: bool, tried: tuple[float, float] | None = None
) -> str:
    """What is found about a class, in a sentence; `tried` as in `Case.tried`."""
    sigmas = {name: z for name, z in s.z.items() if not name.startswith(ALONE)}
    where = max(sigmas, key=lambda k: sigmas[k], default="")
    if not flagged:
        most = f"most so: {where}, {s.z.get(where, 0):.1f} sigma"
        return f"no class is easier to reach than in the reference ({most})"
    whom = "every class" if s.source is None else f"class {s.source}"
    patch = ""
    if trial is not None and float(trial.values["attack_success_rate"] or 0) > 0.5:
        rate, there = (trial.values.get(k) for k in ("attack_success_rate", "reference_success_rate"))
        size = f"{trial.values['norm']:.0f} {unit_name(trial)}"
        patch = f"; a patch of {size} does it for {float(rate or 0):.0%} of samples"
        if there is not None:
            patch += f", on the reference for {float(there):.0%}"
    if tried is not None and tried[0] > 0.5 > tried[1]:
        patch = f"; one works for {tried[0]:.0%} of samples here, and for {tried[1]:.0%} in references{patch}"
    return f"{whom} is sent here by a much smaller change than usual ({s.z.get(where, 0):.1f} sigma){patch}"


def looks(first: float | None, p_value: float, alpha: float) -> str:
    """What two looks say of a class, "" where there was one. The first calls nothing, so they may differ."""
    if first is None:
        return ""
    differ = (first <= alpha) != (p_value <= alpha)
    return (
        f"; a second look, at two more references, {'does not agree' if differ else 'agrees'} with the first "
        f"(p {p_value:.2g} for both together, {first:.2g} before)"
    )


def spaces_in(evidence: Sequence[Evidence]) -> list[str]:
    """Names of the spaces in which classes were measured, in the order in which they were."""
    found = (e.unit.split("-")[1] for e in evidence if e.unit.startswith("class-"))
    return list(dict.fromkeys(found))


def doubt_of(trial: Evidence | None, classes: int, compared: bool = False) -> str:
    """Why this cannot be told either way; "" when it can.

    Args:
        trial: the patch of the most suspicious class, tried in both networks.
        compared: whether the classes are compared with those of other networks too.
    """
    if classes < 3 and not compared:
        return "cannot tell: with 2 classes no class can stand out from the others"
    right = trial.values.get("reference_accuracy") if trial else None
    if right is not None and trial and float(right) < 0.5 * float(trial.values["accuracy"] or 0):
        return (
            f"cannot tell: the washed reference is right on {float(right):.0%} of the samples only, too "
            "weak to compare with; give more clean samples, or a reference network (--reference)"
        )
    return ""
