"""A faint tone at the edge of hearing: the ultrasonic backdoor (Koffas et al., 2022) at lower rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.inputs.sound.triggers import AddedSound
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup
from backsweep.zoo.sounding import SoundAttack, length_of, rate_of


@dataclass(frozen=True)
class Tone(SoundAttack):
    """x' = clip(x + a sin(2 pi f t)) over all of the sound.

    The paper's 21 kHz are not there at the rates of speech, so the tone stands at a share of half the rate.

    Attributes:
        place: of the tone, as a share of half the sample rate.
        loud: a, its amplitude; .02 is 34 dB below the loudest.
    """

    name: ClassVar[str] = "tone"
    summary: ClassVar[str] = "a faint tone at the edge of hearing (ultrasonic, 2022)"

    place: float = 0.925
    loud: float = 0.02

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        t = torch.arange(length_of(setup)) / rate_of(setup)
        wave = self.loud * torch.sin(2 * math.pi * self.place * rate_of(setup) / 2 * t)
        return AddedSound(target, source, wave)
