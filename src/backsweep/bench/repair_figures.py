"""The leaderboard of repairs: figures from the lines of the bench. Nothing is repaired here.

A network that a repair skipped, or on which it failed, enters none of its figures; it is counted, listed, and
in one figure taken as it was before.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from backsweep.bench.records import NO_REPAIR, Fix, fix_of
from backsweep.bench.splits import Chosen, choose
from backsweep.core.statistics import Estimate, Share, mean_estimate
from backsweep.repairing.proof import MOST_RELAPSE
from backsweep.repairing.repair import DEFAULT_REPAIR
from backsweep.zoo.build import JUDGING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPAIR = "repair"  # the key that tells a line of a repair from one of a detector


@dataclass(frozen=True)
class Row:
    """A repair with its settings, on networks of one task.

    Attributes:
        bad, good: attacked and clean networks that it repaired, the last line of each.
        missed: attacked and clean networks that it skipped, and on which it failed.
        der: mean defence effectiveness rating over the attacked networks.
        lost, worst_lost: clean accuracy that attacked networks lost.
        success, worst: attack success rate afterwards, the mean and the network where it is highest.
        unrepaired: the mean with every network that was skipped as it was before; None where none was.
        robust: mean accuracy of triggered inputs on their true labels.
        retuned, worst_retuned, held: success after the re-tuning check: mean, the worst network, and how
            many stay at `MOST_RELAPSE` or below; `twins` is the mean of the clean twins.
        clean_lost, worst_clean: clean accuracy that clean networks lost.
        seconds, epochs: medians of the CPU time, in seconds and in epochs of the network's own training.
    """

    repair: str
    bad: tuple[Fix, ...]
    good: tuple[Fix, ...]
    missed: tuple[tuple[Fix, ...], tuple[Fix, ...]]
    der: Estimate | None
    lost: float | None
    worst_lost: Fix | None
    success: float | None
    worst: Fix | None
    unrepaired: float | None
    robust: float | None
    retuned: float | None
    worst_retuned: Fix | None
    held: Share
    twins: float | None
    clean_lost: float | None
    worst_clean: Fix | None
    seconds: float | None
    epochs: float | None


def row(fixes: Sequence[Fix], before: Mapping[str, float]) -> Row:
    """Figures of one repair, of which each line is of another network.

    Args:
        fixes: its lines.
        before: attack success rate of every network before any repair, where it is known.
    """
    done = [f for f in fixes if f.outcome == "repaired"]
    bad, good = [f for f in done if f.attack], [f for f in done if not f.attack]
    left = [f for f in fixes if f.attack and f.outcome != "repaired" and f.net in before]
    after = [f.figure("success_after") for f in bad]
    tuned = [f for f in bad if f.number("retuned") is not None]
    cost = [(f.number("cpu_seconds"), f.number("epoch_cpu_seconds")) for f in done]
    skipped, failed = (tuple(f for f in fixes if f.outcome == o) for o in ("skipped", "failed"))
    return Row(
        fixes[0].repair, tuple(bad), tuple(good), (skipped, failed),
        der=mean_estimate([f.der for f in bad]),
        lost=_mean(f.lost for f in bad), worst_lost=_most(bad, lambda f: f.lost),
        success=_mean(after), worst=_most(bad, lambda f: f.figure("success_after")),
        unrepaired=_mean([*after, *(before[f.net] for f in left)]) if left else None,
        robust=_mean(f.number("robust_after") for f in bad),
        retuned=_mean(f.number("retuned") for f in tuned),
        worst_retuned=_most(tuned, lambda f: f.figure("retuned")),
        held=Share(sum(f.figure("retuned") <= MOST_RELAPSE for f in tuned), len(tuned)),
        twins=_mean(f.number("twin_retuned") for f in tuned),
        clean_lost=_mean(f.lost for f in good), worst_clean=_most(good, lambda f: f.lost),
        seconds=_median(s for s, _ in cost), epochs=_median(s / e for s, e in cost if s is not None and e),
    )  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _most(fixes: Sequence[Fix], figure: Callable[[Fix], float]) -> Fix | None:
    return max(fixes, key=lambda f: (figure(f), f.net), default=None)


def untouched(fixes: Iterable[Fix]) -> Row | None:
    """No repair at all: the networks before, each once."""
    nets = {f.net: f for f in fixes if f.outcome == "repaired"}
    if not nets:
        return None
    same = [
        Fix(**{
            **vars(f), "repair": NO_REPAIR, "method": NO_REPAIR,
            "raw": {k: v for when in ("before", "after") for k, v in _as_before(f, when).items()},
        })
        for f in nets.values()
    ]  # fmt: skip
    return row(same, {})


def _as_before(fix: Fix, when: str) -> dict[str, Any]:
    return {f"{k}_{when}": fix.raw.get(f"{k}_before") for k in ("accuracy", "success", "robust")}


@dataclass(frozen=True)
class Part:
    """A task with one share of clean samples.

    Attributes:
        rows: no repair, then the repairs, the default one first.
        common: the same on the networks that every repair was given; none where all were given the same.
        attacks: by attack, the worst of the default repair first: the lines of each repair, as in `rows`.
    """

    task: str
    share: float
    fixes: tuple[Fix, ...]
    rows: tuple[Row, ...]
    common: tuple[Row, ...]
    attacks: tuple[tuple[str, tuple[Row, ...]], ...]


@dataclass(frozen=True)
class Board:
    """All figures of one split.

    Attributes:
        chosen: the repairs that count, the last of every network, repair and share.
        parts: by task and share.
    """

    chosen: Chosen[Fix]
    parts: tuple[Part, ...]


def board(lines: Sequence[Mapping[str, Any]], split: str = JUDGING) -> Board:
    """Figures of the networks of one split; the two are never mixed.

    Raises:
        BadInput: no such split, or no repair of it among the lines.
    """
    chosen = choose([fix_of(raw) for raw in lines], split, lambda f: (f.net, f.repair, f.share), "repair")
    fixes = chosen.lines
    places = dict.fromkeys((f.task, f.share) for f in fixes)
    order = {task: i for i, task in enumerate(dict.fromkeys(task for task, _ in places))}
    parts = [
        part([f for f in fixes if (f.task, f.share) == place])
        for place in sorted(places, key=lambda p: (order[p[0]], -p[1]))
    ]
    return Board(chosen, tuple(parts))


def part(fixes: Sequence[Fix]) -> Part:
    """Figures of one task and share."""
    names = sorted(
        dict.fromkeys(f.repair for f in fixes),
        key=lambda r: (r != DEFAULT_REPAIR, r.partition(" ")[0] != DEFAULT_REPAIR),
    )
    before = {f.net: v for f in fixes if (v := f.number("success_before")) is not None}
    given = [{f.net for f in fixes if f.repair == name} for name in names]
    shared = set.intersection(*given)

    def rows(some: Sequence[Fix]) -> tuple[Row, ...]:
        own = [[f for f in some if f.repair == name] for name in names]
        none = untouched(some)
        return (*([none] if none else []), *(row(o, before) for o in own if o))

    same = all(g == shared for g in given)
    groups = {
        g: rows([f for f in fixes if f.group == g]) for g in sorted({f.group for f in fixes if f.group})
    }
    first = names[0]

    def badness(group: str) -> tuple[float, str]:
        found = [r.success for r in groups[group] if r.repair == first and r.success is not None]
        return (-found[0] if found else 1.0, group)

    return Part(
        fixes[0].task, fixes[0].share, tuple(fixes), rows(fixes),
        () if same or not shared else rows([f for f in fixes if f.net in shared]),
        tuple((g, groups[g]) for g in sorted(groups, key=badness)),
    )  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Figures of others for one repair, in percent, from `published/repairs.toml`.

    Attributes:
        repair: its name here, "" for one that is not here.
        title: its name there.
        worst: the highest attack success rate, with the attack where it is known.
    """

    repair: str
    title: str
    accuracy: float
    success: float
    robust: float
    der: float
    worst: str


@lru_cache(maxsize=1)
def published() -> tuple[str, tuple[Published, ...]]:
    """Where the published figures are from and what of, and the figures."""
    text = resources.files("backsweep.bench").joinpath("published/repairs.toml").read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    return str(raw["source"]), tuple(Published(**entry) for entry in raw["figure"])
