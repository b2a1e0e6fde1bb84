"""Which lines of a bench count: those of one split, the last of each cell, inside the zoo's gate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from backsweep.bench.records import Line
from backsweep.core.errors import BadInput
from backsweep.zoo.build import SPLITS

L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Chosen(Generic[L]):
    """The lines of one split; the splits are never mixed.

    Attributes:
        split: which networks: for choosing constants, for judging, or for null tables.
        lines: that count: the last line of every cell, those outside the gate left out.
        gate: networks that the zoo's gate left out, with the reason.
        other: lines of the other splits, which are not shown.
        older: lines that a later line of the same cell replaces.
        damaged: lines that are not lines of the bench.
    """

    split: str
    lines: tuple[L, ...]
    gate: tuple[str, ...]
    other: int
    older: int
    damaged: int


def choose(found: Sequence[L | None], split: str, cell: Callable[[L], Hashable], noun: str) -> Chosen[L]:
    """The lines of a split.

    Args:
        found: lines as they were read, None for a damaged one.
        split: which networks.
        cell: what a later line replaces an earlier one of.
        noun: what a line is of, for errors.

    Raises:
        BadInput: no such split, or nothing of it among the lines.
    """
    if split not in SPLITS:
        raise BadInput(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    read = [line for line in found if line is not None]
    last = {cell(line): line for line in read}
    chosen = [line for line in last.values() if line.split == split]
    if not chosen:
        raise BadInput(
            f"there is no {noun} of a {split} network"
            + (f"; there are {len(last)} of the other split (--split)" if last else ": run the bench first")
        )
    return Chosen(
        split,
        tuple(line for line in chosen if not line.gate),
        tuple(sorted({f"{line.net}: {line.gate}" for line in chosen if line.gate})),
        other=len(last) - len(chosen), older=len(read) - len(last), damaged=len(found) - len(read),
    )  # fmt: skip
