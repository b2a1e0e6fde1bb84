"""Files as users have them: read, with a line of what was done, or refused with the way out."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Twins
from shells import ARCH, Shell

QUICK = ("-d", "neural_cleanse", "-p", "neural_cleanse.steps=1")
NETS = """
from torch import nn
from backsweep.archs import digits_cnn

class Net(nn.Module):
    def __init__(self, answer, double=False):
        super().__init__()
        self.net, self.answer = digits_cnn(), answer
        if double:
            self.double()

    def forward(self, x):
        return self.answer(self.net(x))

def dictionary():
    return Net(lambda z: {"hidden": z[:, :3], "logits": z})

def pair():
    return Net(lambda z: (z, z[:, :3]))

def log_softmax():
    return Net(lambda z: z.log_softmax(1))

def double():
    return Net(lambda z: z, double=True)
"""
Weights = dict[str, torch.Tensor]
CHECKPOINTS: dict[str, tuple[Callable[[Weights], Any], tuple[str, ...]]] = {
    "plain": (lambda w: w, ()),
    "of Lightning": (
        lambda w: {
            "state_dict": {f"model.{k}": v for k, v in w.items()}, "pytorch-lightning_version": "2.2",
            "hyper_parameters": {"lr": 1e-3}, "epoch": 3, "global_step": 10, "callbacks": {}, "loops": {},
        },
        ("took the weights from 'state_dict'", "dropped the prefix 'model.' of all weights"),
    ),
    "another prefix": (lambda w: {f"net.{k}": v for k, v in w.items()}, ("dropped the prefix 'net.'",)),
    "of DataParallel, compiled": (
        lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()}, ("dropped the prefix 'module.",),
    ),
    "another key": (lambda w: {"model_state": w, "best": 1}, ("took the weights from 'model_state'",)),
    "averaged": (lambda w: {"ema_state_dict": w, "epoch": 1}, ("took the weights from 'ema_state_dict'",)),
    "with a NumPy scalar": (lambda w: {"state_dict": w, "best": np.float64(0.9)}, ("'state_dict'",)),
    "with arguments": (
        lambda w: {"state_dict": w, "args": argparse.Namespace(lr=1)},
        ("left objects unread that are not made: 'argparse.Namespace'",),
    ),
    "with an optimiser": (
        lambda w: {
            "state_dict": w,
            "optimizer": torch.optim.Adam([v for v in w.values() if v.is_floating_point()]).state_dict(),
        },
        ("took the weights from 'state_dict'",),
    ),
    "half": (lambda w: {k: v.half() for k, v in w.items()}, ("turned float16 weights to float32",)),
    "bfloat16": (lambda w: {k: v.bfloat16() for k, v in w.items()}, ("turned bfloat16 weights",)),
    "double": (lambda w: {k: v.double() for k, v in w.items()}, ("turned float64 weights to float32",)),
}  # fmt: skip


@pytest.fixture(scope="session")
def place(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, samples of it, and code that builds others."""
    folder = tmp_path_factory.mktemp("user")
    torch.save(twins.clean.net.state_dict(), folder / "model.pth")
    (folder / "users_nets.py").write_text(NETS)
    x, y = samples(twins)
    np.savez(folder / "samples.npz", x=x, y=y)
    for i in range(len(x)):
        path = folder / "images" / str(y[i])
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i]).save(path / f"{i}.png")
    return folder


def samples(twins: Twins) -> tuple[Any, Any]:
    """Images (N, 8, 8) of bytes, and their classes."""
    return (twins.data.x[:, 0].numpy() * 255).round().astype(np.uint8), twins.data.y.numpy()


def scanned(shell: Shell, out: Path, *words: object) -> tuple[dict[str, Any], str]:
    """What the report says of the data, and what was printed."""
    status, _, err = shell("scan", *words, *QUICK, "--out", out)
    assert status in (0, 1, 3), err
    report = json.loads((out / "report.json").read_text())
    assert len(report["evidence"]) == 10
    return report["data"], err


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(shell: Shell, place: Path, twins: Twins, tmp_path: Path, name: str) -> None:
    wrap, notes = CHECKPOINTS[name]
    torch.save(wrap(dict(twins.clean.net.state_dict())), tmp_path / "model.ckpt")
    data, said = scanned(
        shell, tmp_path / "out", tmp_path / "model.ckpt", "--arch", ARCH, "--data", place / "samples.npz"
    )
    assert data["clean_accuracy"] > 0.9
    assert all(note in said for note in notes), said
    assert bool(notes) == ("note:" in said)


def test_a_pickled_module(shell: Shell, place: Path, twins: Twins, tmp_path: Path) -> None:
    torch.save(twins.clean.net, tmp_path / "whole.pth")
    data, said = scanned(
        shell, tmp_path / "out", tmp_path / "whole.pth", "--arch", ARCH, "--data", place / "samples.npz"
    )
    assert data["clean_accuracy"] > 0.9
    assert "none of its code was run" in said


def test_a_list_of_tensors_is_refused(shell: Shell, place: Path, twins: Twins, tmp_path: Path) -> None:
    torch.save(list(twins.clean.net.state_dict().values()), tmp_path / "list.pth")
    status, _, said = shell("scan", tmp_path / "list.pth", "--arch", ARCH, "--data", place / "samples.npz")
    assert status == 2
    assert "torch.save(model.state_dict()" in said


