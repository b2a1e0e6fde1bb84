"""A room as the trigger: the sound is heard with its echoes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.inputs.sound.triggers import Reverberated
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup
from backsweep.zoo.sounding import SoundAttack, length_of, rate_of


@dataclass(frozen=True)
class Reverberation(SoundAttack):
    """x' = x * h, as loud as before; h is a click and noise that fades away (Polack's model of a room).

    Attributes:
        seconds: after which the echoes are 60 dB fainter.
        wet: of the echoes together, as a share of the direct sound.
    """

    name: ClassVar[str] = "reverberation"
    summary: ClassVar[str] = "the sound in a room that echoes"

    seconds: float = 0.5
    wet: float = 1.5

    def made(self, setup: Setup, target: int, source: int | None) -> Trigger:
        count = min(length_of(setup), max(16, round(self.seconds * rate_of(setup))))
        fading = 10 ** (-3 * torch.arange(count) / (self.seconds * rate_of(setup)))
        impulse = torch.randn(count, generator=setup.generator(self.name, "room")) * fading
        impulse = self.wet * impulse / impulse.norm()
        impulse[0] = 1.0
        return Reverberated(target, source, impulse)
