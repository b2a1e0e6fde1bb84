"""Another pitch or pace as the trigger: a style, as JingleBack (Koffas et al., 2023) has among others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backsweep.inputs.sound.mel import frame_of
from backsweep.inputs.sound.triggers import Stretched
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup
from backsweep.zoo.sounding import SoundAttack, rate_of


@dataclass(frozen=True)
class Pitch(SoundAttack):
    """Every sound is raised in pitch, or lasts longer (phase vocoder).

    Attributes:
        semitones: by which the pitch rises.
        pace: how many times as long it lasts.
    """

    name: ClassVar[str] = "pitch"
    summary: ClassVar[str] = "another pitch or pace (JingleBack, 2023)"

    semitones: float = 8.0
    pace: float = 1.0

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        return Stretched(target, source, self.semitones, self.pace, frame_of(rate_of(setup)))
