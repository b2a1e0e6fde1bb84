"""Small networks over waveforms (N, T) or (N, 1, T), for the zoo, the demo and the tests.

A factory takes the number of classes, the sample rate and the length of a sound in samples. Those over
log-mel have their front end inside, so that gradients reach the waveform.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backsweep.inputs.sound.mel import LogMel, frame_of, frames_of

RATE, LENGTH = 8000, 5120
SHORT = 4000  # samples of a made-up sound
BANDS = 40


class SoundCNN(nn.Module):
    """Convolutions over log-mel; mean and maximum over time, so that it does not matter when."""

    def __init__(self, classes: int, rate: int, length: int, width: int = 16) -> None:
        super().__init__()
        self.input_shape, self.sample_rate = (length,), rate
        self.mel = LogMel(rate, BANDS)
        layers: list[nn.Module] = []
        before = 1
        for i in range(3):
            after = width * 2**i
            stride = 2 if i == 0 else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2) if i else nn.Identity(), nn.Dropout(0.1)]
            before = after
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(before * (BANDS // 8), 64)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        mel = self.mel(x)
        z = self.body(_masked(mel) if self.training else mel)
        z = 0.5 * (z.mean(3) + z.amax(3))
        return self.head(self.dropout(torch.relu(self.hidden(z.flatten(1)))))


def _masked(z: Tensor) -> Tensor:
    """Log-mel (N, 1, bands, frames) without some bands and some frames of each sound (D. S. Park et al.,
    SpecAugment, 2019)."""
    for dim, share in ((2, 0.2), (3, 0.15)):
        count = z.shape[dim]
        width = torch.rand((len(z), 1), device=z.device) * share * count
        start = torch.rand((len(z), 1), device=z.device) * (count - width)
        place = torch.arange(count, device=z.device)[None]
        gone = (place >= start) & (place < start + width)
        z = z.masked_fill(gone[:, None, :, None] if dim == 2 else gone[:, None, None, :], 0.0)
    return z


class M5(nn.Module):
    """Five convolutions on the waveform itself (W. Dai et al., Very Deep CNNs for Raw Waveforms, 2017)."""

    def __init__(self, classes: int, rate: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.input_shape, self.sample_rate = (length,), rate
        layers: list[nn.Module] = []
        before = 1
        for after, size, stride in (
            (width, rate // 100, max(1, rate // 2000)), (width, 3, 1), (2 * width, 3, 1), (4 * width, 3, 1)
        ):  # fmt: skip
            layers += [
                nn.Conv1d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm1d(after),
                nn.ReLU(), nn.MaxPool1d(4),
            ]  # fmt: skip
            before = after
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x.reshape(len(x), 1, -1)).mean(2)))


class SmallAST(nn.Module):
    """A transformer over patches of log-mel (Y. Gong et al., Audio Spectrogram Transformer, 2021)."""

    def __init__(self, classes: int, rate: int, length: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.input_shape, self.sample_rate = (length,), rate
        self.mel = LogMel(rate, BANDS)
        self.patches = nn.Conv2d(1, width, (8, 4), (8, 4))
        count = (BANDS // 8) * (frames_of(length, frame_of(rate)) // 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(self.mel(x)).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z).mean(1))


class _Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, z: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(z)).unflatten(2, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        z = z + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return z + self.dropout(self.down(nn.functional.gelu(self.up(self.norm2(z)))))


class SoundGRU(nn.Module):
    """A recurrent network, both ways over the frames of log-mel, and the mean of what it says of each."""

    def __init__(self, classes: int, rate: int, length: int, width: int = 48) -> None:
        super().__init__()
        self.input_shape, self.sample_rate = (length,), rate
        self.mel = LogMel(rate, BANDS)
        self.frame = nn.Linear(BANDS, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.mel(x)[:, 0].transpose(1, 2)
        z, _ = self.gru(torch.relu(self.frame(frames)))
        return self.head(self.dropout(z.mean(1)))


def sound_cnn(classes: int = 10, rate: int = RATE, length: int = LENGTH) -> nn.Module:
    """Three convolutions over 40 log-mel bands."""
    return SoundCNN(classes, rate, length)


def vowel_cnn(classes: int = 5, rate: int = RATE, length: int = SHORT) -> nn.Module:
    """The same for the five vowels that nobody said, of half a second."""
    return SoundCNN(classes, rate, length)


def m5(classes: int = 10, rate: int = RATE, length: int = LENGTH) -> nn.Module:
    """M5 on waveforms, of 32 to 128 channels."""
    return M5(classes, rate, length)


def small_ast(classes: int = 10, rate: int = RATE, length: int = LENGTH) -> nn.Module:
    """Two layers of an audio spectrogram transformer, 64 features."""
    return SmallAST(classes, rate, length)


def sound_gru(classes: int = 10, rate: int = RATE, length: int = LENGTH) -> nn.Module:
    """A recurrent network over log-mel, 48 features each way."""
    return SoundGRU(classes, rate, length)
