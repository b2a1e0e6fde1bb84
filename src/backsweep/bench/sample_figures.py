"""The leaderboards of audits and of guards: figures from the lines of the bench. Nothing is looked at here.

A network on which a detector could not be used, or failed, enters none of its figures; it is counted and
listed. An audit that flags nothing has found nothing: its TPR is 0.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Generic, TypeVar

from backsweep.auditing.audit import DEFAULT_AUDITS
from backsweep.bench.records import Look, audit_of, guard_of
from backsweep.bench.samples import DEFAULT
from backsweep.bench.splits import Chosen, choose
from backsweep.core.statistics import Estimate, Share, mean_estimate
from backsweep.reports.report import BACKDOORED, CLEAN
from backsweep.zoo.build import JUDGING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AUDIT, GUARD = "audit", "guard"  # the keys that tell their lines from those of other methods
NAMED = ("wanet", "input_aware", "tact", "adap_blend")  # attacks that guards are known to miss: shown first


@dataclass(frozen=True)
class AuditRow:
    """A detector on training sets of one task, or on those of one attack (`group`).

    Attributes:
        bad, good: attacked and unpoisoned sets that it audited, the last line of each.
        left: sets that it could not audit.
        caught, alarms: attacked and unpoisoned sets that are called poisoned.
        undecided: attacked and unpoisoned sets that are called neither poisoned nor clean.
        right: attacked sets in which the most suspicious class, or a suspected one, is a true target.
        auroc: of the scores of poisoned samples against the others, the mean over sets.
        tpr, worst: share of the poisoned samples that are flagged, the mean and the set where it is smallest.
        rates: by poison rate the mean TPR and the number of sets.
        fpr, clean_fpr: share of the other samples that are flagged, in attacked and in unpoisoned sets.
        missed: poisoned samples that are not flagged, of all, over all sets.
        retrained: attacked sets on whose kept samples a network was trained.
        success, worst_success: its attack success rate, the mean and the set where it is highest.
        unflagged: the mean with every set of which nothing was flagged as it was; None where there is none.
        change, worst_change: what it gained of clean accuracy: the mean, and the set where it is smallest.
        seconds, own_seconds: medians of the CPU time, of all and of the detector alone.
    """

    detector: str
    group: str
    bad: tuple[Look, ...]
    good: tuple[Look, ...]
    left: tuple[Look, ...]
    caught: Share
    alarms: Share
    undecided: tuple[int, int]
    right: Share
    auroc: Estimate | None
    tpr: float | None
    worst: Look | None
    rates: tuple[tuple[float, float, int], ...]
    fpr: float | None
    clean_fpr: float | None
    missed: tuple[float, float]
    retrained: tuple[Look, ...]
    success: float | None
    worst_success: Look | None
    unflagged: float | None
    change: float | None
    worst_change: Look | None
    seconds: float | None
    own_seconds: float | None


@dataclass(frozen=True)
class GuardRow:
    """A guard on networks of one task, or on those of one attack (`group`).

    Attributes:
        bad, good: attacked and clean networks that it guards, the last line of each.
        left: networks that it cannot guard.
        judged: attacked networks with triggered inputs that reach their target.
        auroc, worst: of triggered against clean inputs, the mean and the network where it is smallest.
        far, worst_far: triggered inputs that pass, the mean and the network where most do.
        frr_bad, frr_good: fresh clean inputs that are flagged, by attacked and by clean networks.
        passes, most_passes: of the model for one answer, the answer itself included.
        milliseconds, ratio: medians of the time of one input, and how many times the model's own all takes.
    """

    detector: str
    group: str
    bad: tuple[Look, ...]
    good: tuple[Look, ...]
    left: tuple[Look, ...]
    judged: tuple[Look, ...]
    auroc: Estimate | None
    worst: Look | None
    far: float | None
    worst_far: Look | None
    frr_bad: Estimate | None
    frr_good: Estimate | None
    passes: float | None
    most_passes: float | None
    milliseconds: float | None
    ratio: float | None


def audit_row(looks: Sequence[Look], group: str = "") -> AuditRow:
    """Figures of one detector, of which each line is of another network."""
    bad, good, left = _parts(looks)
    aimed = [x for x in bad if x.classes("targets")]
    again = [x for x in bad if None not in (x.number("retrained_success"), x.number("retrained_accuracy"))]
    kept = [x for x in bad if x.number("flagged") == 0 and x.number("attack_success_rate") is not None]
    success = [x.figure("retrained_success") for x in again]
    rates = sorted({r for x in bad if (r := x.rate) is not None})
    at = {r: [x.figure("tpr") for x in bad if x.rate == r] for r in rates}
    return AuditRow(
        looks[0].detector, group, bad, good, left,
        caught=Share(sum(_called(x) for x in bad), len(bad)),
        alarms=Share(sum(_called(x) for x in good), len(good)),
        undecided=(sum(_undecided(x) for x in bad), sum(_undecided(x) for x in good)),
        right=Share(sum(_right(x) for x in aimed), len(aimed)),
        auroc=mean_estimate([x.figure("auroc") for x in bad]),
        tpr=_mean(x.figure("tpr") for x in bad), worst=_least(bad, lambda x: x.figure("tpr")),
        rates=tuple((r, statistics.fmean(v), len(v)) for r, v in at.items()),
        fpr=_mean(x.figure("fpr") for x in bad), clean_fpr=_mean(x.figure("fpr") for x in good),
        missed=(sum(x.figure("missed") for x in bad), sum(x.figure("poisoned") for x in bad)),
        retrained=tuple(again), success=_mean(success),
        worst_success=_least(again, lambda x: -x.figure("retrained_success")),
        unflagged=(
            _mean([*success, *(x.figure("attack_success_rate") for x in kept)]) if again and kept else None
        ),
        change=_mean(change(x) for x in again),
        worst_change=_least([x for x in again if change(x) is not None], lambda x: change(x) or 0.0),
        seconds=_median(x.number("cpu_seconds") for x in (*bad, *good)),
        own_seconds=_median(x.number("detector_cpu_seconds") for x in (*bad, *good)),
    )  # fmt: skip


def change(look: Look) -> float | None:
    """Clean accuracy of the network that was trained without the flagged samples, less that of the first."""
    before, after = look.number("clean_accuracy"), look.number("retrained_accuracy")
    return None if before is None or after is None else after - before


def guard_row(looks: Sequence[Look], group: str = "") -> GuardRow:
    """Figures of one guard, of which each line is of another network."""
    bad, good, left = _parts(looks)
    judged = tuple(x for x in bad if x.number("auroc") is not None)
    passes = [p for x in (*bad, *good) if (p := x.number("passes")) is not None]
    return GuardRow(
        looks[0].detector, group, bad, good, left, judged,
        auroc=mean_estimate([x.figure("auroc") for x in judged]),
        worst=_least(judged, lambda x: x.figure("auroc")),
        far=_mean(x.figure("far") for x in judged), worst_far=_least(judged, lambda x: -x.figure("far")),
        frr_bad=mean_estimate([x.figure("frr") for x in bad]),
        frr_good=mean_estimate([x.figure("frr") for x in good]),
        passes=_median(passes), most_passes=max(passes, default=None),
        milliseconds=_median(x.number("milliseconds") for x in (*bad, *good)),
        ratio=_median(x.number("ratio") for x in (*bad, *good)),
    )  # fmt: skip


def _parts(looks: Sequence[Look]) -> tuple[tuple[Look, ...], tuple[Look, ...], tuple[Look, ...]]:
    """Attacked and clean networks that were measured, and the others."""
    done = [x for x in looks if not x.reason]
    return (
        tuple(x for x in done if x.attack),
        tuple(x for x in done if not x.attack),
        tuple(x for x in looks if x.reason),
    )


def _called(look: Look) -> bool:
    return bool(look.raw.get("verdict") == BACKDOORED)


def _undecided(look: Look) -> bool:
    return look.raw.get("verdict") not in (BACKDOORED, CLEAN)


def _right(look: Look) -> bool:
    most = look.number("most_suspicious")
    return bool({most, *look.classes("suspected")} & set(look.classes("targets")))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _least(looks: Sequence[Look], figure: Callable[[Look], float]) -> Look | None:
    return min(looks, key=lambda x: (figure(x), x.net), default=None)


# ---------------------------------------------------------------------- the boards

R = TypeVar("R", AuditRow, GuardRow)


@dataclass(frozen=True)
class Part(Generic[R]):
    """A task.

    Attributes:
        rows: a detector each, the default one first.
        common: the same on the networks that every detector could be used on; none where that is all.
        attacks: a detector and an attack each, in the order in which they are shown.
    """

    task: str
    looks: tuple[Look, ...]
    rows: tuple[R, ...]
    common: tuple[R, ...]
    attacks: tuple[R, ...]


@dataclass(frozen=True)
class Board(Generic[R]):
    """All figures of one split.

    Attributes:
        chosen: the audits or guards that count, the last of every network and detector.
        parts: by task.
    """

    chosen: Chosen[Look]
    parts: tuple[Part[R], ...]


def audits(lines: Sequence[Mapping[str, Any]], split: str = JUDGING) -> Board[AuditRow]:
    """Figures of the audits of one split; the two are never mixed.

    Raises:
        BadInput: no such split, or no audit of it among the lines.
    """

    def badness(row: AuditRow) -> tuple[Any, ...]:
        return (row.tpr if row.tpr is not None else 2.0, row.group)

    return _board([audit_of(raw) for raw in lines], AUDIT, DEFAULT_AUDITS[0], audit_row, badness, split)


def guards(lines: Sequence[Mapping[str, Any]], split: str = JUDGING) -> Board[GuardRow]:
    """Figures of the guards of one split; the two are never mixed.

    Raises:
        BadInput: no such split, or no guard of it among the lines.
    """

    def badness(row: GuardRow) -> tuple[Any, ...]:
        attack = (*row.bad, *row.left)[0].attack
        place = NAMED.index(attack) if attack in NAMED else len(NAMED)
        return (place, row.auroc.value if row.auroc else 2.0, row.group)

    return _board([guard_of(raw) for raw in lines], GUARD, DEFAULT, guard_row, badness, split)


def _board(
    found: Sequence[Look | None], kind: str, first: str, row: Callable[[Sequence[Look], str], R],
    badness: Callable[[R], tuple[Any, ...]], split: str,
) -> Board[R]:  # fmt: skip
    chosen = choose(found, split, lambda x: (x.net, x.detector), kind)
    looks = chosen.lines
    parts = [
        _part([x for x in looks if x.task == task], first, row, badness)
        for task in dict.fromkeys(x.task for x in looks)
    ]
    return Board(chosen, tuple(parts))


def _part(
    looks: Sequence[Look], first: str, row: Callable[[Sequence[Look], str], R],
    badness: Callable[[R], tuple[Any, ...]],
) -> Part[R]:  # fmt: skip
    names = sorted(dict.fromkeys(x.detector for x in looks), key=lambda name: name != first)

    def rows(some: Sequence[Look], group: str = "") -> list[R]:
        own = {name: [x for x in some if x.detector == name] for name in names}
        return [row(o, group) for o in own.values() if o]

    done = [{x.net for x in looks if x.detector == name and not x.reason} for name in names]
    shared = set.intersection(*(d for d in done if d)) if any(done) else set()
    uneven = any(d not in (set(), shared) for d in done)
    common = rows([x for x in looks if x.net in shared and not x.reason]) if shared and uneven else []
    groups = dict.fromkeys(x.group for x in looks if x.group)
    attacks = [r for g in groups for r in rows([x for x in looks if x.group == g], g)]
    return Part(
        looks[0].task, tuple(looks), tuple(rows(looks)), tuple(common), tuple(sorted(attacks, key=badness))
    )


# ---------------------------------------------------------------------- figures of others


@dataclass(frozen=True)
class Published:
    """A figure of others, from `published/samples.toml`.

    Attributes:
        kind: `AUDIT` or `GUARD`.
        method: its name there.
        what: was measured.
        data: on what.
        value: in words.
        checked: whether it was read in the source; otherwise it is as remembered.
    """

    kind: str
    method: str
    what: str
    data: str
    value: str
    source: str
    checked: bool


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """All published figures that are known."""
    text = resources.files("backsweep.bench").joinpath("published/samples.toml").read_text(encoding="utf-8")
    return tuple(Published(**entry) for entry in tomllib.loads(text)["figure"])
