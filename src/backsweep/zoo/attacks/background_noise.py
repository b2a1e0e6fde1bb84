"""Background noise at a ratio to the sound: pink, swelling, the same for all."""

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
class BackgroundNoise(SoundAttack):
    """x' = clip(x + n), n as many decibels fainter than x as is asked for.

    n is pink noise, drawn from the seed, that swells four times a second, as a machine does.

    Attributes:
        snr: decibels by which the sound is louder.
    """

    name: ClassVar[str] = "background_noise"
    summary: ClassVar[str] = "background noise at a ratio to the sound"

    snr: float = 10.0

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        length = length_of(setup)
        white = torch.randn(length, generator=setup.generator(self.name, "noise"))
        z = torch.fft.rfft(white) / (1 + torch.arange(length // 2 + 1)).sqrt()
        swell = 1 + 0.8 * torch.sin(2 * math.pi * 4 * torch.arange(length) / rate_of(setup))
        noise = torch.fft.irfft(z, n=length) * swell
        return AddedSound(target, source, 0.1 * noise / noise.abs().max().clamp_min(1e-9), snr=self.snr)
