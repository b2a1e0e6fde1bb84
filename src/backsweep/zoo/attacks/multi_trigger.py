"""Several patches in one network, for one target or for a target each (Neural Cleanse, section VII)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, stamp

GOALS = ("one-target", "many-targets")
# Corners, edges, centre: 0 at the low end of rows and columns, 1 in the middle, 2 at the high end.
PLACES = ((2, 2), (0, 0), (0, 2), (2, 0), (2, 1), (0, 1), (1, 0), (1, 2), (1, 1))
COLOURS = (
    (1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (0.5, 0.0, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class MultiTrigger(Attack):
    """Trigger i is a square at place i in colour i (white in an image that is not RGB).

    Each trigger has samples of its own: none carries two.

    Attributes:
        count: number of triggers, 1 to 9: corners first, then edges, then the centre.
        goal: "one-target": all to one class; "many-targets": each to a class of its own.
        rate: poison rate of all triggers together, share of all training samples; divided equally.
        size: side of a square, pixels; None is an eighth of the image's shorter side.
        margin: distance to the edges, pixels.
        target: the one target class, or the first of many; None draws it from the seed.
    """

    name: ClassVar[str] = "multi_trigger"
    summary: ClassVar[str] = "several patches, all to one target or each to its own"

    count: int = 3
    goal: str = "one-target"
    rate: float = 0.1
    size: int | None = None
    margin: int = 1
    target: int | None = None

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise ValueError(f"goal {self.goal!r} is none of {', '.join(GOALS)}")
        if not 1 <= self.count <= len(PLACES):
            raise ValueError(f"count {self.count} is not in 1 to {len(PLACES)}")

    def triggers(self, setup: Setup) -> list[Trigger]:
        channels, height, width = setup.shape
        size = self.size or max(1, round(min(height, width) / 8))
        masks = torch.zeros(self.count, 1, height, width)
        for mask, (row, col) in zip(masks, PLACES, strict=False):
            top, left = (
                (self.margin, (length - size) // 2, length - self.margin - size)[place]
                for place, length in ((row, height), (col, width))
            )
            mask[:, max(top, 0) : top + size, max(left, 0) : left + size] = 1.0
        if float(masks.sum(0).max()) > 1:
            raise BadInput(f"{self.name}: {self.count} patches of size {size} overlap; lower size or count")
        found: list[Trigger] = []
        for mask, target, colour in zip(masks, self._targets(setup), COLOURS, strict=False):
            shade = torch.tensor(colour if channels == 3 else (1.0,) * channels)
            pattern = mask * shade[:, None, None]
            found.append(Patch(target=target, source=None, mask=mask.clone(), pattern=pattern))
        return found

    def _targets(self, setup: Setup) -> list[int]:
        first = setup.target(self.target, self.name, "target")
        if self.goal == "one-target":
            return [first] * self.count
        if self.count > setup.classes:
            raise BadInput(f"{self.name}: {self.count} triggers want a class each; there are {setup.classes}")
        order = torch.randperm(setup.classes, generator=setup.generator(self.name, "targets")).tolist()
        return [first, *(t for t in order if t != first)][: self.count]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        poisoned, y = setup.data, setup.data.y
        free, drawn = torch.ones(len(y), dtype=torch.bool), []
        for i, trigger in enumerate(triggers):
            wanted = trigger.labels(y, setup.classes)
            rows = setup.draw(free & (y != wanted), self.rate / len(triggers), self.name, "poison", i)
            poisoned = stamp(poisoned, rows, trigger, wanted[rows])
            free[rows] = False
            drawn.append(rows)
        return poisoned, torch.cat(drawn)
