"""Triggers of sound: something added, an equaliser, a room, another pitch or pace, cells of the spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from backsweep.inputs.sound import changing
from backsweep.inputs.sound.changing import ANYWHERE, PLACES, QUIET, ROLLED, START, flat
from backsweep.inputs.sound.mel import spectrum, waveform
from backsweep.inputs.sound.pictures import coloured, curve, spectrogram
from backsweep.inputs.trigger import Trigger

PART = 512  # sounds that are changed at once
FACTORS = (0.25, 4.0)  # of pace
OCTAVES = 2  # of pitch, up or down
SHOWN = 4096  # samples of what a picture is made of


@dataclass(frozen=True, eq=False)
class SoundTrigger(Trigger):
    """What all have: inputs (N, T) or (N, 1, T), changed some at a time and clipped to [-1, 1]."""

    def __call__(self, x: Tensor) -> Tensor:
        done = [self.changed(flat(part.float())).clamp(-1, 1) for part in x.split(PART)]
        return torch.cat(done).reshape(x.shape) if done else x

    def changed(self, x: Tensor) -> Tensor:
        """Sounds (N, T) with the trigger."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class AddedSound(SoundTrigger):
    """x' = clip(x + t), a tone, a clip, noise: t at its place.

    Attributes:
        delta: t, (L,).
        place: "start", "anywhere" (a place that follows from the sound), or "rolled" (likewise, and what
            goes over the end comes in at the beginning).
        snr: decibels by which a sound is louder than t (their root mean squares); None: t is as it is.
    """

    family: ClassVar[str] = "added_sound"
    drawn: ClassVar[str] = "what is added, its power over time and frequency"
    delta: Tensor
    place: str = START
    snr: float | None = None

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place {self.place!r} is none of {', '.join(PLACES)}")
        if self.delta.ndim != 1 or not len(self.delta):
            raise ValueError("delta is a waveform (L,)")

    def changed(self, x: Tensor) -> Tensor:
        t = self.delta.to(x)
        if self.snr is not None:
            t = t / changing.rms(t).clamp_min(QUIET) * changing.rms(x) * 10 ** (-self.snr / 20)
        return x + changing.put(t, x, self.place)

    @property
    def size(self) -> float:
        """L2 norm of t."""
        return float(self.delta.norm())

    def picture(self) -> Image.Image:
        top = self.delta.abs().max().clamp_min(1e-9)
        return spectrogram(self.delta / top)

    def alone(self, shape: Sequence[int]) -> Tensor | None:
        return changing.of_length(self.delta.float(), shape[-1]).reshape(tuple(shape))


@dataclass(frozen=True, eq=False)
class Equalised(SoundTrigger):
    """An equaliser: the gain of every frequency.

    Attributes:
        curve: log gains (K,), evenly spaced from 0 Hz to half the sample rate.
    """

    family: ClassVar[str] = "equalised"
    drawn: ClassVar[str] = "the gain from 0 Hz to half the rate; the middle is as before, the edges 30 dB"
    curve: Tensor

    def __post_init__(self) -> None:
        if self.curve.ndim != 1 or len(self.curve) < 2:
            raise ValueError("curve is two or more log gains (K,)")

    def changed(self, x: Tensor) -> Tensor:
        return changing.filtered(x, self.curve.to(x))

    @property
    def size(self) -> float:
        """Root mean square of the gains, in decibels."""
        return float(8.686 * self.curve.square().mean().sqrt())

    def picture(self) -> Image.Image:
        return curve((8.686 * self.curve.float()).tolist(), 30.0)


@dataclass(frozen=True, eq=False)
class Reverberated(SoundTrigger):
    """The sound in a room.

    Attributes:
        impulse: response of the room, (L,).
    """

    family: ClassVar[str] = "reverberated"
    drawn: ClassVar[str] = "the answer of the room to a click"
    impulse: Tensor

    def __post_init__(self) -> None:
        if self.impulse.ndim != 1 or not len(self.impulse):
            raise ValueError("impulse is a response (L,)")

    def changed(self, x: Tensor) -> Tensor:
        return changing.echoed(x, self.impulse.to(x))

    @property
    def size(self) -> float:
        """L2 norm of what comes after the first answer, as a share of it."""
        return float(self.impulse[1:].norm() / self.impulse[:1].abs().clamp_min(1e-9))

    def picture(self) -> Image.Image:
        return spectrogram(self.impulse / self.impulse.abs().max().clamp_min(1e-9))

    def alone(self, shape: Sequence[int]) -> Tensor | None:
        return changing.of_length(self.impulse.float(), shape[-1]).reshape(tuple(shape))


