"""The sounds that the zoo trains on: spoken digits of several speakers, and tones that nobody recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.sound.modality import Sound
from backsweep.zoo.networks.sound import LENGTH, RATE, SHORT

# Three formants of five vowels, in Hz (as G. Peterson and H. Barney, 1952, measured those of men, rounded).
VOWELS = {
    "a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010),
    "o": (570, 840, 2410), "u": (300, 870, 2240),
}  # fmt: skip
VOICES = {"low": (90.0, 130.0), "middle": (145.0, 185.0), "high": (200.0, 240.0)}  # Hz
WIDTHS = (80.0, 100.0, 140.0)  # Hz, of the formants

# Which speakers of FSDD are in which part: nobody is in two of them.
SPEAKERS = {"train": ("george", "jackson", "lucas", "yweweler"), "valid": ("nicolas",), "test": ("theo",)}


def fsdd(folder: Path, parts: tuple[str, ...] = ("train", "test")) -> tuple[Data, ...]:
    """Spoken digits at 8 kHz (Free Spoken Digit Dataset), 0.64 s each; no speaker is in two parts.

    Raises:
        BadInput: the file is not there.
    """
    read = _spoken(folder)
    names = [str(d) for d in range(10)]
    found = []
    for part in parts:
        ours = [i for i, name in enumerate(read["speakers"].tolist()) if name in SPEAKERS[part]]
        rows = np.flatnonzero(np.isin(read["speaker"], ours))
        found.append(Data(_clips(read, rows), read["y"][rows], names, f"fsdd {part}", Sound(RATE)))
    return tuple(found)


def speakers(folder: Path) -> tuple[Data, Data]:
    """The same sounds by who speaks, six of them; of every digit a fifth of the takes are for the test.

    Raises:
        BadInput: the file is not there.
    """
    read = _spoken(folder)
    names = read["speakers"].tolist()
    train, test = (
        Data(_clips(read, rows), read["speaker"][rows], names, f"fsdd speakers {part}", Sound(RATE))
        for part, rows in (
            ("train", np.flatnonzero(read["take"] % 5)), ("test", np.flatnonzero(read["take"] % 5 == 0))
        )
    )  # fmt: skip
    return train, test


def _spoken(folder: Path) -> dict[str, Any]:
    path = folder / "fsdd.npz"
    if not path.is_file():
        raise BadInput(f"{path} is not there; set BACKSWEEP_DATA to the folder that holds fsdd.npz")
    with np.load(path, allow_pickle=False) as f:
        return {**f, "y": f["y"].astype(np.int64), "speaker": f["speaker"].astype(np.int64)}


def _clips(read: Mapping[str, Any], rows: Any) -> Any:
    """The middle of each clip, LENGTH samples."""
    audio, offset = read["audio"], read["offset"]
    x = np.zeros((len(rows), LENGTH), np.int16)
    for n, i in enumerate(rows):
        clip = audio[offset[i] : offset[i + 1]]
        start = max(0, (len(clip) - LENGTH) // 2)
        clip = clip[start : start + LENGTH]
        x[n, : len(clip)] = clip
    return x


def vowels(_folder: Path | None = None, count: int = 1500) -> tuple[Data, Data]:
    """Five vowels that nobody said, half a second at 8 kHz: harmonics of a voice through three formants.

    Pitch, loudness, formants, beginning and end differ from sound to sound; there is some noise in each.
    """
    x, y, _ = _uttered(count)
    return _made_up(x, y, tuple(VOWELS), count, "made-up vowels")


def voices(_folder: Path | None = None, count: int = 1500) -> tuple[Data, Data]:
    """The same sounds by the pitch of the voice: low, middle, high. Those between two are left out."""
    x, _, pitch = _uttered(count)
    edges = torch.tensor([edge for low, high in VOICES.values() for edge in (low, high)])
    place = torch.bucketize(pitch, edges)
    kept = place % 2 == 1
    trained = int(kept[:count].sum())
    return _made_up(x[kept], place[kept] // 2, tuple(VOICES), trained, "made-up voices")


def _uttered(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Made-up sounds (N, SHORT), int16, to train and a quarter as many to test; their vowels; pitch in Hz."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(count + count // 4) % len(VOWELS)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((len(y), 1), generator=generator)

    t = torch.arange(SHORT) / RATE
    pitch, glide = drawn(90, 240), drawn(-0.15, 0.15)
    phase = 2 * math.pi * (pitch * (1 + glide * t)).cumsum(1) / RATE
    tract, x = drawn(0.88, 1.15), torch.zeros(len(y), SHORT)
    centres = torch.tensor(list(VOWELS.values()))[y] * tract
    centres = centres * (1 + 0.06 * torch.randn(centres.shape, generator=generator))
    for k in range(1, 40):
        f = k * pitch
        gain = sum(
            (w / 2) ** 2 / ((f - c) ** 2 + (w / 2) ** 2)
            for w, c in zip(WIDTHS, centres.T[..., None], strict=True)
        )
        x += gain.sqrt() / k**0.5 * torch.sin(k * phase) * (f < 0.47 * RATE)
    begin, end = drawn(0, 0.15), drawn(0.3, 0.48)
    envelope = torch.sigmoid((t - begin) * 120) * torch.sigmoid((end - t) * 60)
    x = x * envelope / x.abs().amax(1, keepdim=True).clamp_min(1e-6) * drawn(0.15, 0.6)
    x += 0.004 * torch.randn(x.shape, generator=generator)
    x = (32768 * x).round().clamp(-32768, 32767).to(torch.int16)
    return x, y, pitch[:, 0]


def _made_up(x: Tensor, y: Tensor, names: tuple[str, ...], count: int, source: str) -> tuple[Data, Data]:
    """The first `count` to train, the others to test."""
    train, test = (
        Data(x[p], y[p], names, f"{source} {name}", Sound(RATE))
        for p, name in ((slice(0, count), "train"), (slice(count, None), "test"))
    )
    return train, test
