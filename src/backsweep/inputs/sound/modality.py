"""Sound: waveforms (T,) or (1, T) in [-1, 1] at one sample rate."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image as Pictures
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.family import Family
from backsweep.inputs.modality import Change, Found, Modality, Wanted
from backsweep.inputs.sound import perturbing, readers
from backsweep.inputs.sound.changing import faster, flat, of_length
from backsweep.inputs.sound.decoding import RATES, SUFFIXES, decoded
from backsweep.inputs.sound.families import CellFamily
from backsweep.inputs.sound.mel import frame_of, frames_of
from backsweep.inputs.sound.pictures import spectrogram, wav
from backsweep.inputs.sound.spaces import Cells, Equaliser, Noise
from backsweep.inputs.space import Space

LEAST, MOST = 64, 2**24  # samples of an input
FULL = 32768  # 16-bit numbers stand for [-1, 1)
SLACK = 1e-4  # beyond 1, that rounding may leave


@dataclass(frozen=True)
class Sound(Modality):
    """Waveforms of one channel.

    Attributes:
        rate: samples a second.
    """

    name: ClassVar[str] = "sound"
    noun: ClassVar[str] = "sound"
    unit: ClassVar[str] = "cell"
    axes: ClassVar[str] = "samples of a waveform"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    faint: ClassVar[str] = "noise"
    few: ClassVar[str] = "cells"

    rate: int = 16000

    def __post_init__(self) -> None:
        if not RATES[0] <= self.rate <= RATES[1]:
            raise BadInput(
                f"a rate of {self.rate} samples a second is none; say the true one, such as rate=16000"
            )

    @property
    def frame(self) -> int:
        """Samples of a frame of the spectrum."""
        return frame_of(self.rate)

    # ------------------------------------------------------------------ samples

    def kept(self, x: Tensor) -> Tensor:
        """Numbers of 16 bits stay as they are."""
        return _checked(x) if x.dtype == torch.int16 else self.samples(x)

    def values(self, x: Tensor) -> Tensor:
        return x.float().div_(FULL) if x.dtype == torch.int16 else x

    def samples(self, x: Tensor) -> Tensor:
        x = self.values(_checked(x))
        if not x.is_floating_point():
            raise BadInput(f"x is {x.dtype}; waveforms are int16, or floats in [-1, 1]")
        x = x.float()
        if not bool(torch.isfinite(x).all()):
            raise BadInput("x holds NaN or infinite values")
        top = float(x.abs().max()) if x.numel() else 0.0
        if top > 1 + SLACK:
            raise BadInput(
                f"the waveforms run to {top:.3g}, outside [-1, 1]; divide by the largest value there can be "
                "(32768 for 16 bits)"
            )
        return x if top <= 1 else x.clamp(-1, 1)

    def batch(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A single waveform, and those with or without the one channel, are understood."""
        if x.ndim == 1 or (x.ndim == 2 and tuple(x.shape) == shape):
            return x.reshape(1, *shape) if x.numel() == shape[-1] else x
        if x.shape[-1] == shape[-1] and x.numel() == len(x) * shape[-1]:
            return x.reshape(len(x), *shape)
        return x

    def recognised(self, path: Path) -> Modality | None:
        rate = readers.rate_of(path)
        return None if rate is None else replace(self, rate=rate)

    def read(self, path: Path, wanted: Wanted) -> Found:
        return readers.read(path, wanted, self.rate)

    def decode(self, body: bytes, shape: tuple[int, ...], resize: bool) -> Tensor:
        """A WAV, FLAC or Ogg file, brought to the rate and the length of the model."""
        one = decoded(io.BytesIO(body), "the sound")
        x = readers.fitted(readers.resampled(one.samples, one.rate, self.rate), shape[-1])
        return self.values(x).reshape(1, *shape)

    def mismatch(self, have: tuple[int, ...], want: tuple[int, ...]) -> str:
        return (
            f"the waveforms have shape {have}, the model takes {want}: {want[-1] / self.rate:.3g} s at "
            f"{self.rate:,} samples a second; cut or fill them up, or say shape= (--shape {want[-1]})"
        )

    def random(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Noise from faint to loud."""
        loud = torch.rand((count, *[1] * len(shape)), generator=generator)
        return loud * (2 * torch.rand((count, *shape), generator=generator) - 1)

    def clip(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    def fits(self, shape: Sequence[int]) -> bool:
        return tuple(shape[:-1]) in ((), (1,)) and LEAST <= shape[-1] <= MOST

    def size(self, shape: Sequence[int]) -> int:
        """Cells of the spectrum."""
        return (self.frame // 2 + 1) * frames_of(shape[-1], self.frame)

    # ------------------------------------------------------------------ what is done to them

    def shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Later or earlier, faster or slower, louder or fainter, all a little and one for a batch.

        By a twentieth of the length, 12 % in speed (and pitch, as another speaker has it) and 3 dB at most.
        """
        time, speed, loud = (2 * torch.rand(3, generator=generator) - 1).tolist()
        length = x.shape[-1]
        moved = of_length(faster(flat(x), 1.12**speed), length).reshape(x.shape)
        by = round(time * length / 20)
        moved = F.pad(moved, (by, 0))[..., :length] if by > 0 else F.pad(moved[..., -by:], (0, -by))
        return (10 ** (0.15 * loud) * moved).clamp(-1, 1)

    def shifts(self, shape: Sequence[int]) -> bool:
        return True

    def mix(self, x: Tensor, overlays: Tensor, weight: float) -> Tensor:
        """Waveforms are added (STRIP-ViTA)."""
        return super().mix(x, overlays, weight).clamp(-1, 1)

    def breaking(self, shape: Sequence[int]) -> Mapping[str, Change]:
        return perturbing.breaking(self.frame) if self.fits(shape) else {}

    def preserving(self, shape: Sequence[int]) -> Mapping[str, Change]:
        return perturbing.preserving() if self.fits(shape) else {}

    # ------------------------------------------------------------------ triggers

    def spaces(self) -> Mapping[str, Space]:
        return {"noise": Noise(), "cells": Cells(frame=self.frame), "equaliser": Equaliser()}

    def patch(self) -> Family:
        return CellFamily(self.frame)

    # ------------------------------------------------------------------ files and people

    def described(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def told(self, model: Mapping[str, object]) -> Sound:
        rate = model.get("rate")
        return replace(self, rate=rate) if type(rate) is int else self

    def pack(self, x: Tensor) -> Tensor:
        """In 16 bits."""
        x = (FULL * x.detach().cpu()).round().clamp(-FULL, FULL - 1)
        return x.to(torch.int16).contiguous()

    def unpack(self, x: Tensor) -> Tensor:
        return x.float() / FULL

    def picture(self, x: Tensor) -> Pictures.Image:
        return spectrogram(x)

    def playable(self, x: Tensor) -> tuple[str, bytes] | None:
        return "audio/wav", wav(x, self.rate)


def _checked(x: Tensor) -> Tensor:
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[1] != 1):
        raise BadInput(f"x has shape {tuple(x.shape)}; sounds are (samples, length) or (samples, 1, length)")
    return x
