"""What is done to waveforms: put in at a place, filtered, echoed, stretched. Everything takes (N, T)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.sound.mel import spectrum, waveform

START, ANYWHERE, ROLLED = PLACES = ("start", "anywhere", "rolled")
QUIET = 1e-4  # root mean square below which a sound is silence


def flat(x: Tensor) -> Tensor:
    """Sounds (N, T) or (N, 1, T) as (N, T)."""
    return x.reshape(len(x), x.shape[-1])


def place_of(x: Tensor, count: int) -> Tensor:
    """One of `count` places (N,) for each sound (N, T), which follows from its samples alone."""
    told = (x.detach().float().abs() * 32768).round().long().sum(1)
    return told * 2654435761 % 2**32 % max(1, count)


def rolled(x: Tensor, by: Tensor) -> Tensor:
    """Sounds (N, T), each later by its own number of samples (N,); the end comes to the beginning."""
    index = torch.arange(x.shape[1], device=x.device)[None] - by[:, None]
    return x.gather(1, index % x.shape[1])


def put(clip: Tensor, x: Tensor, place: str) -> Tensor:
    """A clip (L,), or one for each (N, L), at its place in silence as long as the sounds x (N, T)."""
    length = x.shape[1]
    clip = clip[..., :length]
    silence = F.pad(clip, (0, length - clip.shape[-1])).expand(len(x), -1)
    if place == START:
        return silence
    room = length if place == ROLLED else length - clip.shape[-1] + 1
    return rolled(silence, place_of(x, room))


def rms(x: Tensor) -> Tensor:
    """Root mean square (N, 1) of sounds (N, T)."""
    return x.square().mean(-1, keepdim=True).sqrt()


def filtered(x: Tensor, curve: Tensor) -> Tensor:
    """Sounds through an equaliser: log gains (K,) or (N, K), evenly spaced from 0 Hz to half the rate."""
    z = torch.fft.rfft(x.float())
    gain = curve.float().reshape(-1, 1, curve.shape[-1])
    gain = F.interpolate(gain, z.shape[-1], mode="linear", align_corners=True)[:, 0].exp()
    return torch.fft.irfft(z * gain, n=x.shape[-1])


def echoed(x: Tensor, impulse: Tensor) -> Tensor:
    """Sounds in a room with an impulse response (L,), as loud as before."""
    size = x.shape[-1] + len(impulse)
    wet = torch.fft.irfft(torch.fft.rfft(x.float(), n=size) * torch.fft.rfft(impulse.float(), n=size), n=size)
    wet = wet[..., : x.shape[-1]]
    return wet * rms(x) / rms(wet).clamp_min(QUIET)


def stretched(x: Tensor, factor: float, size: int) -> Tensor:
    """Sounds that last `factor` times as long at the same pitch (phase vocoder), (N, round(factor T)).

    J. L. Flanagan, R. M. Golden, Phase Vocoder, 1966.
    """
    z, hop = spectrum(x, size), size // 2
    steps = torch.arange(0, z.shape[-1], 1 / factor, device=x.device)
    z = F.pad(z, (0, 2))
    index = steps.long()
    here, after = z[..., index], z[..., index + 1]
    share = steps - index
    advance = math.pi * hop * torch.linspace(0, 1, z.shape[-2], device=x.device)[:, None]
    turn = after.angle() - here.angle() - advance
    turn = turn - 2 * math.pi * (turn / (2 * math.pi)).round() + advance
    phase = torch.cat([z[..., :1].angle(), turn[..., :-1]], -1).cumsum(-1)
    size_of = share * after.abs() + (1 - share) * here.abs()
    return waveform(torch.polar(size_of, phase), size, round(factor * x.shape[-1]))


def of_length(x: Tensor, length: int) -> Tensor:
    """Cut, or filled up with silence, at the end."""
    return F.pad(x[..., :length], (0, max(0, length - x.shape[-1])))


def faster(x: Tensor, factor: float) -> Tensor:
    """Played `factor` times as fast, so that pitch rises as well: (N, round(T / factor))."""
    count = max(1, round(x.shape[-1] / factor))
    return F.interpolate(x[:, None], count, mode="linear", align_corners=False)[:, 0]


def pitched(x: Tensor, semitones: float, size: int) -> Tensor:
    """Sounds at another pitch that last as long, (N, T)."""
    factor = 2 ** (semitones / 12)
    return of_length(faster(stretched(x, factor, size), factor), x.shape[-1])
