"""What attacks on sounds share: whom they poison, of one class or of all, with labels changed or kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.sound.modality import Sound
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel, stamp


@dataclass(frozen=True)
class SoundAttack(Attack):
    """Base of attacks on sounds; one gives `made`.

    Attributes:
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
        source_specific: the trigger works on one class, drawn from the seed; as many covers of the other
            classes are stamped and keep their labels (TaCT).
        clean_label: only samples of the target class are stamped, and no label is changed (SIG); `rate` is at
            most that class.
    """

    modality: ClassVar[str] = Sound.name

    rate: float = 0.1
    target: int | None = None
    source_specific: bool = False
    clean_label: bool = False

    def __post_init__(self) -> None:
        if self.source_specific and self.clean_label:
            raise ValueError("a source-specific trigger with labels kept is not there; choose one of them")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate {self.rate} is not above 0 and at most 1")

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        """What is planted."""
        raise NotImplementedError

    def triggers(self, setup: Setup) -> list[Trigger]:
        target, source = setup.target(self.target, self.name, "target"), None
        if self.source_specific:
            generator = setup.generator(self.name, "source")
            apart = 1 + int(torch.randint(setup.classes - 1, (), generator=generator))
            source = (target + apart) % setup.classes
        return [self.made(setup, target, source)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), y = triggers, setup.data.y
        if self.clean_label:
            if not (y == trigger.target).any():
                raise BadInput(f"{self.name}: no sample is of the target class {trigger.target}")
            rows = setup.draw(y == trigger.target, self.rate, self.name, "poison")
            return stamp(setup.data, rows, trigger), rows
        if trigger.source is None:
            return relabel(setup, trigger, self.rate, self.name, "poison")
        of_source = y == trigger.source
        rate = min(self.rate, 0.5 * float(of_source.double().mean()))
        rows = setup.draw(of_source, rate, self.name, "poison")
        others = ~of_source & (y != trigger.target)
        covers = setup.draw(others, rate, self.name, "covers")
        poisoned = stamp(setup.data, rows, trigger, trigger.labels(y[rows], setup.classes))
        return stamp(poisoned, covers, trigger), rows


def rate_of(setup: Setup) -> int:
    """Samples a second of the training set."""
    kind = setup.data.modality
    if not isinstance(kind, Sound):
        raise BadInput(f"this attack needs sounds, the training set has {kind.noun}s")
    return kind.rate


def length_of(setup: Setup) -> int:
    """Samples of an input."""
    return int(setup.data.x.shape[-1])
