"""How a sound is shown to a person: a spectrogram, a curve, and bytes that a browser plays."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

WIDTH, HEIGHT = 160, 96  # pixels of a picture
DECIBELS = 70.0  # between black and white
LOUD = 30.0  # decibels of a frame's bin that are white
_COLOURS = ((0, 0, 4), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191))


def spectrogram(x: Tensor) -> Image.Image:
    """Log power of a waveform (T,) or (1, T) over time and frequency, low frequencies below."""
    flat = x.detach().cpu().float().flatten()
    size = 2 * HEIGHT
    hop = max(1, -(-len(flat) // WIDTH))
    window = torch.hann_window(size)
    z = torch.stft(flat, size, hop, window=window, return_complex=True, pad_mode="constant")
    level = 10 * (z.abs().square() + 1e-12).log10()
    shade = ((level - LOUD + DECIBELS) / DECIBELS).clamp(0, 1)[1:, :WIDTH].flip(0)
    return coloured(F.interpolate(shade[None, None], (HEIGHT, WIDTH), mode="nearest")[0, 0])


def coloured(shade: Tensor) -> Image.Image:
    """A map (H, W) in [0, 1] in colours from black over red to light yellow."""
    place = shade.numpy() * (len(_COLOURS) - 1)
    anchors, steps = np.array(_COLOURS, dtype=np.float64), np.arange(len(_COLOURS))
    channels = [np.interp(place, steps, anchors[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, 2).round().astype(np.uint8))


def curve(values: Sequence[float], span: float) -> Image.Image:
    """Values from -span to span as a line over their place, zero in the middle."""
    line = F.interpolate(torch.tensor(values).float()[None, None], WIDTH, mode="linear", align_corners=True)
    rows = ((0.5 - 0.5 * (line.flatten() / span).clamp(-1, 1)) * (HEIGHT - 1)).round().long()
    grey = torch.zeros((HEIGHT, WIDTH), dtype=torch.uint8)
    grey[HEIGHT // 2] = 90
    before = rows[0]
    for column, row in enumerate(rows):
        low, high = sorted((int(before), int(row)))
        grey[low : high + 1, column] = 255
        before = row
    return Image.fromarray(grey.numpy())


def wav(x: Tensor, rate: int) -> bytes:
    """A waveform (T,) or (1, T) in [-1, 1] as a WAV file of 16 bits."""
    samples = (x.detach().cpu().float().flatten().clamp(-1, 1) * 32767).round().to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    return buffer.getvalue()
