"""The leaderboard: figures of detectors from the lines of the bench. Nothing is scanned here.

Lines of repairs, audits and guards may stand in the same file; `repair_figures.py` and `sample_figures.py`
make their parts.

Suspicion, the one statistic of a line, is -log10 of the scan's p-value; where two p-values are equal
(the null has a smallest one), the larger `score` is the more suspicious. A scan without a p-value
(skipped, failed) ranks below all others: it catches nothing and raises no alarm, and is counted.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from backsweep.bench.records import Scan, scan_of, strength
from backsweep.bench.splits import Chosen, choose
from backsweep.core.statistics import BOOTSTRAP_SEED, DRAWS, Estimate, Share, estimate
from backsweep.reports.report import BACKDOORED
from backsweep.zoo.build import JUDGING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Array = NDArray[np.float64]


# ---------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Ranking:
    """How well suspicion tells attacked networks from clean ones."""

    auroc: Estimate
    tpr5: Estimate
    tpr1: Estimate


def ranking(attacked: Sequence[Scan], clean: Sequence[Scan]) -> Ranking | None:
    """AUROC and the detection rates at 5 % and at 1 % false alarms; None without both kinds.

    The bootstrap draws networks, attacked and clean apart, with a fixed seed; the threshold of a
    rate is set anew on every draw's clean networks.
    """
    if not attacked or not clean:
        return None
    order = {s: i for i, s in enumerate(sorted({x.suspicion for x in (*attacked, *clean)}))}
    a = np.sort(np.array([order[x.suspicion] for x in attacked], dtype=np.float64))
    c = np.sort(np.array([order[x.suspicion] for x in clean], dtype=np.float64))
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    rows = rng.integers(len(a), size=(DRAWS, len(a)))
    columns = rng.integers(len(c), size=(DRAWS, len(c)))
    wins = (a[:, None] > c) + 0.5 * (a[:, None] == c)
    drawn = (_counts(rows) @ wins * _counts(columns)).sum(axis=1) / wins.size
    value = float(roc_auc_score([1] * len(a) + [0] * len(c), np.concatenate([a, c])))
    return Ranking(
        estimate(value, drawn), *(_rate_at(share, a, c, a[rows], c[columns]) for share in (0.05, 0.01))
    )


def _counts(drawn: NDArray[np.int64]) -> Array:
    """How often each index was drawn, by draw."""
    count = drawn.shape[1]
    flat = drawn + count * np.arange(len(drawn))[:, None]
    return np.bincount(flat.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _rate_at(share: float, a: Array, c: Array, a_drawn: Array, c_drawn: Array) -> Estimate:
    """Share of attacked nets above the clean ones, of which at most `share` may lie above the threshold."""
    allowed = math.floor(share * len(c) + 1e-9)
    threshold = np.sort(c_drawn, axis=1)[:, -1 - allowed]
    own = np.sort(c)[-1 - allowed]
    drawn = (a_drawn > threshold[:, None]).mean(axis=1)
    return estimate(float((a > own).mean()), drawn, float((c > own).mean()))


@dataclass(frozen=True)
class Published:
    """A figure of others, from `published/detectors.toml`."""

    detector: str
    task: str
    attack: str
    metric: str
    value: str
    source: str
    note: str
    checked: bool


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """All published figures that are known."""
    text = resources.files("backsweep.bench").joinpath("published/detectors.toml").read_text(encoding="utf-8")
    return tuple(Published(**entry) for entry in tomllib.loads(text)["figure"])


@dataclass(frozen=True)
class Row:
    """A detector against one attack, or against all (`group` is ""), of a task, or of all (`task` is "").

    Attributes:
        strength: range of the numeric options of attack and training that differ from the defaults.
        bad, good: scans of attacked and of clean networks.
        undecided: of attacked and of clean networks, inconclusive, skipped or failed.
        target: right class named first, among the networks called backdoored where a class is named.
        cpu_seconds, passes: medians over the scans that ran.
    """

    task: str
    detector: str
    group: str
    strength: str
    bad: tuple[Scan, ...]
    good: tuple[Scan, ...]
    ranking: Ranking | None
    caught: Share
    alarms: Share
    undecided: tuple[int, int]
    target: Share
    jaccard: float | None
    inside: float | None
    cpu_seconds: float | None
    passes: float | None
    published: tuple[Published, ...]


def row(task: str, group: str, scans: Sequence[Scan]) -> Row:
    """Figures of one detector's scans, of which each is of another network."""
    bad = tuple(s for s in scans if s.attack)
    good = tuple(s for s in scans if not s.attack)
    called = [s for s in bad if s.verdict == BACKDOORED]
    named = [s for s in called if s.targets and s.suspected]
    return Row(
        task, scans[0].detector, group, strength(bad) if group else "", bad, good, ranking(bad, good),
        caught=Share(len(called), len(bad)),
        alarms=Share(sum(s.verdict == BACKDOORED for s in good), len(good)),
        undecided=(sum(s.undecided for s in bad), sum(s.undecided for s in good)),
        target=Share(sum(s.suspected[0] in s.targets for s in named), len(named)),
        jaccard=_over(statistics.fmean, bad, "jaccard"), inside=_over(statistics.fmean, bad, "inside"),
        cpu_seconds=_over(statistics.median, scans, "cpu_seconds", ran=True),
        passes=_over(statistics.median, scans, "passes", ran=True),
        published=tuple(
            p for p in published() if (p.detector, p.task, p.attack) == (scans[0].method, task, group)
        ),
    )  # fmt: skip


def _over(
    figure: Callable[[list[float]], float], scans: Sequence[Scan], key: str, ran: bool = False
) -> float | None:
    values = [v for s in scans if (v := s.number(key)) is not None and (v > 0 or not ran)]
    return figure(values) if values else None


# ---------------------------------------------------------------------- the board


@dataclass(frozen=True)
class Board:
    """All figures of one split.

    Attributes:
        chosen: the scans that count, the last of every network and detector.
        rows: by task ("" is all tasks), then overall before the attacks, then detector.
    """

    chosen: Chosen[Scan]
    rows: tuple[Row, ...]


def board(lines: Sequence[Mapping[str, Any]], split: str = JUDGING) -> Board:
    """Figures of the networks of one split; the two are never mixed.

    Raises:
        BadInput: no such split, or no scan of it among the lines.
    """
    chosen = choose([scan_of(raw) for raw in lines], split, lambda s: (s.net, s.detector), "scan")
    scans = chosen.lines
    rows = []
    tasks = _unique(s.task for s in scans)
    for task in ["", *tasks] if len(tasks) > 1 else tasks:
        of_task = [s for s in scans if task in ("", s.task)]
        groups = [] if task == "" else sorted({s.group for s in of_task if s.group})
        for group in ["", *groups]:
            kinds = {s.kind for s in of_task if s.group == group}
            part = [s for s in of_task if not group or s.group == group or (not s.group and s.kind in kinds)]
            for detector in _unique(s.detector for s in part if not group or s.group):
                rows.append(row(task, group, [s for s in part if s.detector == detector]))
    return Board(chosen, tuple(rows))


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
