"""Which classes and pairs of many are measured in full, and what is read from a look at all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from backsweep.core.statistics import chance_of_index
from backsweep.inputs.kinds import modalities
from backsweep.reports.report import Evidence
from backsweep.scanning.cascade.contrast import Cell, sample, sizes_of, spaces_in, stand_below, stand_out
from backsweep.scanning.cascade.schedule import REFERENCES, Schedule
from backsweep.scanning.detector import Unit

ALONE_SPREAD = 0.25  # of the log sizes themselves, where no reference is asked for
LEAST_SPREAD = 0.1  # of the log sizes of a look


def chosen(evidence: Sequence[Evidence], schedule: Schedule) -> list[int]:
    """Classes to measure in full, seen what a look at all of them showed.

    In turn the first of every space, and of what the head says, until there are enough; of the rest, ordered
    by how much they stand out anywhere, some evenly spread.
    """
    names = dict.fromkeys(e.unit.split("-")[1] for e in evidence if e.unit.startswith("look-"))
    orders = [_order(stand_below(sizes_of(evidence, f"look-{n}-"), LEAST_SPREAD)) for n in names]
    orders += [_order(head) for head in heads(evidence)]
    classes = set(orders[0]) if orders else set()
    first: list[int] = []
    for rank in range(len(classes)):
        first += [t for t in dict.fromkeys(order[rank] for order in orders) if t not in first]
        if len(first) >= schedule.suspects:
            break
    best = {t: min(order.index(t) for order in orders) for t in classes}
    rest: list[Cell] = [(None, t) for t in sorted(classes - set(first), key=lambda t: (best[t], t))]
    found = first[: schedule.suspects]
    return sorted([*found, *(t for _, t in sample(rest, schedule.others))])


def heads(evidence: Iterable[Evidence]) -> list[dict[int, float]]:
    """What the rows of the head say about every class; large is suspicious."""
    return [
        {int(k.removeprefix("class_")): float(v or 0) for k, v in e.values.items() if k.startswith("class_")}
        for e in evidence if e.unit == "head" and e.values
    ]  # fmt: skip


def _order(standing: Mapping[int, float]) -> list[int]:
    return sorted(standing, key=lambda t: (-standing[t], t))


def cells_of(evidence: Iterable[Evidence], stage: str) -> dict[Cell, float]:
    """Log sizes of pairs: of the look at all ("pairs"), or at some of them again ("cells")."""
    if stage == "cells":
        return sizes_of(evidence, "cells-")
    return {
        (e.source, int(key.removeprefix("to_"))): float(value or 0)
        for e in evidence
        if e.unit.startswith("pairs-")
        for key, value in e.values.items()
        if key.startswith("to_")
    }


def standing_cells(evidence: Sequence[Evidence], schedule: Schedule) -> tuple[list[Cell], list[Cell]]:
    """Pairs that stand out, and usual ones."""
    looks = [cells_of(evidence, "pairs"), cells_of(evidence, "cells")]
    return stand_out([cells for cells in looks if cells] or [{}], schedule.closer)


def shortcuts(evidence: Sequence[Evidence], classes: int, alpha: float) -> list[tuple[int, float, float]]:
    """Classes that stand out in the network and in the reference alike, with how far in either."""
    faint = next((n for n in spaces_in(evidence) if n in {m.faint for m in modalities().values()}), "")
    own, there = (
        stand_below(sizes_of(evidence, f"{kind}-{faint}-"), ALONE_SPREAD) for kind in ("class", "reference")
    )
    return [
        (t, own[t], there[t]) for t in own
        if t in there and classes > 2
        and chance_of_index(min(own[t], there[t]), classes, floored=True) <= alpha
    ]  # fmt: skip


def kind_of(unit: Unit) -> str:
    """Stage of a unit, and space where it has one; units alike share passes."""
    kind = unit.key.split("-")[0]
    return unit.key.rpartition("-")[0] if kind in ("look", "class", *REFERENCES) else kind
