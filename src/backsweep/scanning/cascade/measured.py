"""What a scan measured of the classes and pairs of one network, as far as it is judged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backsweep.reports.report import Evidence
from backsweep.scanning.cascade.contrast import Cell, in_references, sizes_of, slope, spaces_in

CONTINUITY = 0.05  # of log odds
Rows = Mapping[str, Mapping[int, tuple[float, ...]]]


@dataclass(frozen=True)
class Pair:
    """One (source, target) cell that was looked at closely.

    Attributes:
        difference: log size in the washed copy less that in the suspect.
        usual: whether it was chosen as a usual one, and not because it stands out.
    """

    source: int
    target: int
    difference: float
    usual: bool


@dataclass(frozen=True)
class Measured:
    """What a scan measured, as far as it is judged.

    Attributes:
        classes: of the network.
        sizes: by space and class, log size in the suspect, and in every reference.
        pairs: cells that were looked at closely.
        works: by space of inputs and class, the share of samples for which the smallest change that sends
            the suspect's inputs there works, in the suspect and in every reference.
    """

    classes: int
    sizes: Rows
    pairs: tuple[Pair, ...] = ()
    works: Rows = field(default_factory=dict)

    @classmethod
    def of(cls, evidence: Sequence[Evidence], classes: int, usual: Sequence[Cell]) -> Measured:
        """From evidence; `usual` says which cells were chosen as usual ones."""

        def rows(key: str) -> Rows:
            found: dict[str, dict[int, tuple[float, ...]]] = {}
            for name in spaces_in(evidence):
                own, there = sizes_of(evidence, f"class-{name}-", key), in_references(evidence, name, key)
                found[name] = {c[1]: (own[c], *there[c]) for c in own if c in there}
            return {name: own for name, own in found.items() if own or key == "log_size"}

        own, reference = (sizes_of(evidence, "closer-", key) for key in ("log_size", "reference_log_size"))
        pairs = (
            Pair(c[0] or 0, c[1], reference[c] - own[c], c in usual)
            for c in sorted(own, key=_key) if c in reference
        )  # fmt: skip
        return cls(classes, rows("log_size"), tuple(pairs), rows("works"))

    @property
    def references(self) -> int:
        """Networks that all of it was compared with."""
        return min((len(row) - 1 for own in self.sizes.values() for row in own.values()), default=0)

    def upto(self, references: int) -> Measured:
        """The same, compared with the first references alone."""
        sizes, works = (
            {name: {t: row[: 1 + references] for t, row in own.items()} for name, own in rows.items()}
            for rows in (self.sizes, self.works)
        )
        return Measured(self.classes, sizes, self.pairs, works)

    def document(self) -> dict[str, Any]:
        """For a line of the bench."""
        sizes, works = (
            {
                n: [[t, *(round(v, 4) for v in row)] for t, row in sorted(own.items())]
                for n, own in rows.items()
            }
            for rows in (self.sizes, self.works)
        )
        pairs = [[p.source, p.target, round(p.difference, 4), p.usual] for p in self.pairs]
        return {"sizes": sizes, "pairs": pairs, "works": works}

    @classmethod
    def read(cls, document: Mapping[str, Any], classes: int) -> Measured:
        """The same again."""
        sizes, works = (
            {name: {int(t): tuple(s) for t, *s in rows} for name, rows in document.get(key, {}).items()}
            for key in ("sizes", "works")
        )
        return cls(classes, sizes, tuple(Pair(*row) for row in document["pairs"]), works)

    def differences(self, space: str) -> dict[int, float]:
        """d = beta log r - log s of every class: log r the mean over references, beta the slope on it."""
        own = {t: (s, statistics.fmean(r)) for t, (s, *r) in self.sizes.get(space, {}).items()}
        beta = slope([r for _, r in own.values()], [s for s, _ in own.values()])
        return {t: beta * r - s for t, (s, r) in own.items()}

    def alone(self, space: str) -> dict[int, float]:
        """Log odds that the smallest change works in the suspect, less their mean over the references.

        a = L(p) - mean_k L(p_k),   L(p) = log((p + c) / (1 + c - p)),   c = CONTINUITY

        0: it works as often there; 6: it always works here, and never there.
        """
        return {
            t: odds(own) - statistics.fmean(odds(p) for p in there)
            for t, (own, *there) in self.works.get(space, {}).items()
        }


def odds(share: float) -> float:
    """Log odds of a share, with a little of both so that they are finite."""
    return math.log((share + CONTINUITY) / (1 + CONTINUITY - share))


def _key(cell: Cell) -> tuple[int, int]:
    return (cell[0] or 0, cell[1])
