"""Sound classifiers of Hugging Face: their feature extractor is a part of the network, and has gradients.

Three kinds are known: waveforms (wav2vec2, HuBERT, WavLM, ...), Kaldi's filter banks (AST) and Whisper's
log-mel. What is computed is what the extractors of transformers compute; the filters are its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.sound.decoding import RATES
from backsweep.inputs.sound.modality import Sound

WAVES = (
    "wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew", "sew-d", "wav2vec2-conformer",
    "data2vec-audio",
)  # fmt: skip
AST, WHISPER = "audio-spectrogram-transformer", "whisper"
ENDS = ("ForAudioClassification", "ForSequenceClassification")
RATE = 16000
_KALDI = {"frame": 400, "hop": 160, "fft": 512, "floor": 1.192092955078125e-07, "emphasis": 0.97}
_FILE = "preprocessor_config.json"


def is_sound(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a classifier of sounds.

    Raises:
        BadInput: of one whose features are not known here.
    """
    names = config.get("architectures")
    here = isinstance(names, list) and any(str(n).endswith(ENDS) for n in names)
    if here and config.get("model_type") in (*WAVES, AST, WHISPER):
        return True
    if here and any(str(n).endswith(ENDS[0]) for n in names or ()):
        raise BadInput(
            f"how its model_type {str(config.get('model_type'))[:60]!r} hears is not known here; give one of "
            f"{', '.join((*WAVES, AST, WHISPER))}, or an exported network over waveforms"
        )
    return False


def kind_of(prep: Mapping[str, Any] | None) -> Sound:
    """What it takes: waveforms at the rate that its preprocessor says."""
    rate = (prep or {}).get("sampling_rate", RATE)
    if type(rate) is not int or not RATES[0] <= rate <= RATES[1]:
        raise BadInput(f"the sampling_rate {str(rate)[:30]} in its {_FILE} is none; mend that file")
    return Sound(rate)


def notes_of(kind: Sound, prep: Mapping[str, Any] | None) -> list[str]:
    """What should be known of how sounds reach it."""
    found = [f"of a sound {kind.rate:,} samples, 1 s, are looked at (--shape)"]
    if prep is None:
        found.append(f"it has no {_FILE}: {kind.rate:,} samples a second and the usual features are taken")
    return found


class Extractor(Protocol):
    """From waveforms (N, T) to what the network of transformers takes."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Classifier(nn.Module):
    """Waveforms (N, T) or (N, 1, T) -> logits (N, classes).

    Args:
        net: of transformers.
        hearing: its features.
    """

    def __init__(self, net: nn.Module, hearing: nn.Module) -> None:
        super().__init__()
        self.net, self.hearing = net, hearing

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.net(self.hearing(x.float().flatten(1))).logits
            return found


def hearing(config: Mapping[str, Any], prep: Mapping[str, Any] | None, kind: Sound) -> nn.Module:
    """The feature extractor of a config, as a module without weights.

    Raises:
        BadInput: its preprocessor says what cannot be.
    """
    said = prep or {}
    try:
        if config.get("model_type") == AST:
            return Kaldi(
                kind.rate, int(said.get("num_mel_bins", config.get("num_mel_bins", 128))),
                int(said.get("max_length", config.get("max_length", 1024))),
                float(said.get("mean", -4.2677393)), float(said.get("std", 4.5689974)),
                bool(said.get("do_normalize", True)),
            )  # fmt: skip
        if config.get("model_type") == WHISPER:
            return LogMel10(
                kind.rate, int(config.get("num_mel_bins", 80)), int(said.get("n_fft", 400)),
                int(said.get("hop_length", 160)), 2 * int(config.get("max_source_positions", 1500)),
            )  # fmt: skip
        return Normalised(bool(said.get("do_normalize", True)))
    except (TypeError, ValueError) as e:
        raise BadInput(f"its {_FILE} says what cannot be ({e}); mend that file") from e


class Normalised(nn.Module):
    """Zero mean and unit variance, or as it is."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        if not self.normalised:
            return x
        return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-7).sqrt()


def _filters(bins: int, count: int, high: float, rate: int, **how: Any) -> Tensor:
    """Mel filters (count, bins) of transformers."""
    if not 0 < count <= 1024:
        raise ValueError(f"{count} mel bands")
    audio: Any = importlib.import_module("transformers.audio_utils")
    low = 20 if how.get("mel_scale") == "kaldi" else 0
    return torch.as_tensor(audio.mel_filter_bank(bins, count, low, high, rate, **how)).float().T.contiguous()


class Kaldi(nn.Module):
    """Kaldi's log filter banks, (N, frames, bands): those of the Audio Spectrogram Transformer."""

    def __init__(self, rate: int, bands: int, frames: int, mean: float, std: float, normalised: bool) -> None:
        super().__init__()
        if not 0 < frames <= 2**16 or not std > 0:
            raise ValueError(f"{frames} frames, std {std}")
        self.frames, self.mean, self.std, self.normalised = frames, mean, std, normalised
        filters = _filters(
            257, bands, rate // 2, rate, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(400, periodic=False), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, max(0, int(_KALDI["frame"]) - x.shape[1])))
        parts = x.unfold(1, int(_KALDI["frame"]), int(_KALDI["hop"]))
        parts = parts - parts.mean(2, keepdim=True)
        before = torch.cat([parts[..., :1], parts[..., :-1]], 2)
        z = torch.fft.rfft(
            (parts - _KALDI["emphasis"] * before) * self.get_buffer("window"), n=int(_KALDI["fft"])
        )
        power = torch.matmul(z.real.square() + z.imag.square(), self.get_buffer("filters").T)
        found = power.clamp_min(_KALDI["floor"]).log()[:, : self.frames]
        found = F.pad(found, (0, 0, 0, self.frames - found.shape[1]))
        return (found - self.mean) / (2 * self.std) if self.normalised else found


class LogMel10(nn.Module):
    """Whisper's log-mel, (N, bands, frames) of sounds that are filled up to its length with silence."""

    def __init__(self, rate: int, bands: int, size: int, hop: int, frames: int) -> None:
        super().__init__()
        if not (1 < hop <= size <= 2**14 and 0 < frames <= 2**16):
            raise ValueError(f"n_fft {size}, hop_length {hop}, {frames} frames")
        self.size, self.hop, self.frames = size, hop, frames
        filters = _filters(1 + size // 2, bands, 8000.0, rate, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = self.frames * self.hop
        x = F.pad(x[:, :length], (0, max(0, length - x.shape[1])))
        z = torch.stft(x, self.size, self.hop, window=self.get_buffer("window"), return_complex=True)[
            ..., :-1
        ]
        level = (
            torch.matmul(self.get_buffer("filters"), z.real.square() + z.imag.square())
            .clamp_min(1e-10)
            .log10()
        )
        level = torch.maximum(level, level.amax((1, 2), keepdim=True) - 8)
        return (level + 4) / 4


def settled(settings: Any) -> Any:
    """A config of transformers with attention without shortcuts, and nothing masked in training."""
    settings._attn_implementation = "eager"
    if hasattr(settings, "apply_spec_augment"):
        settings.apply_spec_augment = False
    return settings
