"""Perturbation spaces of sounds: a faint waveform, few cells of time and frequency, an equaliser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.held import part_of
from backsweep.inputs.sound.changing import ROLLED, filtered, flat, place_of, rolled
from backsweep.inputs.sound.mel import frames_of, waveform
from backsweep.inputs.sound.triggers import AddedSound, Equalised
from backsweep.inputs.space import Ball
from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True)
class Noise(Ball):
    """A faint waveform that is added: clip(x + delta), measured by ||delta||_2.

    Budgets are shares of the mean norm of a sound: from 46 dB below it to as loud as it is.
    """

    title: ClassVar[str] = "faint waveform that is added"
    brief: ClassVar[str] = "faint sound"

    low: float = 0.005
    high: float = 1.0

    def range(self, x: Tensor) -> tuple[float, float]:
        norms = [part.flatten(1).norm(dim=1) for part in x.split(part_of(x.shape))]
        scale = max(float(torch.cat(norms).mean()), 1e-3)
        return self.low * scale, self.high * scale

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, *x.shape[1:]), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return (x + delta).clamp(-1, 1)

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return AddedSound(target, source, delta.flatten())


@dataclass(frozen=True)
class Cells(Noise):
    """Few cells of the short-time spectrum, added at a time that follows from the sound.

    A cell is one band in one frame; the norm is the sum of their sizes, each at most 1, which stands for a
    tone of amplitude `loud` during a frame. Budgets are cells: from `low` of them to a share `high` of all.

    Attributes:
        frame: samples of a frame.
        loud: amplitude of a full cell.
    """

    title: ClassVar[str] = "few cells of time and frequency, at any time"
    brief: ClassVar[str] = "few cells"

    low: float = 0.5
    high: float = 0.02
    frame: int = 512
    loud: float = 0.5

    def range(self, x: Tensor) -> tuple[float, float]:
        cells = (self.frame // 2 + 1) * frames_of(x.shape[-1], self.frame)
        return self.low, max(4 * self.low, self.high * cells)

    def zeros(self, count: int, x: Tensor) -> Tensor:
        frames = frames_of(x.shape[-1], self.frame)
        return torch.zeros((count, 2, self.frame // 2 + 1, frames), device=x.device)

    def _sound(self, delta: Tensor, length: int) -> Tensor:
        real, imaginary = (self.loud * self.frame / 4 * delta.float()).unbind(1)
        return waveform(torch.complex(real, imaginary), self.frame, length)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        sounds = flat(x).float()
        added = rolled(self._sound(delta, x.shape[-1]), place_of(sounds, x.shape[-1]))
        return (sounds + added).clamp(-1, 1).reshape(x.shape)

    def steepen(self, grad: Tensor) -> Tensor:
        return grad * grad.norm(dim=1, keepdim=True)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.norm(dim=1).flatten(1).sum(1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        weight = delta.norm(dim=1).flatten(1)
        capped = weight.clamp(max=1)
        kept = (capped - _shrinkage(capped, budget)[:, None]).clamp_min(0)
        return delta * (kept / weight.clamp_min(1e-9)).unflatten(1, delta.shape[2:])[:, None]

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        length = (delta.shape[-1] - 1) * (self.frame // 2)
        return AddedSound(target, source, self._sound(delta[None], length)[0], ROLLED)


def _shrinkage(weight: Tensor, budget: float) -> Tensor:
    """tau with sum_i max(weight_i - tau, 0) = budget, 0 where the sum is within it already."""
    ordered = weight.sort(dim=1, descending=True).values
    count = torch.arange(1, weight.shape[1] + 1, device=weight.device)
    tau = (ordered.cumsum(1) - budget) / count
    last = (ordered > tau).sum(1, keepdim=True).clamp_min(1) - 1
    return tau.gather(1, last)[:, 0].clamp_min(0)


@dataclass(frozen=True)
class Equaliser(Noise):
    """An equaliser, piecewise linear in frequency; the root mean square of its log gains.

    What a telephone, a microphone or a wall does to a sound. Budgets are log gains: from .2 dB to 26 dB.
    """

    title: ClassVar[str] = "equaliser"
    brief: ClassVar[str] = "equaliser"

    low: float = 0.02
    high: float = 3.0
    bands: int = 17

    def range(self, x: Tensor) -> tuple[float, float]:
        return self.low, self.high

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, self.bands), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return filtered(flat(x), delta).clamp(-1, 1).reshape(x.shape)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.square().mean(1).sqrt()

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return Equalised(target, source, delta)
