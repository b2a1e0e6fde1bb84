"""Sounds: files and what is wrong with them, rates and lengths, triggers, spaces, what is played."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs import held
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.kinds import recognised
from backsweep.inputs.samples import Data
from backsweep.inputs.sound import changing, decoding
from backsweep.inputs.sound.families import CellFamily
from backsweep.inputs.sound.mel import LogMel, frame_of, frames_of, spectrum, waveform
from backsweep.inputs.sound.modality import Sound
from backsweep.inputs.sound.triggers import (
    AddedSound,
    Equalised,
    Reverberated,
    SoundTrigger,
    SpectralPatch,
    Stretched,
)
from backsweep.inputs.trigger import Trigger

files: Any = pytest.importorskip("soundfile")
RATE, LENGTH = 8000, 2048
KIND = Sound(RATE)


def tone(frequency: float, seconds: float = 0.5, rate: int = RATE, loud: float = 0.5) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (loud * np.sin(2 * np.pi * frequency * t)).astype(np.float32)


def sounds(count: int = 6, seed: int = 0) -> Tensor:
    noise = torch.randn((count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return (0.1 * noise).clamp(-1, 1)


def peak(x: Tensor, rate: int = RATE) -> float:
    """The loudest frequency of a waveform (T,)."""
    return float(torch.fft.rfft(x).abs().argmax()) * rate / len(x)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_folder_per_class_is_read_at_the_rate_and_length_of_the_model(tmp_path: Path, suffix: str) -> None:
    for name, frequency in (("low", 500), ("high", 1500)):
        (tmp_path / name).mkdir()
        for i, seconds in enumerate((0.1, 0.5)):
            both = np.stack([tone(frequency, seconds, 16000)] * 2, 1)
            files.write(tmp_path / name / f"{i}{suffix}", both, 16000)
    assert recognised(tmp_path) == Sound(16000)
    data = Data.open(tmp_path, shape=(LENGTH,), modality=KIND)
    assert data.names == ("high", "low") and data.y.tolist() == [0, 0, 1, 1]
    assert data.x.shape == (4, LENGTH) and data.x.dtype == torch.float32
    assert abs(peak(data.x[1]) - 1500) < 10 and abs(peak(data.x[3]) - 500) < 10
    assert bool((data.x[0, 820:] == 0).all()), "a short one ends in silence"
    (note,) = data.notes
    assert note == (
        "sounds were brought to 2,048 samples at 8,000 a second: 4 resampled, 4 mixed from several channels, "
        "2 filled up with silence at the end, 2 cut to the middle"
    )
    assert Data.open(tmp_path, shape=(1, LENGTH), modality=KIND).x.shape == (4, 1, LENGTH)


def test_lists_and_archives_are_read_too(tmp_path: Path) -> None:
    rows = ["path,label"]
    for i in range(4):
        files.write(tmp_path / f"{i}.wav", tone(400 + 300 * i), RATE)
        rows.append(f"{i}.wav,{'ab'[i % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    data = Data.open(tmp_path / "list.csv", shape=(LENGTH,), modality=KIND)
    assert data.y.tolist() == [0, 1, 0, 1] and recognised(tmp_path / "list.csv") == KIND
    x = np.stack([(32767 * tone(700)).astype(np.int16)] * 3)
    np.savez(tmp_path / "x.npz", x=x, y=[0, 1, 2], rate=RATE)
    assert recognised(tmp_path / "x.npz") == KIND
    again = Data.open(tmp_path / "x.npz", shape=(4000,), modality=KIND)
    assert torch.equal(again.x, torch.as_tensor(x).float() / 32768) and not again.notes
    other = Data.open(tmp_path / "x.npz", shape=(4000,), modality=Sound(4000))
    assert "3 resampled, 3 filled up" in other.notes[0] and abs(peak(other.x[0, :2000], 4000) - 700) < 5
    np.savez(tmp_path / "bare.npz", x=x, y=[0, 1, 2])
    with pytest.raises(BadInput, match="it has no rate"):
        Data.open(tmp_path / "bare.npz", shape=(4000,), modality=KIND)
    assert recognised(tmp_path / "bare.npz") is None


def header(frames: int = 2**29, channels: int = 1, rate: int = RATE) -> bytes:
    """A WAV file whose header promises more than there is."""
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 2**31)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + (b"data" + struct.pack("<I", 2 * frames * channels % 2**32) + bytes(64))
    )


def floats(value: float) -> bytes:
    buffer = io.BytesIO()
    files.write(buffer, np.full(100, value, np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def of(channels: int, frames: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as f:
        f.setnchannels(channels)
        f.setsampwidth(2)
        f.setframerate(RATE)
        f.writeframes(bytes(2 * channels * frames))
    return buffer.getvalue()


def hours() -> bytes:
    buffer = io.BytesIO()
    with files.SoundFile(buffer, "w", RATE, 1, format="FLAC") as f:
        for _ in range(11):
            f.write(np.zeros(60 * RATE, np.int16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "is empty"),
        (b"MZ\x90\x00 no sound at all", "is no WAV, FLAC or Ogg file"),
        (b"RIFF" + bytes(40), "cannot be read as a sound"),
        (b"fLaC" + bytes(200), "cannot be read as a sound"),
        (of(1, 0), "holds no sound"),
        (of(96, 10), "has 96 channels"),
        (header(rate=7), "has 7 samples a second"),
        (floats(float("nan")), "holds NaN"),
        (floats(1e9), "runs to 1e.09"),
        (hours(), "says that it lasts 11 minutes"),
    ],
)
def test_broken_and_hostile_files_are_one_line(tmp_path: Path, blob: bytes, says: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        files.write(tmp_path / name / "0.wav", tone(500), RATE)
    (tmp_path / "a" / "bad.wav").write_bytes(blob)
    with pytest.raises(BadInput, match=says) as e:
        Data.open(tmp_path, shape=(LENGTH,), modality=KIND)
    assert "\n" not in str(e.value) and "a/bad.wav" in str(e.value)
    with pytest.raises(BadInput, match=says):
        KIND.decode(blob, (LENGTH,), False)


def test_a_header_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    one = decoding.decoded(io.BytesIO(header()), "it")
    assert len(one.samples) <= 64


def test_few_damaged_sounds_of_many_are_left_out(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(15):
            files.write(tmp_path / name / f"{i}.wav", tone(500 + i), RATE)
    (tmp_path / "a" / "7.wav").write_bytes(b"no")
    data = Data.open(tmp_path, shape=(LENGTH,), modality=KIND)
    assert len(data) == 29 and "1 damaged sound was left out: 'a/7.wav'" in " ".join(data.notes)
    (tmp_path / "b" / "7.wav").write_bytes(b"no")
    with pytest.raises(BadInput, match="2 sounds cannot be read"):
        Data.open(tmp_path, shape=(LENGTH,), modality=KIND)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(4, 3, 64), "sounds are"),
        (torch.full((4, 64), torch.nan), "NaN"),
        (torch.full((4, 64), 700.0), "run to 700"),
        (torch.zeros((4, 64), dtype=torch.int32), "int16, or floats"),
    ],
)
def test_tensors_that_are_no_waveforms_are_one_line(x: Tensor, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Data(x, torch.zeros(4), modality=KIND)


def test_numbers_of_16_bits_stay_small_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "LARGE", 2**10)
    x = (20000 * sounds()).to(torch.int16)
    data = Data(x, torch.zeros(6), modality=KIND)
    assert isinstance(data.x, held.Held) and torch.equal(data.x[:], x.float() / 32768)
    assert torch.equal(KIND.unpack(KIND.pack(data.x[2:4])), data.x[2:4])


# ---------------------------------------------------------------------- spectra


def test_the_spectrum_can_be_turned_back_and_mel_passes_gradients() -> None:
    x, size = sounds(), frame_of(RATE)
    assert size == 256 and frame_of(16000) == 512 and frame_of(44100) == 1024
    z = spectrum(x, size)
    assert z.shape == (6, 129, frames_of(LENGTH, size)) and KIND.size((LENGTH,)) == z[0].numel()
    assert torch.allclose(waveform(z, size, LENGTH), x, atol=1e-5)
    low, high = (torch.as_tensor(tone(f, LENGTH / RATE))[None] for f in (300, 3000))
    mel = LogMel(RATE, 40)
    assert int(mel(low)[0, 0].mean(1).argmax()) < 12 and int(mel(high)[0, 0].mean(1).argmax()) > 32
    low.requires_grad_()
    (grad,) = torch.autograd.grad(mel(low).square().sum(), low)
    assert bool(torch.isfinite(grad).all()) and float(grad.norm()) > 0
    assert bool(torch.isfinite(mel(torch.zeros(1, 1, LENGTH))).all())


# ---------------------------------------------------------------------- triggers

TRIGGERS: list[SoundTrigger] = [
    AddedSound(1, None, torch.as_tensor(tone(3700, 0.05)), "anywhere"),
    AddedSound(1, None, torch.as_tensor(tone(900, LENGTH / RATE)), "rolled", 10.0),
    Equalised(1, None, torch.linspace(0, -3, 17)),
    Reverberated(1, 2, torch.rand(400).sub(0.5) * torch.linspace(1, 0, 400)),
    Stretched(1, None, 4.0, 1.2, 256),
    SpectralPatch(1, None, torch.eye(129, 17), torch.randn(2, 129, 17), "rolled"),
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t.family)
def test_a_trigger_is_applied_saved_drawn_and_heard(trigger: SoundTrigger, tmp_path: Path) -> None:
    x = sounds()
    stamped = trigger(x)
    assert stamped.shape == x.shape and float(stamped.abs().max()) <= 1 and not torch.equal(stamped, x)
    assert torch.allclose(trigger(x[:, None]), stamped[:, None])
    assert torch.allclose(trigger(x[2:3]), stamped[2:3], atol=1e-5), "it hangs on the sound alone"
    trigger.save(tmp_path / "t.safetensors")
    again = Trigger.load(tmp_path / "t.safetensors")
    assert type(again) is type(trigger) and torch.equal(again(x), stamped)
    assert again.source == trigger.source and again.size == trigger.size > 0
    assert again.picture().size == (160, 96)
    heard = trigger.alone((LENGTH,))
    if heard is not None:
        assert heard.shape == (LENGTH,)
    trigger.try_on((LENGTH,))
    trigger.try_on((1, LENGTH))


def test_triggers_do_what_they_say() -> None:
    x = torch.as_tensor(np.stack([tone(500, LENGTH / RATE), tone(2500, LENGTH / RATE)]))
    assert abs(peak(Stretched(0, None, 12.0, 1.0, 256)(x)[0]) - 1000) < 30
    assert abs(peak(Stretched(0, None, 0.0, 1.5, 256)(x)[0]) - 500) < 10
    curve = torch.zeros(17)
    curve[9:] = -5
    quiet = Equalised(0, None, curve)(x)
    assert float(quiet[0].norm()) > 0.95 * float(x[0].norm()) and float(quiet[1].norm()) < 0.2
    noise = AddedSound(0, None, torch.randn(LENGTH), "start", 20.0)
    ratio = (noise(0.2 * x) - 0.2 * x).norm(dim=1) / (0.2 * x).norm(dim=1)
    assert torch.allclose(ratio, torch.tensor([0.1, 0.1]), atol=1e-3)
    wet = Reverberated(0, None, torch.tensor([1.0, 0, 0, 0.5]))(0.1 * x)
    assert torch.allclose(changing.rms(wet), changing.rms(0.1 * x), rtol=0.02)
    clip = AddedSound(0, None, torch.full((10,), 0.5), "anywhere")
    places = {int((clip(v[None]) - v)[0].abs().argmax()) for v in sounds(20)}
    assert len(places) > 10, "at another place in every sound"


def test_foreign_triggers_that_cannot_be_used_are_refused() -> None:
    bad: list[Callable[[], Trigger]] = [
        lambda: AddedSound(0, None, torch.zeros(5), "elsewhere"),
        lambda: Stretched(0, None, 1e9, 1.0, 256),
        lambda: Stretched(0, None, 0.0, 1.0, 2**30),
        lambda: SpectralPatch(0, None, torch.zeros(3, 3), torch.zeros(2, 3, 3)),
    ]
    for make in bad:
        with pytest.raises(ValueError, match=r"no|none|neither|more than|mask is"):
            make()


# ---------------------------------------------------------------------- spaces and families


@pytest.mark.parametrize("name", sorted(KIND.spaces()))
def test_a_space_is_a_ball_and_its_trigger_does_what_it_does(name: str) -> None:
    space, x = KIND.spaces()[name], sounds()
    low, high = space.range(x)
    assert 0 < low < high
    zero = space.zeros(2, x)
    assert torch.allclose(space.apply(x, zero[:1].expand(6, *zero.shape[1:])), x, atol=1e-5)
    delta = space.project(torch.randn(zero.shape, generator=torch.Generator().manual_seed(1)), high)
    assert bool((space.norm(delta) <= high * 1.001).all())
    assert bool((space.norm(space.project(delta, low)) <= low * 1.001).all())
    each = delta[:1].expand(6, *delta.shape[1:]).clone().requires_grad_()
    changed = space.apply(x, each)
    assert float(changed.detach().abs().max()) <= 1 and not torch.allclose(changed, x, atol=1e-3)
    (grad,) = torch.autograd.grad(changed.square().sum(), each)
    assert bool(torch.isfinite(space.steepen(grad)).all()) and float(grad.norm()) > 0
    trigger = space.trigger(delta[0], 3, None)
    assert trigger is not None and torch.allclose(trigger(x), changed.detach(), atol=2e-3)


def test_the_family_of_patches_and_its_trigger_have_the_same_effect() -> None:
    family, x = CellFamily(KIND.frame), sounds()
    theta = [t[None].requires_grad_() for t in family.init((LENGTH,), torch.Generator().manual_seed(0))]
    done = family.apply(theta, x[None])
    trigger = family.trigger([t[0] for t in theta], 1, None)
    assert torch.allclose(trigger(x), done[0].detach(), atol=1e-4)
    assert trigger.size == pytest.approx(float(family.size(theta).detach()), rel=1e-4)
    grads = torch.autograd.grad(done.square().sum() + family.size(theta).sum(), theta)
    assert all(bool(torch.isfinite(g).all()) and float(g.norm()) > 0 for g in grads)


def test_branches_of_changes_keep_shape_and_range_and_hang_on_the_sound_alone() -> None:
    x, others = sounds()[:, None], sounds(3, 9)[:, None]
    both = {**KIND.breaking((1, LENGTH)), **KIND.preserving((1, LENGTH))}
    assert len(both) == 17 and not IMAGE.breaking((1, 8, 8))
    for name, change in both.items():
        out = change(x, others)
        assert out.shape == x.shape and float(out.abs().max()) <= 1, name
        assert torch.allclose(change(x[1:2], others), out[1:2], atol=1e-5), name
        far = float((out - x).norm() / x.norm())
        assert (far > 0.5) if name in KIND.breaking((LENGTH,)) else far > 0, name


def test_what_is_played_is_what_was_heard() -> None:
    x = sounds(1)[0]
    kind, blob = KIND.playable(x) or ("", b"")
    back, rate = files.read(io.BytesIO(blob), dtype="float32")
    assert kind == "audio/wav" and rate == RATE
    assert torch.allclose(torch.as_tensor(back), x, atol=1e-4)
    assert KIND.picture(x).size == (160, 96)
