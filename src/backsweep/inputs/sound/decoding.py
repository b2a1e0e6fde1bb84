"""One sound file as 16-bit numbers, mono. What is opened is what its first bytes say: WAV, FLAC or Ogg."""

from __future__ import annotations

import importlib
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line

SUFFIXES = (".wav", ".flac", ".ogg")
MAGIC = (b"RIFF", b"RF64", b"fLaC", b"OggS")
MOST_SECONDS = 600
MOST_FILE = 2**29  # bytes
MOST_CHANNELS = 8
RATES = (1_000, 400_000)  # samples a second
LOUDEST = 4.0  # of a file of floats; what is louder is no waveform in [-1, 1]


class Damaged(BadInput):
    """A sound that cannot be read at all."""


@dataclass(frozen=True)
class Decoded:
    """A sound.

    Attributes:
        samples: (T,), float32 in [-1, 1].
        rate: samples a second.
        mixed, clipped: whether it had several channels, or values beyond [-1, 1].
    """

    samples: NDArray[np.float32]
    rate: int
    mixed: bool = False
    clipped: bool = False


def library() -> Any:
    """soundfile.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as e:
        raise BadInput("to read sound files: pip install backsweep[sound]; or give an .npz file") from e


def checked_rate(rate: float, shown: str) -> int:
    """A sample rate that can be.

    Raises:
        Damaged: it cannot.
    """
    if not (math.isfinite(rate) and rate == int(rate) and RATES[0] <= rate <= RATES[1]):
        raise Damaged(
            f"{shown} has {rate:g} samples a second; rates from {RATES[0]:,} to {RATES[1]:,} are read"
        )
    return int(rate)


def decoded(where: Path | IO[bytes], shown: str) -> Decoded:
    """One sound, its header looked at before anything is unpacked.

    Raises:
        Damaged: it is no such file, is empty, has too many channels or is far too long, holds NaN.
    """
    files = library()
    try:
        if isinstance(where, Path) and where.stat().st_size > MOST_FILE:
            raise Damaged(f"{shown} has more than {MOST_FILE >> 20} MiB; give short clips")
        with where.open("rb") if isinstance(where, Path) else nullcontext(where) as f:
            if (begin := f.read(4)) not in MAGIC:
                kind = "empty" if not begin else "no WAV, FLAC or Ogg file"
                raise Damaged(f"{shown} is {kind}; convert it, or take it out")
            f.seek(0)
            with files.SoundFile(f) as sound:
                return _read(sound, shown)
    except BadInput:
        raise
    except Exception as e:
        reason = one_line(f"{type(e).__name__}: {e}")[:120]
        raise Damaged(f"{shown} cannot be read as a sound ({reason}); mend it or take it out") from e


def _read(sound: Any, shown: str) -> Decoded:
    rate, frames, channels = checked_rate(sound.samplerate, shown), int(sound.frames), int(sound.channels)
    if channels > MOST_CHANNELS:
        raise Damaged(f"{shown} has {channels} channels; give mono or stereo")
    if frames > MOST_SECONDS * rate:
        raise Damaged(
            f"{shown} says that it lasts {frames / rate / 60:,.0f} minutes; give clips of at most "
            f"{MOST_SECONDS // 60}"
        )
    x = sound.read(dtype="float32", always_2d=True)
    if not len(x):
        raise Damaged(f"{shown} holds no sound (0 samples); take it out")
    if not bool(np.isfinite(x).all()):
        raise Damaged(f"{shown} holds NaN or infinite values; mend it or take it out")
    top = float(np.abs(x).max())
    if top > LOUDEST:
        raise Damaged(f"{shown} runs to {top:.3g}; waveforms are in [-1, 1], divide by the largest value")
    mono = np.ascontiguousarray(x.mean(1), dtype=np.float32)
    return Decoded(np.clip(mono, -1, 1), rate, channels > 1, top > 1)
