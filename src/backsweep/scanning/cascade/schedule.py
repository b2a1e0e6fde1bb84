"""How much of what the default scan measures: successive halving over classes and pairs.

All classes, and all pairs, get a cheap look; those that stand out, and others that do not, which keep the
null honest, are measured in full. So the cost grows far more slowly than the number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# Stages in which classes are measured in networks to compare with: a washed copy and a pupil, and two more.
LOOKS = (("reference", "pupil"), ("reference2", "pupil2"))
REFERENCES = (*LOOKS[0], *LOOKS[1])
AGAIN = 0.3  # p-value of the first look up to which there is a second: it is no call yet, and rare when clean
PAIRS = 2000  # most cells of the screen; beyond, the targets that a source is nearest to


@dataclass(frozen=True)
class Schedule:
    """How much is measured.

    Attributes:
        shares: of the steps and the batch that were asked for.
        steps, batch: budgets on a path, and inputs of a class in each.
        all_classes: so many classes are all measured in full; of more, those that a look chooses.
        looks: spaces of that look; None: all that are measured.
        suspects, others: classes that it chooses because they stand out, and besides.
        look: steps and batch of the look.
        pairs: steps and batch of the look at pairs.
        cells: pairs that stand out there and are looked at again, with `again` steps and inputs; 0: none.
        closer: pairs that are measured in full, and as many others.
        closer_batch: inputs in a step of theirs.
        updates: of the search for a patch that people can look at.
        kept: whether the washed copy is trained on kept activations.
        pupil: whether a pupil is a reference beside the washed copy.
        second: p-value up to which another two are made; 0: never.
        down: spaces in which classes are followed from large budgets to small ones.
    """

    shares: tuple[float, float] = (1.0, 1.0)
    steps: int = 20
    batch: int = 12
    all_classes: int = 20
    looks: tuple[str, ...] | None = None
    suspects: int = 12
    others: int = 8
    look: tuple[int, int] = (10, 4)
    pairs: tuple[int, int] = (6, 2)
    cells: int = 30
    again: tuple[int, int] = (20, 4)
    closer: int = 6
    closer_batch: int = 24
    updates: int = 100
    kept: bool = True
    pupil: bool = True
    second: float = AGAIN
    down: tuple[str, ...] = ("sparse",)

    def of(self, steps: int, batch: int) -> Schedule:
        """With its share of the steps and the batch that are asked for."""
        a, b = self.shares
        return replace(self, steps=max(2, round(a * steps)), batch=max(2, round(b * batch)))

    def looked(self, spaces: Sequence[str]) -> list[str]:
        """Those of the spaces in which all classes get a look, at least one."""
        return [n for n in spaces if n in (self.looks or spaces)] or list(spaces[-1:])

    def inputs(self, kind: str, classes: int) -> int:
        """Inputs in a step of one unit of a stage, as `kind_of` names it."""
        stages = {
            "pairs": (classes - 1) * self.pairs_in(classes)[1],
            "cells": self.again[1],
            "closer": self.closer_batch,
        }
        return stages.get(kind, self.look[1] if kind.startswith("look") else self.batch)

    def pairs_in(self, classes: int) -> tuple[int, int]:
        """Steps and batch of the first look at pairs; of few classes it is the only one."""
        if classes <= self.all_classes < 10**9:
            return self.steps, max(2, 3 * self.batch // 8)
        if self.pairs[1]:
            return self.pairs
        full, short = (self.steps, 3 * self.batch // 8), (self.steps // 2, self.batch // 4)
        steps, batch = short if classes > 20 else full
        return max(2, steps), max(2, batch)

    def cells_in(self, classes: int) -> int:
        """Pairs that are looked at again."""
        return 0 if classes <= self.all_classes else self.cells

    def measured(self, classes: int) -> int:
        """Classes that are measured in full."""
        return classes if classes <= self.all_classes else min(classes, self.suspects + self.others)


# "full" is what version 0.1 measured: nothing is halved.
EFFORTS: Mapping[str, Schedule] = {
    "quick": Schedule(shares=(0.4, 0.5), looks=("late",), suspects=6, others=6, look=(8, 4),
                      pairs=(3, 2), cells=12, closer=3, closer_batch=12, updates=100,
                      pupil=False, second=0.0),
    "standard": Schedule(shares=(0.6, 0.67), suspects=10, others=6, closer=4, closer_batch=16, updates=200),
    "thorough": Schedule(all_classes=100, suspects=24, others=16, look=(20, 8),
                         pairs=(10, 4), cells=60, again=(30, 8), closer=8, closer_batch=32, updates=200),
    "full": Schedule(all_classes=10**9, pairs=(0, 0), cells=0, closer=6, closer_batch=24,
                     updates=160, kept=False, pupil=False, second=0.0, down=()),
}  # fmt: skip
