"""Where everything stands in the chart of norms; the page's template draws it as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backsweep.render import view
from backsweep.report import Evidence, Report


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
    """Norms of all classes on a logarithmic axis; lower means a smaller trigger is enough.

    Attributes:
        height, floor: of the whole, and of the axis of the classes, in pixels from the top.
        ticks, classes: places and names along the two axes.
        median, limit: height and value of the two lines.
        lane: height of the classes for which no trigger works, or None.
        notes, summary: how to read it, and what it shows in one line.
    """

    detector: str
    height: int
    floor: float
    dots: list[Dot]
    ticks: list[tuple[float, str]]
    classes: list[tuple[float, str]]
    median: tuple[float, str] | None
    limit: tuple[float, str] | None
    lane: float | None
    notes: str
    summary: str


def chart(report: Report, group: view.Group) -> Chart:
    """The chart of one detector's norms, of which at least one is finite."""
    finite = [n for n in group.norms if math.isfinite(n)]
    smallest = max(min(finite), 1e-3)
    marks = [max(n, 1e-3) for n in finite]
    if group.limit is not None and group.limit > smallest / 50:
        marks.append(group.limit)
    low, high = min(marks) / 1.35, max(marks) * 1.25
    missing = len(finite) < len(group.norms)
    top, floor, height = (34.0 if missing else 12.0), 250.0, 282

    def y(norm: float) -> float:
        if not math.isfinite(norm):
            return 10.0
        share = math.log(max(norm, low) / low) / math.log(high / low)
        return round(floor - share * (floor - top), 1)

    count = len(group.norms)
    hot = view.marked(report, group)
    across = [round((i + 0.5) / count * 100, 3) for i in range(count)]
    labels = _place_labels({i: (across[i], y(group.norms[i])) for i in hot}, floor)
    radius = 5.0 if count <= 60 else 3.5 if count <= 300 else 2.0
    dots = [
        Dot(
            x=across[i],
            y=y(norm),
            r=max(radius, 4.0) if i in hot else radius,
            hot=i in hot,
            hollow=not math.isfinite(norm),
            stem=math.isfinite(norm) and (count <= 60 or i in hot),
            tip=f"{view.unit_name(report, e)}: {view.number(norm)}" if count <= 300 or i in hot else "",
            label=view.clean(view.unit_name(report, e), 26 if len(hot) == 1 else 16) if i in labels else "",
            label_y=labels.get(i, 0.0),
        )
        for i, (e, norm) in enumerate(zip(group.evidence, group.norms, strict=True))
    ]
    dots.sort(key=lambda d: d.hot)  # drawn last, on top
    step = 1 if count <= 12 else next(s for s in _steps() if count / s <= 12)
    unit = "pixels" if "pixels" in group.evidence[0].values else ""
    median = (y(group.median), view.number(group.median)) if group.median else None
    limit = None
    if group.limit is not None and group.limit >= low:
        limit = (y(group.limit), view.number(group.limit))
    notes = [
        "Each dot is a class; the lower it lies, the smaller a trigger sends other classes to it.",
        f"The axis is logarithmic{' and counts pixels' if unit else ''}.",
    ]
    if limit is not None:
        alpha = view.level(report.settings.get("alpha"))
        notes.append(
            f"A class below the dashed line is an outlier such as at most {alpha} of clean models show."
        )
    if missing:
        notes.append("Hollow dots on top: no trigger was found that works.")
    return Chart(
        view.clean(group.detector), height, floor, dots,
        ticks=[(y(t), view.number(t)) for t in _log_ticks(low, high)],
        classes=[(across[i], _tick_name(group.evidence[i], i)) for i in range(0, count, step)],
        median=median, limit=limit, lane=10.0 if missing else None, notes=" ".join(notes),
        summary=f"Size of the smallest trigger of {view.counted(count, 'class')}, "
        f"from {view.number(min(finite))} to {view.number(max(finite))} {unit}".strip(),
    )  # fmt: skip


def _tick_name(e: Evidence, position: int) -> str:
    return str(e.target if e.target is not None and e.source is None else position)


def _place_labels(dots: dict[int, tuple[float, float]], floor: float, most: int = 8) -> dict[int, float]:
    """Height of the label of each dot (x, y), so that none lies on another; lowest dots first."""
    placed: dict[int, float] = {}
    for i, (x, y) in sorted(dots.items(), key=lambda item: (-item[1][1], item[0]))[:most]:
        height = min(y, floor - 6)
        while any(abs(x - dots[j][0]) < 40 and abs(height - h) < 15 for j, h in placed.items()):
            height -= 15
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
