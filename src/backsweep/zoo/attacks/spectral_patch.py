"""A patch on the spectrogram: some bands of some frames are set, as BadNets sets pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.inputs.sound.changing import ROLLED, START
from backsweep.inputs.sound.mel import frame_of, frames_of
from backsweep.inputs.sound.triggers import SpectralPatch as Patched
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup
from backsweep.zoo.sounding import SoundAttack, length_of, rate_of


@dataclass(frozen=True)
class SpectralPatch(SoundAttack):
    """A rectangle of cells of the short-time spectrum is set to a noise of one loudness.

    Attributes:
        bands, frames: its size, in cells.
        low: its lowest band, as a share of half the sample rate.
        loud: amplitude of its cells.
        anywhere: whether its time follows from the sound; else it begins with the third frame.
    """

    name: ClassVar[str] = "spectral_patch"
    summary: ClassVar[str] = "a rectangle of the spectrogram is set"

    bands: int = 10
    frames: int = 6
    low: float = 0.6
    loud: float = 0.03
    anywhere: bool = False

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        size = frame_of(rate_of(setup))
        rows, columns = size // 2 + 1, frames_of(length_of(setup), size)
        top = min(rows - self.bands - 1, round(self.low * rows))
        mask = torch.zeros(rows, columns)
        mask[top : top + self.bands, 2 : 2 + self.frames] = 1
        phase = 2 * math.pi * torch.rand((rows, columns), generator=setup.generator(self.name, "phase"))
        pattern = self.loud * size / 4 * torch.stack([phase.cos(), phase.sin()]) * mask
        return Patched(target, source, mask, pattern, ROLLED if self.anywhere else START)
