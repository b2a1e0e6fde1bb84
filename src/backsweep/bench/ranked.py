"""A verdict by rank among clean networks of other kinds, for a detector whose score is one number.

A kind is task x architecture x number of training samples. A network is judged without its kind, or without
all kinds over its data set (what stands before the first "-" of a task): a stranger has other data as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backsweep.bench.kinds import Judged, arch_of, kind_of
from backsweep.core.errors import BadInput
from backsweep.reports.report import BACKDOORED, CLEAN
from backsweep.scanning.calibration import Kinds

APART = ("kind", "data")  # what is left out with a network


@dataclass(frozen=True)
class Ranked:
    """One scan of a network whose truth is known.

    Attributes:
        kind, arch, name, attack, targets, classes: the truth; `attack` None: clean.
        score: the largest of the scan, and of which class.
        target: that class.
        cpu_seconds: of the scan.
        data: the data set.
    """

    kind: str
    arch: str
    name: str
    attack: str | None
    targets: tuple[int, ...]
    classes: int
    score: float
    target: int
    cpu_seconds: float
    data: str


def networks(lines: Sequence[Mapping[str, Any]], detector: str) -> list[Ranked]:
    """The admitted scans of one detector among lines of the bench that could tell; no score ranks lowest.

    Raises:
        BadInput: there are none, or they have different settings.
    """
    own = [x for x in lines if x.get("detector") == detector and not x.get("gate") and "score" in x]
    own = [x for x in own if x.get("verdict") in (CLEAN, BACKDOORED, None)]
    if not own:
        raise BadInput(
            f"there is no scan of {detector} of an admitted network; run it with `backsweep bench run`"
        )
    if len({str(x["settings"]) for x in own}) > 1:
        raise BadInput(f"the scans of {detector} have different settings; keep those of one")
    return [
        Ranked(
            " ".join(filter(None, (kind_of(x), f"{x['samples']:,} samples" if x.get("samples") else ""))),
            arch_of(x), x["net"], x["attack"], tuple(x["targets"]), int(x["classes"]),
            -math.inf if x["score"] is None else float(x["score"]),
            -1 if x.get("most_suspicious") is None else int(x["most_suspicious"]),
            float(x["cpu_seconds"]), str(x["task"]).partition("-")[0],
        )
        for x in own
    ]  # fmt: skip


def null(
    known: Sequence[Ranked], detector: str = "", settings: Mapping[str, Any] | None = None, **made: Any
) -> Kinds:
    """What the clean ones among some score, by kind.

    Raises:
        BadInput: none is clean.
    """
    clean = [n for n in known if n.attack is None]
    if not clean:
        raise BadInput("there is no clean network to make a null of")
    scores: dict[str, list[float]] = {}
    for n in clean:
        scores.setdefault(n.kind, []).append(round(max(n.score, -1.0), 6))
    counts = [n.classes for n in clean]
    return Kinds(
        detector, settings or {}, [min(counts), 2 * max(counts)],
        {kind: sorted(own) for kind, own in sorted(scores.items())}, {"networks": len(clean), **made},
    )  # fmt: skip


def document(table: Kinds) -> dict[str, Any]:
    """As a file of `scanning/nulls` has it."""
    return asdict(table)


def left_out(known: Sequence[Ranked], apart: str = APART[0]) -> list[Judged]:
    """Every network by clean ones of other kinds, or of other data sets.

    Raises:
        BadInput: nothing is left to judge by.
    """
    found = []
    for own in sorted({str(getattr(n, apart)) for n in known}):
        table = null([n for n in known if str(getattr(n, apart)) != own])
        found += [Judged(n, table.p_value(n.score), n.target) for n in known if str(getattr(n, apart)) == own]
    return found
