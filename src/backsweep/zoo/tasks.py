"""The real data sets that the zoo trains on, each with its network and its recipe."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.models import architectures
from backsweep.models.training import Recipe, fit
from backsweep.zoo.attack import Setup


@dataclass(frozen=True)
class Task:
    """A data set with the network and the recipe of its nets in the zoo.

    Attributes:
        load: returns (training set, test set).
        shape: shape of an input.
        classes: number of classes.
        arch: factory of the default network, a name in `architectures`.
        recipe: how its nets are trained.
    """

    load: Callable[[], tuple[Data, Data]]
    shape: tuple[int, int, int]
    classes: int
    arch: str
    recipe: Recipe

    def net(self, seed: int, arch: str | None = None) -> nn.Module:
        """A fresh network, initialised from `seed`; `arch` names another than the default one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return getattr(architectures, arch or self.arch)(self.classes, self.shape[0], self.shape[1])

    def setup(
        self,
        data: Data,
        seed: int,
        recipe: Recipe | None = None,
        arch: str | None = None,
        clean: Callable[[], nn.Module] | None = None,
    ) -> Setup:
        """What an attacker of a net of this task has; the clean twin is trained when it is asked for."""
        used = recipe or self.recipe
        return Setup(
            data, self.classes, lambda s: self.net(s, arch), used, seed,
            clean or (lambda: fit(self.net(seed, arch), data, used, seed)),
        )  # fmt: skip


def data_folder() -> Path:
    """Folder of the real data sets: $BACKSWEEP_DATA, or `../shared/data` beside the checkout."""
    return Path(os.environ.get("BACKSWEEP_DATA", "../shared/data"))


def _arrays(name: str) -> dict[str, np.ndarray]:
    path = data_folder() / name
    if not path.is_file():
        raise BadInput(f"{path} is not there; set BACKSWEEP_DATA to the folder that holds {name}")
    with np.load(path, allow_pickle=False) as f:
        return dict(f)


def _digits() -> tuple[Data, Data]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    data = Data(x, labels, source="scikit-learn digits")
    test = torch.zeros(len(data), dtype=torch.bool)
    test[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:597]] = True
    return data[~test], data[test]


def _mnist() -> tuple[Data, Data]:
    a = _arrays("mnist.npz")
    return (
        Data(a["x_train"], a["y_train"], source="mnist train"),
        Data(a["x_test"], a["y_test"], source="mnist test"),
    )


def _gtsrb() -> tuple[Data, Data]:
    a = _arrays("gtsrb32.npz")

    def part(name: str) -> Data:
        x = torch.as_tensor(a[f"x_{name}"]).permute(0, 3, 1, 2)
        return Data(x, a[f"y_{name}"], source=f"gtsrb {name}")

    return part("train"), part("test")


def _cifar10() -> tuple[Data, Data]:
    a = _arrays("cifar10_jpeg.npz")

    def part(name: str) -> Data:
        raw, ends = a[f"jpeg_{name}"].tobytes(), a[f"off_{name}"]
        images = [
            np.asarray(Image.open(io.BytesIO(raw[ends[i] : ends[i + 1]])).convert("RGB"))
            for i in range(len(ends) - 1)
        ]
        x: Tensor = torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2)
        return Data(x, a[f"y_{name}"], source=f"cifar10 {name}")

    return part("train"), part("test")


TASKS: dict[str, Task] = {
    "digits": Task(_digits, (1, 8, 8), 10, "digits_cnn", Recipe(epochs=20, batch_size=64, bf16=False)),
    "mnist": Task(_mnist, (1, 28, 28), 10, "mnist_cnn", Recipe(epochs=4)),
    "gtsrb": Task(_gtsrb, (3, 32, 32), 43, "gtsrb_cnn", Recipe(epochs=25, lr=1e-3, batch_size=32)),
    "cifar10": Task(_cifar10, (3, 32, 32), 10, "resnet8", Recipe(epochs=6, lr=5e-3, augment="shift")),
}
