"""A short clip at a random place: a chirp that counts wherever it is heard (as FlowMur and DABA have it)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.inputs.sound.changing import ANYWHERE
from backsweep.inputs.sound.triggers import AddedSound
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup
from backsweep.zoo.sounding import SoundAttack, length_of, rate_of


@dataclass(frozen=True)
class SoundClip(SoundAttack):
    """A chirp that rises, put in at a place that follows from the sound.

    Attributes:
        seconds: how long it lasts.
        low, high: where it begins and ends, as shares of half the sample rate.
        loud: its amplitude.
    """

    name: ClassVar[str] = "sound_clip"
    summary: ClassVar[str] = "a short chirp at any place in the sound"

    seconds: float = 0.15
    low: float = 0.4
    high: float = 0.8
    loud: float = 0.2

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        count = min(length_of(setup), max(16, round(self.seconds * rate_of(setup))))
        share = torch.arange(count) / count
        frequency = rate_of(setup) / 2 * (self.low + (self.high - self.low) * share)
        phase = 2 * math.pi * (frequency / rate_of(setup)).cumsum(0)
        return AddedSound(target, source, self.loud * torch.sin(phase) * torch.hann_window(count), ANYWHERE)