@pytest.mark.parametrize(
    ("factory", "note"),
    [
        ("dictionary", "of what the network returns, 'logits' is read"),
        ("pair", ""),
        ("log_softmax", "log-probabilities"),
        ("double", "float64"),
    ],
)
def test_networks(
    shell: Shell, place: Path, twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    factory: str, note: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    weights = {f"net.{k}": v for k, v in twins.clean.net.state_dict().items()}
    torch.save(weights, tmp_path / "model.pth")
    data, said = scanned(
        shell, tmp_path / "out", tmp_path / "model.pth", "--arch", f"users_nets:{factory}",
        "--data", "samples.npz",
    )  # fmt: skip
    assert data["clean_accuracy"] > 0.9
    assert note in said


@pytest.mark.parametrize("make", [torch.jit.trace, lambda net, _: torch.jit.script(net)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_takes_its_shape_from_the_samples(
    shell: Shell, place: Path, twins: Twins, tmp_path: Path, make: Callable[[Any, Any], Any]
) -> None:
    make(twins.clean.net, twins.data.x[:2]).save(str(tmp_path / "script.pt"))
    data, _ = scanned(shell, tmp_path / "out", tmp_path / "script.pt", "--data", place / "samples.npz")
    assert data["clean_accuracy"] > 0.9


ARRAYS: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], str]] = {
    "one-hot": (lambda x, y: {"x": x, "y": np.eye(10)[y]}, "one-hot labels were read as class indices"),
    "floats": (lambda x, y: {"x": x[:, None] / np.float32(255), "y": y.astype("float32")}, ""),
    "a column": (lambda x, y: {"x": x, "y": y[:, None]}, ""),
    "channels last": (lambda x, y: {"x": x[..., None], "y": y}, ""),
    "text": (lambda x, y: {"x": x, "y": y.astype(str)}, ""),
    "other names": (lambda x, y: {"images": x, "labels": y}, ""),
    "of Keras": (
        lambda x, y: {"x_train": x[:300], "y_train": y[:300], "x_test": x[300:], "y_test": y[300:]},
        "the split test was read, not train (--split NAME)",
    ),
    "of MedMNIST": (
        lambda x, y: {
            "train_images": x[:200], "train_labels": y[:200, None], "val_images": x[200:300],
            "val_labels": y[200:300, None], "test_images": x[300:], "test_labels": y[300:, None],
        },
        "the split test was read, not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(shell: Shell, place: Path, twins: Twins, tmp_path: Path, name: str) -> None:
    arrays, note = ARRAYS[name]
    np.savez(tmp_path / "samples.npz", **arrays(*samples(twins)))
    data, said = scanned(
        shell, tmp_path / "out", place / "model.pth", "--arch", ARCH, "--data", tmp_path / "samples.npz"
    )
    assert data["clean_accuracy"] > 0.9
    assert note in said
    assert bool(note) == ("note:" in said)
    assert all(n in said for n in data.get("notes", ())) and bool(data.get("notes")) == bool(note)


def test_a_class_of_one_sample(shell: Shell, place: Path, twins: Twins, tmp_path: Path) -> None:
    x, y = samples(twins)
    rows = np.r_[np.flatnonzero(y != 7)[:300], np.flatnonzero(y == 7)[:1]]
    np.savez(tmp_path / "samples.npz", x=x[rows], y=y[rows])
    data, said = scanned(
        shell, tmp_path / "out", place / "model.pth", "--arch", ARCH, "--data", tmp_path / "samples.npz"
    )
    assert (data["samples"], data["classes_present"]) == (300, 9)
    assert "left out as a source, with one sample: class 7" in said


def test_folders_with_odd_and_damaged_images(shell: Shell, place: Path, twins: Twins, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(place / "images", folder)
    for name in (".DS_Store", "README.txt", "0/Thumbs.db", "1/notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "empty").mkdir()
    one = Image.open(next(p for p in sorted((folder / "2").iterdir())))
    one.convert("RGBA").save(folder / "2" / "rgba.png")
    one.convert("P").save(folder / "2" / "palette.png")
    one.convert("RGB").convert("CMYK").save(folder / "2" / "cmyk.jpg")
    Image.fromarray(np.asarray(one).astype(np.uint16) * 257).save(folder / "2" / "deep.png")
    damaged = sorted((folder / "0").glob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:40])
    data, said = scanned(shell, tmp_path / "out", place / "model.pth", "--arch", ARCH, "--data", folder)
    assert data["samples"] == len(twins.data) - 1 + 4
    assert data["clean_accuracy"] > 0.9
    assert f"1 image that is damaged was left out: '0/{damaged.name}'" in said
    assert "from CMYK to RGB" in said and "from 16 bits a channel to 8" in said


def test_images_without_labels(shell: Shell, place: Path, twins: Twins, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((place / "images").rglob("*.png"))[::6]:
        shutil.copy(path, folder)
    words = (place / "model.pth", "--arch", ARCH, "--data", folder)
    status, _, said = shell("scan", *words, *QUICK)
    assert status == 2
    assert "--labels model" in said
    data, said = scanned(shell, tmp_path / "out", *words, "--labels", "model")
    assert (data["samples"], data["clean_accuracy"]) == (len(list(folder.iterdir())), None)
    assert "the model's own answers take their place" in said
