"""At which rate a network takes sounds: what the user says, the network, its header, or the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.formats.saving import save
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.kinds import recognised
from backsweep.inputs.sound.modality import Sound
from backsweep.models.model import Model
from backsweep.scanning.scan import open_both

RATE = 2000


class Bare(nn.Module):
    """Takes a second of sound and does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(RATE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Said(Bare):
    sample_rate, input_shape = RATE, (RATE,)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_file(Bare().state_dict(), tmp_path / "net.safetensors")
    x = 0.1 * np.random.default_rng(0).standard_normal((24, 2 * RATE)).clip(-5, 5)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32), y=np.arange(24) % 2, rate=2 * RATE)
    return tmp_path


def both(place: Path, arch: type[nn.Module], rate: int | None = None) -> tuple[Model, tuple[str, ...]]:
    model, data = open_both(str(place / "net.safetensors"), str(place / "x.npz"), arch=arch, rate=rate)
    assert data.modality == model.modality and tuple(data.x.shape[1:]) == model.shape
    return model, (*model.notes, *data.notes)


def test_the_network_says_it(place: Path) -> None:
    model, notes = both(place, Said)
    assert model.modality == Sound(RATE) and model.shape == (RATE,)
    assert "24 resampled" in notes[0]


def test_the_user_says_it(place: Path) -> None:
    model = load(place / "net.safetensors", Bare, rate=RATE, shape=(RATE,))
    assert model.modality == Sound(RATE)
    with pytest.raises(BadInput, match=r"it says itself that it takes 2,000 samples a second, not 4,000"):
        load(place / "net.safetensors", Said, rate=2 * RATE)
    with pytest.raises(BadInput, match="a rate of 5 samples a second is none"):
        load(place / "net.safetensors", Bare, rate=5, shape=(RATE,))


def test_else_the_samples_say_it_and_that_is_noted(place: Path) -> None:
    x = np.zeros((24, RATE), np.int16)
    x[:, ::7] = 900
    np.savez(place / "x.npz", x=x, y=np.arange(24) % 2, rate=RATE)
    model, notes = both(place, Bare)
    assert model.modality == Sound(RATE)
    assert any("that of the samples, 2,000 a second, is taken" in n for n in notes)


def test_a_live_network_that_is_written_keeps_its_rate(tmp_path: Path) -> None:
    model = Model(Bare(), (RATE,), 2, modality=Sound(RATE))
    save(model, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", Bare)
    assert again.modality == Sound(RATE) and again.shape == (RATE,)
    assert torch.equal(again.logits(torch.ones(1, RATE)), model.logits(torch.ones(1, RATE)))


def test_what_is_no_sound_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("broken.npz", "a/broken.wav", "list.csv"):
        (tmp_path / name).write_bytes(b"path,label\nno.wav,1")
        assert recognised(tmp_path / name) is None
    assert recognised(tmp_path) is None and recognised(tmp_path / "nowhere") is None
    np.savez(tmp_path / "images.npz", x=np.zeros((4, 8, 8)), y=np.zeros(4))
    assert recognised(tmp_path / "images.npz") is None
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    asked = load(
        tmp_path / "net.safetensors", lambda: net, shape=(1, 8, 8), data_modality=IMAGE
    )  # fmt: skip
    assert asked.modality == IMAGE
