"""Triggers of sound that can be inverted: a patch on the short-time spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.inputs.family import from_unit_box, unit_box
from backsweep.inputs.sound.changing import ROLLED, place_of, rolled
from backsweep.inputs.sound.mel import frames_of, spectrum, waveform
from backsweep.inputs.sound.triggers import SpectralPatch
from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True)
class CellFamily:
    """A mask through `unit_box` over the cells of the spectrum, and a pattern through tanh, at any time.

    Attributes:
        frame: samples of a frame.
        loud: amplitude of the loudest tone that a cell of the pattern holds.
        start: standard deviation of the first pattern, before tanh.
    """

    frame: int
    loud: float = 0.5
    start: float = 0.1

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        cells = (self.frame // 2 + 1, frames_of(shape[-1], self.frame))
        mask = 0.2 * torch.rand(cells, generator=generator) + 0.01
        return [from_unit_box(mask), self.start * torch.randn((2, *cells), generator=generator)]

    def _parts(self, theta: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mask (..., F, frames) and pattern (..., 2, F, frames)."""
        return unit_box(theta[0]), self.loud * self.frame / 4 * torch.tanh(theta[1].float())

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        mask, pattern = self._parts(theta)
        each = x.shape[1]
        sounds = x.float().reshape(-1, x.shape[-1])
        by = place_of(sounds, x.shape[-1])
        z = spectrum(rolled(sounds, -by), self.frame)
        mask, real, imaginary = (t.repeat_interleave(each, 0) for t in (mask, *pattern.unbind(1)))
        z = (1 - mask) * z + mask * torch.complex(real, imaginary)
        return rolled(waveform(z, self.frame, x.shape[-1]), by).clamp(-1, 1).reshape(x.shape)

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return unit_box(theta[0]).sum((1, 2))

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        mask, pattern = (t.detach().cpu() for t in self._parts(theta))
        return SpectralPatch(target, source, mask, pattern, ROLLED)
