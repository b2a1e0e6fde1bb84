"""Where everything stands in the chart of the classes; the page's template draws it as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backsweep.render import view
from backsweep.render.standing import Group, Measure, marked, row_name
from backsweep.reports.report import Report


@dataclass(frozen=True)
class Dot:
    """A class in the chart: x in percent of the width, y and radius in pixels."""

    x: float
    y: float
    r: float
    hot: bool
    hollow: bool
    stem: bool
    tip: str
    label: str
    label_y: float


@dataclass(frozen=True)
class Chart:
    """The figures of all classes, on a logarithmic axis where they differ by factors.

    Attributes:
        detector, asks: whose figures, and the question that they answer.
        height, floor: of the whole, and of the axis of the classes, in pixels from the top.
        ticks, classes: places and names along the two axes.
        base: height at which the stems of the dots begin, or None.
        axis: what the upright axis has.
        median, limit: height and value of the two lines.
        lane: height of the classes for which no trigger works, or None.
        notes, summary: how to read it, and what it shows in one line.
    """

    detector: str
    asks: str
    height: int
    floor: float
    dots: list[Dot]
    ticks: list[tuple[float, str]]
    classes: list[tuple[float, str]]
    axis: str
    base: float | None
    median: tuple[float, str] | None
    limit: tuple[float, str] | None
    lane: float | None
    notes: str
    summary: str


def chart(report: Report, group: Group) -> Chart | None:
    """The chart of one detector's figures; None without a finite one."""
    measure, finite = group.measure, [n for n in group.figures if math.isfinite(n)]
    if measure is None or not finite:
        return None
    low, high = _bounds(group, measure, finite)
    missing = math.inf in group.figures
    top, floor, height = (34.0 if missing else 12.0), 250.0, 282
    bend = math.log if measure.log else float

    def y(figure: float) -> float:
        if not math.isfinite(figure):
            return 10.0 if figure > 0 else floor
        share = (bend(max(figure, low)) - bend(low)) / (bend(high) - bend(low))
        return round(floor - share * (floor - top), 1)

    count = len(group.figures)
    hot = marked(report, group)
    across = [round((i + 0.5) / count * 100, 3) for i in range(count)]
    labels = _place_labels({i: (across[i], y(group.figures[i])) for i in hot}, floor, measure.high)
    radius = 5.0 if count <= 60 else 3.5 if count <= 300 else 2.0
    names = {
        i: row_name(report, group, i, i in hot) if count <= 300 or i in hot else "" for i in range(count)
    }
    dots = [
        Dot(
            x=across[i],
            y=y(figure),
            r=max(radius, 4.0) if i in hot else radius,
            hot=i in hot,
            hollow=not math.isfinite(figure),
            stem=math.isfinite(figure) and (count <= 60 or i in hot),
            tip=f"{names[i]}: {view.number(figure)}" if names[i] else "",
            label=view.clean(names[i], 26 if len(hot) == 1 else 16) if i in labels else "",
            label_y=labels.get(i, 0.0),
        )
        for i, figure in enumerate(group.figures)
    ]
    dots.sort(key=lambda d: d.hot)  # drawn last, on top
    step = 1 if count <= 12 else next(s for s in _steps() if count / s <= 12)
    unit = f"{view.modality(report).unit}s" if {"pixels", "units"} & set(group.evidence[0].values) else ""
    median = None
    if group.median is not None and math.isfinite(group.median) and (group.median or not measure.log):
        median = (y(group.median), view.number(group.median))
    limit = None
    if group.limit is not None and low <= group.limit <= high:
        limit = (y(group.limit), view.number(group.limit))
    notes = [measure.reads]
    if measure.log:
        notes.append(f"The axis is logarithmic{f' and counts {unit}' if unit else ''}.")
    if limit is not None:
        alpha = view.level(report.settings.get("alpha"))
        side = "above" if measure.high else "below"
        known = [f for f in report.findings if f.detector == group.detector and f.p_value is not None]
        said = {view.rests_on(f) for f in known}
        doubt = f" ({view.DOUBTFUL})" if view.DOUBTFUL in said else ""
        notes.append(
            f"A class {side} the dashed line is an outlier such as at most {alpha} of clean models "
            f"show{doubt}."
        )
    if missing:
        notes.append("Hollow dots on top: no trigger was found that works.")
    ticks = _log_ticks(low, high) if measure.log else _even_ticks(low, high)
    base = floor if measure.ranks else median[0] if median else None
    return Chart(
        view.clean(group.detector), measure.asks, height, floor, dots,
        ticks=[(y(t), view.number(t)) for t in ticks],
        classes=[(across[i], _tick_name(group, i)) for i in range(0, count, step)],
        axis=measure.shows + (", logarithmic" if measure.log else ""),
        base=base, median=median, limit=limit, lane=10.0 if missing else None, notes=" ".join(notes),
        summary=f"{measure.shows} of {view.counted(count, 'class')}, "
        f"from {view.number(min(finite))} to {view.number(max(finite))} {unit}".strip(),
    )  # fmt: skip


def _bounds(group: Group, measure: Measure, finite: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value of the axis; the threshold is on it where it is not too far off."""
    marks = [max(n, 1e-3) for n in finite] if measure.log else list(finite)
    if group.limit is not None:
        near = not measure.log or min(marks) / 50 < group.limit < 50 * max(marks)
        marks += [group.limit] if near else []
    if measure.log:
        return min(marks) / 1.35, max(marks) * 1.25
    room = 0.08 * (max(marks) - min(marks)) or 1.0
    return (0.0 if measure.ranks else min(marks) - room), max(marks) + room


def _tick_name(group: Group, position: int) -> str:
    e = group.evidence[position]
    return str(e.target if e.target is not None and (e.source is None or group.by_class) else position)


def _place_labels(
    dots: dict[int, tuple[float, float]], floor: float, high: bool = False, most: int = 8
) -> dict[int, float]:
    """Height of the label of each dot (x, y), so that none lies on another; the outermost dots first."""
    placed: dict[int, float] = {}
    way = 1 if high else -1
    for i, (x, y) in sorted(dots.items(), key=lambda item: (way * item[1][1], item[0]))[:most]:
        height = min(y, floor - 6)
        while any(abs(x - dots[j][0]) < 40 and abs(height - h) < 15 for j, h in placed.items()):
            height += 15 * way
        placed[i] = height
    return placed


def _steps() -> Sequence[int]:
    return [m * 10**e for e in range(6) for m in (1, 2, 5)][1:]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between two bounds: 1-2-5 steps, powers of ten over a wide range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 2 for n in range(2, 20))):
        ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks
    return [float(f"{low * (high / low) ** share:.2g}") for share in (0.1, 0.5, 0.9)]


def _even_ticks(low: float, high: float) -> list[float]:
    """Round values between two bounds, evenly spaced."""
    size = 10.0 ** math.floor(math.log10(high - low))
    step = next(m * size for m in (0.1, 0.2, 0.5, 1.0, 2.0) if (high - low) / (m * size) <= 6)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
