"""The whole leaderboard: detectors, repairs, audits and guards, as far as there are lines of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backsweep.bench import figures, repair_figures, sample_figures
from backsweep.core.errors import BadInput
from backsweep.render import view
from backsweep.render.boards import board, repairs, samples
from backsweep.zoo.build import JUDGING, split_of


def table(lines: Sequence[Mapping[str, Any]], split: str = JUDGING) -> str:
    """Markdown: figures by task and attack, the cost, a row for every network. See `board`."""
    return board.markdown(_page(lines, split))


def page(lines: Sequence[Mapping[str, Any]], split: str = JUDGING) -> str:
    """The same as one self-contained HTML page, with a plot of every task. See `board`."""
    return board.html(_page(lines, split))


def unlike(lines: Sequence[Mapping[str, Any]], kind: str, split: str = JUDGING) -> str:
    """What is to be said where methods were measured on different networks; "" where on the same.

    Args:
        lines: of one kind of methods.
        kind: key of a method's name.
        split: of networks.
    """
    nets: dict[str, set[str]] = {}
    for raw in lines:
        seed = raw.get("seed", 0)
        if not raw.get("gate") and isinstance(seed, int) and split_of(seed) == split:
            nets.setdefault(view.clean(raw.get(kind), 60), set()).add(str(raw.get("net")))
    if len({frozenset(n) for n in nets.values()}) < 2:
        return ""
    common = len(set.intersection(*nets.values()))
    each = view.join([f"{name} on {len(n)}" for name, n in sorted(nets.items())])
    return (
        f"Not all were measured on the same networks: {each}; {common or 'none'} in common. Where two "
        "differ in this, their figures compare the networks as well as the methods."
    )


def _page(lines: Sequence[Mapping[str, Any]], split: str) -> board.Page:
    """The parts of detectors, repairs, audits and guards, as far as the file has lines of them.

    Raises:
        BadInput: no such split, or nothing of it among the lines.
    """
    kinds: dict[str, Callable[[Sequence[Mapping[str, Any]]], board.Page]] = {
        "": lambda own: board.page(figures.board(own, split)),
        repair_figures.REPAIR: lambda own: repairs.page(repair_figures.board(own, split)),
        sample_figures.AUDIT: lambda own: samples.audits(sample_figures.audits(own, split)),
        sample_figures.GUARD: lambda own: samples.guards(sample_figures.guards(own, split)),
    }
    parts: list[board.Page] = []
    failed: list[BadInput] = []
    for kind, make in kinds.items():
        own = [raw for raw in lines if next((k for k in kinds if k and k in raw), "") == kind]
        try:
            if own:
                made = make(own)
                said = unlike(own, kind or "detector", split)
                parts.append(replace(made, intro=[*made.intro, said]) if said else made)
        except BadInput as e:
            failed.append(e)
    if not parts:
        raise failed[0] if failed else BadInput(f"there is no scan of a {split} network: run the bench first")
    return board.joined(parts)
