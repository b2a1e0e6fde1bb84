"""The page of kinds: what a verdict is worth on a kind of networks that nobody has seen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from backsweep.bench import ranked
from backsweep.bench.kinds import Judged, Network, auroc, called, interval, left_out
from backsweep.bench.ranked import Ranked
from backsweep.render.boards.board import Cell, Page, Section, Table

ALPHAS = (0.05, 0.01)
INTERVALS = "Intervals are 95 %: below, kinds are drawn, then networks of each; in the tables, Wilson's."


def page(known: Sequence[Network], refused: int = 0) -> Page:
    """Every network judged without its kind.

    Args:
        known: scans of networks whose truth is known.
        refused: attacked networks that did not pass the gate of the zoo.
    """
    judged = left_out(known)
    clean, attacked = _parted(judged)
    intro = [
        "A stranger's model is of a kind that nobody has seen. Here every network is judged by what clean "
        "networks of the other kinds are like: priors and the null know nothing of its own kind (task, "
        "architecture, what it was fine-tuned from), and nothing is learned from attacked ones.",
        f"{_counted(judged, refused)} Median {_cost(judged):.1f} CPU seconds a scan with all looks; "
        f"{_again(clean)} of the clean and {_again(attacked)} "
        f"of the attacked ones needed a second, the others cost less. {INTERVALS}",
    ]
    return Page(
        "What a verdict is worth on a kind that nobody has seen", "left out", intro, _sections(judged)
    )


def ranked_page(known: Sequence[Ranked], detector: str, apart: str, refused: int = 0) -> Page:
    """The same for a detector whose score is one number.

    Args:
        known: its scans of networks whose truth is known.
        detector: its name.
        apart: what is left out with a network, "kind" or "data".
        refused: attacked networks that did not pass the gate of the zoo.
    """
    judged = ranked.left_out(known, apart)
    without = "its kind (task, architecture, number of training samples)" if apart == "kind" else (
        "all kinds over its data set"
    )  # fmt: skip
    intro = [
        f"Here every network is ranked by its score of {detector} among clean networks, without {without}; "
        "nothing is learned from attacked ones.",
        f"{_counted(judged, refused)} Median {_cost(judged):.1f} CPU seconds a scan. {INTERVALS}",
    ]
    return Page(f"{detector}: the {apart} left out", "left out", intro, _sections(judged))


def _parted(judged: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """Clean and attacked ones."""
    return (
        [j for j in judged if j.network.attack is None], [j for j in judged if j.network.attack is not None]
    )  # fmt: skip


def _counted(judged: Sequence[Judged], refused: int) -> str:
    clean, attacked = _parted(judged)
    kinds = {j.network.kind for j in judged}
    return (
        f"{len(clean)} clean and {len(attacked)} attacked networks of {len(kinds)} kinds. {refused} attacked "
        "ones did not pass the gate (success rate, accuracy, a trigger that moves the twin)."
    )


def _cost(judged: Sequence[Judged]) -> float:
    return statistics.median(j.network.cpu_seconds for j in judged)


def _sections(judged: Sequence[Judged]) -> list[Section]:
    clean, attacked = _parted(judged)

    def by(name: str, rows: Sequence[Judged], of: Callable[[Judged], str]) -> Section:
        return Section(
            f"By {name}", tables=[("", _rows(name, sorted({of(j) for j in rows}), judged, of))]
        )  # fmt: skip

    return [
        Section("All kinds", tables=[("", _pooled(judged, clean, attacked))]),
        by("kind", judged, lambda j: j.network.kind),
        by("architecture", judged, lambda j: j.network.arch or "its own"),
        Section(
            "By attack",
            tables=[("", _rows(
                "attack", sorted({str(j.network.attack) for j in attacked}), attacked,
                lambda j: str(j.network.attack),
            ))],
        ),
        Section(
            "By number of classes",
            tables=[("", _rows(
                "classes", [str(c) for c in sorted({j.network.classes for j in judged})], judged,
                lambda j: str(j.network.classes),
            ))],
        ),
        Section(
            "Every network",
            tables=[("", Table(
                ["network", "p-value", "class", "planted"],
                [[Cell(j.network.name), Cell(f"{j.p_value:.3f}"), Cell(str(j.target)),
                  Cell(", ".join(map(str, j.network.targets)))]
                 for j in sorted(judged, key=lambda j: (j.network.attack is not None, j.p_value))],
            ))],
            folded=True,
        ),
    ]  # fmt: skip


def _again(judged: Sequence[Judged]) -> int:
    return sum(j.looks > 1 for j in judged)


def _pooled(judged: Sequence[Judged], clean: Sequence[Judged], attacked: Sequence[Judged]) -> Table:
    def rate(rows: Sequence[Judged], alpha: float, attack: bool) -> float | None:
        own = [j for j in rows if (j.network.attack is not None) == attack]
        return called(own, alpha).value if own else None

    rows = []
    for alpha in ALPHAS:
        for name, attack in (("clean called", False), ("attacked found", True)):
            count = called(attacked if attack else clean, alpha)
            e = interval(judged, lambda r, a=alpha, k=attack: rate(r, a, k))  # type: ignore[misc]
            between = f"{e.low:.0%} to {e.high:.0%}" if e else ""
            rows.append([Cell(f"{name} at alpha {alpha}"), Cell(f"{count.hits} of {count.n}"), Cell(between)])
    found = [j for j in attacked if j.p_value <= ALPHAS[0]]
    rows.append([Cell("right target, of those found"), Cell(f"{sum(j.right for j in found)} of {len(found)}"),
                 Cell("")])  # fmt: skip
    e = interval(judged, auroc)
    if e is not None:
        rows.append([Cell("AUROC"), Cell(f"{e.value:.3f}"), Cell(f"{e.low:.3f} to {e.high:.3f}")])
    return Table(["", "networks", "interval"], rows)


def _rows(
    name: str, groups: Sequence[str], judged: Sequence[Judged], of: Callable[[Judged], str]
) -> Table:  # fmt: skip
    rows = []
    for group in groups:
        own = [j for j in judged if of(j) == group]
        cells = [Cell(group)]
        for attack in (False, True):
            part = [j for j in own if (j.network.attack is not None) == attack]
            count = called(part, ALPHAS[0])
            low, high = count.interval
            cells.append(Cell(f"{count.hits}/{count.n}", f"{low:.0%}-{high:.0%}") if part else Cell(""))
        rows.append(cells)
    return Table([name, "clean called", "attacked found"], rows)
