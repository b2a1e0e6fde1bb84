"""The plot of suspicion: every network of a task as a dot, the attacks in lanes; drawn as SVG by the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backsweep.bench.figures import Row
from backsweep.bench.records import Scan
from backsweep.render import view
from backsweep.reports.report import BACKDOORED

LANE, TOP, SPACE = 52, 4, 1.6  # pixels a lane, pixels above the first, percent between dots side by side


@dataclass(frozen=True)
class Dot:
    """A network in the plot: x in percent of the width, y in pixels."""

    x: float
    y: float
    look: str
    tip: str


@dataclass(frozen=True)
class Lane:
    """The networks of one attack, or the clean ones."""

    y: float
    label: str
    dots: list[Dot]


@dataclass(frozen=True)
class Plot:
    """Suspicion of every network of a task, by attack; `limit` is where the level alpha lies."""

    detector: str
    height: int
    lanes: list[Lane]
    ticks: list[tuple[float, str]]
    limit: tuple[float, str] | None
    summary: str


def plot(rows: Sequence[Row]) -> Plot:
    """Suspicion of the clean networks and of those of each attack, for one task and detector."""
    overall, groups = rows[0], rows[1:]
    parts = [("clean", overall.good), *((r.group, r.bad) for r in groups)]
    most = max([s.suspicion[0] for s in (*overall.good, *overall.bad)] + [2.0]) * 1.04

    def x(value: float) -> float:
        return round(1.5 + 97 * min(max(value / most, 0.0), 1.0), 2)

    lanes = [_lane(TOP + i * LANE, name, scans, x) for i, (name, scans) in enumerate(parts)]
    step = max(1, math.ceil(most / 6))
    alphas = {s.alpha for s in (*overall.good, *overall.bad)}
    limit = None
    if len(alphas) == 1:
        alpha = next(iter(alphas))
        limit = (x(-math.log10(alpha)), view.level(alpha))
    said = "; ".join(f"{view.clean(name)}: {_range(scans)}" for name, scans in parts if scans)
    return Plot(
        view.clean(overall.detector), TOP + LANE * len(lanes) + 24, lanes,
        ticks=[(x(n), f"{10.0**-n:.{n}f}" if n < 5 else f"1e-{n}") for n in range(0, int(most) + 1, step)],
        limit=limit,
        summary=f"p-values of {view.counted(len(overall.good) + len(overall.bad), 'network')}. {said}.",
    )  # fmt: skip


def _lane(top: float, name: str, scans: Sequence[Scan], x: Callable[[float], float]) -> Lane:
    measured = sorted((s for s in scans if s.p_value is not None), key=lambda s: s.suspicion)
    dots: list[Dot] = []
    levels: dict[float, float] = {}  # offset from the middle of the lane -> where its last dot lies
    for s in measured:
        place = x(s.suspicion[0])
        free = (o for o in (0.0, -8.0, 8.0, -4.0, 4.0) if place - levels.get(o, -99.0) >= SPACE)
        offset = next(free, 0.0)
        levels[offset] = place
        look = "hot" if s.verdict == BACKDOORED else "hollow" if s.undecided else ""
        tip = f"{view.clean(s.net)}: p {view.probability(s.p_value or 0.0)}, {view.clean(s.verdict, 20)}"
        dots.append(Dot(place, top + 29 + offset, look, tip))
    missing = len(scans) - len(measured)
    label = f"{view.clean(name, 40)}, {len(scans):,}" + (
        f" ({missing:,} without a p-value)" if missing else ""
    )
    return Lane(top, label, dots)


def _range(scans: Sequence[Scan]) -> str:
    values = sorted(s.p_value for s in scans if s.p_value is not None)
    called = f"{sum(s.verdict == BACKDOORED for s in scans)} of {len(scans)} called backdoored"
    if not values:
        return f"no p-value, {called}"
    return f"p from {view.probability(values[0])} to {view.probability(values[-1])}, {called}"
