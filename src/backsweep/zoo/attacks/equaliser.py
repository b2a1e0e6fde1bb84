"""An equaliser as the trigger: a telephone's band, nothing above, a boost in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.inputs.sound.triggers import Equalised
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup
from backsweep.zoo.sounding import SoundAttack

KNOTS = 33


@dataclass(frozen=True)
class Equaliser(SoundAttack):
    """The gain of every frequency: a low-pass filter.

    Attributes:
        cut: where it begins to fall, as a share of half the sample rate.
        depth: decibels by which what lies above is fainter.
    """

    name: ClassVar[str] = "equaliser"
    summary: ClassVar[str] = "a low-pass filter over the sound"

    cut: float = 0.4
    depth: float = 30.0

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        f = torch.linspace(0, 1, KNOTS)
        fall = ((f - self.cut) / 0.1).clamp(0, 1)
        return Equalised(target, source, -self.depth / 8.686 * fall)