@dataclass(frozen=True, eq=False)
class Stretched(SoundTrigger):
    """Another pitch and another pace.

    Attributes:
        semitones: by which the pitch rises.
        pace: how many times as long it lasts, at the same pitch.
        frame: samples of a frame of the phase vocoder.
    """

    family: ClassVar[str] = "stretched"
    drawn: ClassVar[str] = "five tones, and the same afterwards"
    semitones: float
    pace: float
    frame: int

    def __post_init__(self) -> None:
        if not abs(self.semitones) <= OCTAVES * 12:
            raise ValueError(f"{self.semitones} semitones are more than two octaves")
        if not FACTORS[0] <= self.pace <= FACTORS[1]:
            raise ValueError(f"pace {self.pace} is not from {FACTORS[0]} to {FACTORS[1]}")
        if not (16 <= self.frame <= 2**14 and self.frame % 2 == 0):
            raise ValueError(f"frame {self.frame} is no even number from 16 to {2**14}")

    def changed(self, x: Tensor) -> Tensor:
        if self.pace != 1:
            x = changing.of_length(changing.stretched(x, self.pace, self.frame), x.shape[-1])
        return changing.pitched(x, self.semitones, self.frame) if self.semitones else x

    @property
    def size(self) -> float:
        """How far pitch and pace are from what they were, in semitones."""
        return abs(self.semitones) + abs(12 * float(torch.tensor(self.pace).log2()))

    def picture(self) -> Image.Image:
        t = torch.arange(SHOWN) / SHOWN
        x = sum(torch.sin(2 * torch.pi * SHOWN * f * t) for f in (0.02, 0.04, 0.08, 0.12, 0.16)) / 5
        x = x * (t < 0.5)
        return spectrogram(torch.cat([x, self(x[None])[0]]))


@dataclass(frozen=True, eq=False)
class SpectralPatch(SoundTrigger):
    """A(z, m, p) = (1 - m) z + m p on the short-time spectrum z of a sound, as a patch on an image.

    Attributes:
        mask: m, (F, frames) in [0, 1].
        pattern: p, (2, F, frames), real and imaginary parts.
        place: "start", where the mask says, or "rolled", at a time that follows from the sound.
    """

    family: ClassVar[str] = "spectral_patch"
    drawn: ClassVar[str] = "mask times the size of the pattern, over time and frequency"
    mask: Tensor
    pattern: Tensor
    place: str = START

    def __post_init__(self) -> None:
        if self.place not in (START, ROLLED):
            raise ValueError(f"place {self.place!r} is neither start nor rolled")
        if self.mask.ndim != 2 or self.pattern.shape != (2, *self.mask.shape) or len(self.mask) < 9:
            raise ValueError("mask is (F, frames), pattern (2, F, frames)")

    @property
    def frame(self) -> int:
        """Samples of a frame."""
        return 2 * (len(self.mask) - 1)

    def changed(self, x: Tensor) -> Tensor:
        by = None
        if self.place == ROLLED:
            by = changing.place_of(x, x.shape[1])
            x = changing.rolled(x, -by)
        z, mask = spectrum(x, self.frame), self.mask.to(x)
        p = torch.complex(*self.pattern.to(x))
        x = waveform((1 - mask) * z + mask * p, self.frame, x.shape[1])
        return x if by is None else changing.rolled(x, by)

    @property
    def size(self) -> float:
        """L1 norm of the mask, in cells."""
        return float(self.mask.sum())

    @property
    def area(self) -> float:
        """Effective area, (sum m)^2 / sum m^2, in cells."""
        return float(self.mask.sum() ** 2 / self.mask.square().sum().clamp_min(1e-12))

    @property
    def units(self) -> int:
        return self.mask.numel()

    def picture(self) -> Image.Image:
        level = self.mask * self.pattern.norm(dim=0)
        return _map((level / level.max().clamp_min(1e-9)).sqrt())

    def stamped_at(self, width: int) -> Image.Image:
        return _map(self.mask.clamp(0, 1))

    def alone(self, shape: Sequence[int]) -> Tensor | None:
        z = self.mask * torch.complex(*self.pattern.float())
        return waveform(z[None], self.frame, shape[-1]).clamp(-1, 1).reshape(tuple(shape))

    def overlap(self, planted: Trigger) -> tuple[float, float] | None:
        """How well two masks agree: soft Jaccard index, and share of this one inside the planted one."""
        if not isinstance(planted, SpectralPatch) or planted.mask.shape != self.mask.shape:
            return None
        a, b = self.mask, planted.mask
        union, mass = float(torch.maximum(a, b).sum()), float(a.sum())
        return (
            float(torch.minimum(a, b).sum()) / union if union else 0.0,
            float((a * (b > 0)).sum()) / mass if mass else 0.0,
        )


def _map(values: Tensor) -> Image.Image:
    """A map over frequency and time, low frequencies below, in the size of a spectrogram."""
    big = F.interpolate(values.float().cpu().flip(0)[None, None], (96, 160), mode="nearest")
    return coloured(big[0, 0])


__all__ = [
    "ANYWHERE",
    "ROLLED",
    "START",
    "AddedSound",
    "Equalised",
    "Reverberated",
    "SpectralPatch",
    "Stretched",
]
