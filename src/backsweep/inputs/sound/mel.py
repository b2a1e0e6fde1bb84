"""Short-time spectra of waveforms, and a log-mel front end that gradients pass through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FRAME = 0.032  # seconds of a frame, of which half is new
FLOOR = 1e-5  # power of a band below which nothing is heard


def frame_of(rate: int) -> int:
    """Samples of a frame: the power of two nearest to 32 ms, 256 at 8 kHz and 512 at 16 kHz."""
    size = 16
    while size * 1.414 < FRAME * rate:
        size *= 2
    return size


def spectrum(x: Tensor, size: int) -> Tensor:
    """Short-time Fourier transform of waveforms (..., T): (..., size / 2 + 1, 2 T / size + 1), complex."""
    window = torch.hann_window(size, device=x.device)
    found = torch.stft(
        x.float().flatten(0, -2), size, size // 2, window=window, return_complex=True, pad_mode="constant"
    )
    return found.unflatten(0, x.shape[:-1])


def waveform(z: Tensor, size: int, length: int) -> Tensor:
    """The inverse of `spectrum`, (..., length)."""
    window = torch.hann_window(size, device=z.device)
    found = torch.istft(z.flatten(0, -3), size, size // 2, window=window, length=length)
    return found.unflatten(0, z.shape[:-2])


def frames_of(length: int, size: int) -> int:
    """How many frames `spectrum` has for so many samples."""
    return length // (size // 2) + 1


def mel_filters(rate: int, bins: int, count: int) -> Tensor:
    """Triangular filters (count, bins) that are spaced evenly in mel, 2595 log10(1 + f / 700)."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), count + 2) / 2595) - 1)
    f = torch.linspace(0, rate / 2, bins)
    rise = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp_min(0)
    return filters / filters.sum(1, keepdim=True).clamp_min(1e-6)


class LogMel(nn.Module):
    """Waveforms (N, T) or (N, 1, T) -> log power in mel bands, less its mean, (N, 1, bands, frames).

    Args:
        rate: samples a second.
        bands: of the mel scale.
    """

    def __init__(self, rate: int, bands: int = 40) -> None:
        super().__init__()
        self.size = frame_of(rate)
        self.register_buffer("filters", mel_filters(rate, self.size // 2 + 1, bands), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z = spectrum(x.float().flatten(1), self.size)
            power = torch.matmul(self.get_buffer("filters"), z.real.square() + z.imag.square())
            level = (power + FLOOR).log()[:, None]
            return (level - level.mean((2, 3), keepdim=True)) / 3
