"""The real data sets that the zoo trains on, each with its network and its recipe."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.models import architectures, text_networks
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo import texts
from backsweep.zoo.attack import Setup


@dataclass(frozen=True)
class Task:
    """A data set with the network and the recipe of its nets in the zoo.

    Attributes:
        load: returns (training set, test set).
        shape: shape of an input.
        classes: number of classes.
        arch: factory of the default network, a name in `architectures` or `text_networks`.
        recipe: how its nets are trained.
        kind: what an input is, as the methods that need one say (`Attack.modality`).
        sizes: what a factory is told after the classes; None: channels and side of an image.
    """

    load: Callable[[], tuple[Data, Data]]
    shape: tuple[int, ...]
    classes: int
    arch: str
    recipe: Recipe
    kind: str = IMAGE.name
    sizes: tuple[int, ...] | None = None

    def net(self, seed: int, arch: str | None = None) -> nn.Module:
        """A fresh network, initialised from `seed`; `arch` names another than the default one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = self.shape[:2] if self.sizes is None else self.sizes
            return factory(arch or self.arch)(self.classes, *sizes)

    def model(self, net: nn.Module, source: str = "") -> Model:
        """A network of this task as a model."""
        kind = IMAGE if self.kind == IMAGE.name else loaded(self)[0].modality
        return Model(net, self.shape, self.classes, source=source, modality=kind)

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


def factory(name: str) -> Callable[..., nn.Module]:
    """The small network of that name.

    Raises:
        BadInput: there is none.
    """
    for module in (architectures, text_networks):
        found = getattr(module, name, None)
        if getattr(found, "__module__", "") == module.__name__ and name.islower():
            return found  # type: ignore[no-any-return]
    raise BadInput(f"unknown arch {name!r}; see backsweep.archs")


@lru_cache(maxsize=2)
def loaded(task: Task) -> tuple[Data, Data]:
    """Training and test set of a task, read once."""
    return task.load()


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


def _text(load: Callable[[Path], tuple[Data, Data]], classes: int, epochs: int = 4) -> Task:
    """A task of texts."""
    sizes = (text_networks.TOKENS, text_networks.LENGTH)
    recipe = Recipe(epochs=epochs, lr=2e-3, batch_size=64, bf16=False)
    return Task(lambda: load(data_folder()), sizes[1:], classes, "text_cnn", recipe, Text.name, sizes)


TASKS: dict[str, Task] = {
    "digits": Task(_digits, (1, 8, 8), 10, "digits_cnn", Recipe(epochs=20, batch_size=64, bf16=False)),
    "mnist": Task(_mnist, (1, 28, 28), 10, "mnist_cnn", Recipe(epochs=4)),
    "gtsrb": Task(_gtsrb, (3, 32, 32), 43, "gtsrb_cnn", Recipe(epochs=25, lr=1e-3, batch_size=32)),
    "cifar10": Task(_cifar10, (3, 32, 32), 10, "resnet8", Recipe(epochs=6, lr=5e-3, augment="shift")),
    "sst2": _text(texts.sst2, 2),
    "movie_reviews": _text(texts.movie_reviews, 2),
    "ag_news": _text(texts.ag_news, 4),
    "olid": _text(texts.olid, 2),
    "reviews": _text(texts.made_up, 2, epochs=3),
}
