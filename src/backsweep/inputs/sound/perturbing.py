"""Changes of sounds that break what is said, and such that leave it as it is (STEP's two branches).

Each takes sounds (N, T) and other clean sounds (K, T); what is random follows from fixed seeds, so that the
answer for a sound hangs on that sound alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from backsweep.inputs.modality import Change
from backsweep.inputs.sound.changing import QUIET, faster, filtered, flat, of_length, pitched, rms

SEGMENTS = 8
BANDS = 33  # of the filters


def breaking(frame: int) -> Mapping[str, Change]:
    """Changes after which a clean sound is hardly what it was."""
    return {
        "reverse": _of(lambda x, _o: x.flip(-1)),
        "shuffle": _of(_shuffled),
        "silence": _of(_half_silent),
        "band-stop": _of(lambda x, _o: filtered(x, _stop(x))),
        **{f"mix-{k}": _of(partial(_mixed, k=k)) for k in range(3)},
        **{f"pitch{s:+d}": _of(partial(_pitch, semitones=s, frame=frame)) for s in (-6, 6)},
    }


def preserving() -> Mapping[str, Change]:
    """Changes that a person hardly hears."""
    return {
        **{f"gain{g:+d}": _of(partial(_gain, decibels=g)) for g in (-2, 2)},
        **{f"noise-{d}": _of(partial(_noisy, decibels=d)) for d in (20, 30)},
        **{f"shift{s:+d}": _of(partial(_moved, percent=s)) for s in (-2, 2)},
        "low-pass": _of(lambda x, _o: filtered(x, _low_pass(x))),
        "resample": _of(lambda x, _o: of_length(faster(faster(x, 1 / 0.9), 0.9), x.shape[-1])),
    }


def _of(change: Callable[[Tensor, Tensor], Tensor]) -> Change:
    def changed(x: Tensor, others: Tensor) -> Tensor:
        return change(flat(x), flat(others)).clamp(-1, 1).reshape(x.shape)

    return changed


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shuffled(x: Tensor, _others: Tensor) -> Tensor:
    """Segments in another order."""
    length = x.shape[-1] // SEGMENTS * SEGMENTS
    parts = x[:, :length].unflatten(1, (SEGMENTS, -1))
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4], device=x.device)
    return torch.cat([parts[:, order].flatten(1), x[:, length:]], 1)


def _half_silent(x: Tensor, _others: Tensor) -> Tensor:
    """Every other of sixteen segments is silence."""
    place = torch.arange(x.shape[-1], device=x.device) * 2 * SEGMENTS // x.shape[-1]
    return x * (place % 2)


def _stop(x: Tensor) -> Tensor:
    """The lower third, where voices are, without a middle part: 40 dB down."""
    f = torch.linspace(0, 1, BANDS, device=x.device)
    return torch.where((f > 0.05) & (f < 0.45), -4.6, 0.0)


def _low_pass(x: Tensor) -> Tensor:
    """Nothing above .8 of half the rate."""
    f = torch.linspace(0, 1, BANDS, device=x.device)
    return torch.where(f > 0.8, -6.9, 0.0)


def _mixed(x: Tensor, others: Tensor, k: int) -> Tensor:
    """With another sound, as loud as it."""
    other = others[k % len(others)][None].to(x)
    return x + other * rms(x) / rms(other).clamp_min(QUIET)


def _pitch(x: Tensor, _others: Tensor, semitones: int, frame: int) -> Tensor:
    return pitched(x, semitones, frame)


def _gain(x: Tensor, _others: Tensor, decibels: int) -> Tensor:
    return x * 10 ** (decibels / 20)


def _noisy(x: Tensor, _others: Tensor, decibels: int) -> Tensor:
    noise = torch.randn(x.shape[-1], generator=_drawn(decibels)).to(x)
    return x + noise * rms(x) * 10 ** (-decibels / 20)


def _moved(x: Tensor, _others: Tensor, percent: int) -> Tensor:
    by = percent * x.shape[-1] // 100
    return (
        torch.cat([torch.zeros_like(x[:, :by]), x[:, : x.shape[-1] - by]], 1)
        if by > 0
        else torch.cat([x[:, -by:], torch.zeros_like(x[:, :-by])], 1)
    )
