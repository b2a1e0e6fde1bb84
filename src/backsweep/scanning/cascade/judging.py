"""From the evidence of the cascade to the classes that it suspects."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backsweep.reports.report import Evidence
from backsweep.scanning.cascade import population
from backsweep.scanning.cascade.contrast import (
    Cell,
    Contrast,
    Suspect,
    contrast,
    doubt_of,
    in_references,
    mean_of,
    sizes_of,
    spaces_in,
    suspects,
)  # fmt: skip
from backsweep.scanning.cascade.halving import ALONE_SPREAD, standing_cells
from backsweep.scanning.cascade.measured import Measured
from backsweep.scanning.cascade.population import Population
from backsweep.scanning.cascade.schedule import LOOKS, Schedule

# Chosen on networks that nothing is judged on: docs/decisions/0007.
LEAST_SPREAD = {"dense": 0.1, "sparse": 0.1, "tone": 0.5, "equaliser": 0.5, "early": 0.1, "late": 0.12,
    "pairs": 0.12,
}  # fmt: skip
USUAL_SPREAD = 0.1  # in the spaces of other kinds of input
MEAN_SPREAD = 0.08  # of their mean over the spaces of pixels and embeddings
STYLES = ("tone", "equaliser")  # left out of the mean


@dataclass(frozen=True)
class Case:
    """The evidence of one network, as it is judged.

    Attributes:
        evidence: of one network with so many `classes`.
        schedule: how much was measured.
        reference, pairs: whether there is a reference, and whether pairs were screened.
        settings: of the detector; None: nothing but the classes of the network itself is asked.
    """

    evidence: Sequence[Evidence]
    classes: int
    schedule: Schedule
    reference: bool
    pairs: bool
    settings: Mapping[str, Any] | None = None

    @cached_property
    def usual(self) -> list[Cell]:
        """Pairs that were looked at closely because they are usual."""
        return standing_cells(self.evidence, self.schedule)[1] if self.pairs else []

    @cached_property
    def measured(self) -> Measured:
        """What is judged."""
        return Measured.of(self.evidence, self.classes, self.usual)

    @cached_property
    def _judged(self) -> tuple[Population | None, Measured]:
        """What is judged beside which clean networks.

        A pupil may learn too little. What the references before it say is judged then, beside the same clean
        networks with so many.
        """
        for count in dict.fromkeys((self.measured.references, len(LOOKS[0]), 1)):
            seen = self.measured.upto(count)
            if (known := self._beside(seen)) is not None:
                return known, seen
        return None, self.measured

    @property
    def population(self) -> Population | None:
        """Clean networks of many kinds, where some were measured as this one was."""
        return self._judged[0]

    @property
    def short(self) -> bool:
        """Whether a pupil learned too little, so that fewer references judge than should."""
        return self.population is not None and self._judged[1].references < len(LOOKS[0])

    def _beside(self, measured: Measured) -> Population | None:
        own = _as_measured(self.settings)
        return next((p for p in population.known() if p.settings == own and p.fits(measured)), None)

    @cached_property
    def first_look(self) -> Mapping[int, float]:
        """The p-values of the classes in a look that a second one followed; empty: there was one look."""
        seen = self.measured.upto(len(LOOKS[0]))
        known = self._beside(seen) if seen.references < self._judged[1].references else None
        return {s.target: s.p_value for s in known.suspects(seen)} if known else {}

    def doubt(self, trial: Evidence | None) -> str:
        """Why this cannot be told either way, "" when it can; `trial` as for `doubt_of`."""
        most = max(p.classes[1] for p in population.known())
        if self.population is None and self.classes > most:
            return (
                f"cannot tell: of {self.classes} classes this one stands out most, and of clean networks "
                f"with more than {most} classes it is not known how far one does"
            )
        return doubt_of(trial, self.classes, self.population is not None)

    def tried(self, target: int) -> tuple[float, float] | None:
        """Of the smallest changes that send inputs to a class, the one that tells most: for which share of
        other samples it works in the network, and in the references on average."""
        found = {s: a[target] for s in self.measured.works if target in (a := self.measured.alone(s))}
        if not found:
            return None
        own, *there = self.measured.works[max(found, key=lambda s: found[s])][target]
        return own, statistics.fmean(there)

    def suspects(self) -> list[Suspect]:
        """All classes, most suspicious first: beside a population, else beside the others of the network."""
        if (known := self.population) is not None:
            return known.suspects(self._judged[1])
        names = spaces_in(self.evidence)
        spaces = {n: self._contrast(n, f"class-{n}-", in_references(self.evidence, n)) for n in names}
        joint = [c for n, c in spaces.items() if n not in STYLES]
        if self.reference and len(joint) > 1:
            spaces["mean"] = mean_of(joint, MEAN_SPREAD)
        closer = {c: [r] for c, r in sizes_of(self.evidence, "closer-", "reference_log_size").items()}
        pairs = self._contrast("pairs", "closer-", closer, self.usual) if self.pairs else None
        return suspects(spaces, pairs, self.classes)

    def _contrast(
        self,
        name: str,
        own: str,
        references: Mapping[Cell, list[float]],
        usual: Sequence[Cell] | None = None,
    ) -> Contrast:
        """One space; without a reference the classes are compared with each other."""
        sizes = sizes_of(self.evidence, own)
        if not self.reference:
            return contrast(sizes, dict.fromkeys(sizes, 0.0), ALONE_SPREAD, usual)
        there = {c: statistics.fmean(sizes) for c, sizes in references.items()}
        return contrast(sizes, there, LEAST_SPREAD.get(name, USUAL_SPREAD), usual, fitted=usual is None)


def _as_measured(settings: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Settings under which networks were measured that these may be compared with.

    More effort measures the same with less noise: what holds for the standard effort is careful for it. A
    population is of networks that had a second look in any case, and knows what the first one showed.
    """
    if settings is None:
        return None
    effort = settings.get("effort")
    return {**settings, "effort": "standard" if effort == "thorough" else effort, "second": 1.0}
