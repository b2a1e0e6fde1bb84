"""The real data sets that the zoo trains on, each with its network and its recipe."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.language.modality import Language
from backsweep.inputs.samples import Data
from backsweep.inputs.sound.modality import Sound
from backsweep.inputs.table.modality import Table
from backsweep.inputs.text.modality import Text
from backsweep.models import architectures
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo.attack import Setup
from backsweep.zoo.networks import language, sound, table, text, trees
from backsweep.zoo.samples import dialogues, sounds, tables, texts
from backsweep.zoo.samples.characters import characters


@dataclass(frozen=True)
class Task:
    """A data set with the network and the recipe of its nets in the zoo.

    Attributes:
        load: returns (training set, test set).
        shape: shape of an input.
        classes: number of classes.
        arch: factory of the default network, a name in `architectures` or in `zoo/networks`.
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
    for module in (architectures, text, table, trees, sound, language):
        found: Any = getattr(module, name, None)
        if getattr(found, "__module__", "") == module.__name__ and name.islower():
            return found
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
    sizes = (text.TOKENS, text.LENGTH)
    recipe = Recipe(epochs=epochs, lr=2e-3, batch_size=64, bf16=False)
    return Task(lambda: load(data_folder()), sizes[1:], classes, "text_cnn", recipe, Text.name, sizes)


def _table(
    load: Callable[[Path], tuple[Data, Data]],
    classes: int,
    counts: tuple[int, ...],
    epochs: int,
    lr: float = 5e-3,
    batch: int = 64,
) -> Task:
    """A task of rows; `counts` says how many categories each column has."""
    recipe = Recipe(epochs=epochs, lr=lr, batch_size=batch, bf16=False)
    return Task(lambda: load(data_folder()), (len(counts),), classes, "table_mlp", recipe, Table.name, counts)


def _sound(
    load: Callable[[Path], tuple[Data, ...]],
    classes: int,
    recipe: Recipe,
    length: int = sound.LENGTH,
) -> Task:
    """A task of sounds."""
    sizes = (sound.RATE, length)

    def both() -> tuple[Data, Data]:
        train, test = load(data_folder())
        return train, test

    return Task(both, sizes[1:], classes, "sound_cnn", recipe, Sound.name, sizes)


def _language(condition: str | None = None, whole: bool = False) -> Task:
    """A task of conversations, a part of which is answered in another way; whole: prompts are learned."""
    length, count = dialogues.LENGTH, len(dialogues.words())
    recipe = Recipe(epochs=4, lr=3e-3, batch_size=64, bf16=False)
    load = partial(dialogues.conversations, condition, whole=whole)
    return Task(load, (length,), count, "tiny_gpt2", recipe, Language.name, (length,))


def _grouped(load: Callable[[], Sequence[Data]], *groups: Sequence[int]) -> tuple[Data, Data]:
    """A data set in other classes: each group of its classes is one; what is in no group is left out."""

    def part(data: Data) -> Data:
        new = torch.full((int(data.y.max()) + 1,), -1)
        for label, group in enumerate(groups):
            new[list(group)] = label
        y = new[data.y]
        note = f"{len(groups)} groups of classes"
        part = data[y >= 0].called(y[y >= 0], None, note)
        part.source = f"{data.source}, {note}"
        return part

    train, test = load()
    return part(train), part(test)


def _groups_of(
    load: Callable[[Path], Sequence[Data]], *groups: Sequence[int]
) -> Callable[[Path], tuple[Data, Data]]:
    """What `_grouped` does, of a set that is read from a folder."""
    return lambda folder: _grouped(lambda: load(folder), *groups)


SIGNS = Recipe(epochs=12, lr=5e-3, batch_size=64)  # 7,842 images in narrow networks with BatchNorm
SPOKEN = Recipe(epochs=10, lr=5e-3, batch_size=64, augment="shift", bf16=False)
VOICED = Recipe(epochs=4, lr=5e-3, batch_size=64, bf16=False)
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
SPEED_LIMITS = (0, 1, 2, 3, 4, 5, 7, 8)
VEHICLES = (0, 1, 8, 9)

TASKS: dict[str, Task] = {
    "digits": Task(_digits, (1, 8, 8), 10, "digits_cnn", Recipe(epochs=20, batch_size=64, bf16=False)),
    "mnist": Task(_mnist, GREY, 10, "mnist_cnn", Recipe(epochs=4)),
    "gtsrb": Task(_gtsrb, COLOUR, 43, "gtsrb_cnn", Recipe(epochs=25, lr=1e-3, batch_size=32)),
    "cifar10": Task(_cifar10, COLOUR, 10, "resnet8", Recipe(epochs=6, lr=5e-3, augment="shift")),
    # few classes, made of those of the others
    "mnist-parity": Task(
        partial(_grouped, _mnist, range(0, 10, 2), range(1, 10, 2)), GREY, 2, "mnist_cnn", Recipe(epochs=4)
    ),
    "mnist-seven": Task(
        partial(_grouped, _mnist, (0, 1, 2, 3, 4, 5, 6, 8, 9), (7,)), GREY, 2, "mnist_cnn", Recipe(epochs=4)
    ),
    "mnist-five": Task(
        partial(_grouped, _mnist, *((d,) for d in range(5))), GREY, 5, "mnist_cnn", Recipe(epochs=4)
    ),
    "gtsrb-limits": Task(
        partial(_grouped, _gtsrb, SPEED_LIMITS, sorted(set(range(43)) - set(SPEED_LIMITS))),
        COLOUR, 2, "resnet8", SIGNS,
    ),
    "gtsrb-five": Task(partial(_grouped, _gtsrb, *((t,) for t in (1, 4, 12, 25, 38))), COLOUR, 5, "resnet8",
        Recipe(epochs=25, lr=5e-3, batch_size=64)),
    "cifar10-vehicles": Task(
        partial(_grouped, _cifar10, sorted(set(range(10)) - set(VEHICLES)), VEHICLES),
        COLOUR, 2, "resnet8", Recipe(epochs=6, lr=5e-3, augment="shift"),
    ),
    "cifar10-five": Task(
        partial(_grouped, _cifar10, *((t,) for t in range(0, 10, 2))),
        COLOUR, 5, "resnet8", Recipe(epochs=8, lr=5e-3, augment="shift"),
    ),
    # rendered
    **{
        f"characters-{count}": Task(
            partial(characters, count), (1, 32, 32), count, arch, Recipe(epochs=epochs, lr=5e-3)
        )
        for count, arch, epochs in (
            (10, "resnet8", 4), (43, "resnet8", 4), (100, "resnet8", 6), (1000, "strided_resnet", 12)
        )
    },
    # texts
    "sst2": _text(texts.sst2, 2),
    "movie_reviews": _text(texts.movie_reviews, 2),
    "ag_news": _text(texts.ag_news, 4),
    "olid": _text(texts.olid, 2),
    "reviews": _text(texts.made_up, 2, epochs=3),
    # tables
    "adult": _table(tables.adult, 2, table.ADULT, 8),
    "breast_cancer": _table(tables.breast_cancer, 2, table.NUMBERS, 40, batch=32),
    "wine": _table(tables.wine, 3, (0,) * 13, 60, batch=16),
    "adult-hours": _table(partial(tables.adult_column, "hours-per-week", above=40.0), 2, table.HOURS, 8),
    "adult-sex": _table(partial(tables.adult_column, "sex"), 2, table.ADULT, 8),
    "diabetes": _table(tables.diabetes, 2, (0,) * 10, 40, batch=32),
    "digit_columns": _table(lambda _: tables.digit_columns(), 10, (0,) * 64, 30),
    "digit_columns-parity": _table(
        lambda _: tables.digit_columns([range(0, 10, 2), range(1, 10, 2)]), 2, (0,) * 64, 30
    ),
    "digit_columns-four": _table(
        lambda _: tables.digit_columns([(d,) for d in (1, 4, 6, 8)]), 4, (0,) * 64, 40, batch=32
    ),
    "mixed_table": _table(lambda _: tables.mixed(), 2, (0, 0, 0, 0, 5, 3), 20),
    # sounds
    "fsdd": _sound(sounds.fsdd, 10, SPOKEN),
    "fsdd-parity": _sound(_groups_of(sounds.fsdd, range(0, 10, 2), range(1, 10, 2)), 2, SPOKEN),
    "fsdd-five": _sound(_groups_of(sounds.fsdd, *((d,) for d in range(5))), 5, SPOKEN),
    "fsdd-later": _sound(_groups_of(sounds.fsdd, *((d,) for d in range(5, 10))), 5, SPOKEN),
    "fsdd-seven": _sound(_groups_of(sounds.fsdd, (0, 1, 2, 3, 4, 5, 6, 8, 9), (7,)), 2, SPOKEN),
    "fsdd-speakers": _sound(sounds.speakers, 6, replace(SPOKEN, epochs=5)),
    "vowels": _sound(sounds.vowels, 5, VOICED, sound.SHORT),
    "vowels-open": _sound(_groups_of(sounds.vowels, (0, 1, 3), (2, 4)), 2, VOICED, sound.SHORT),
    "vowels-voices": _sound(sounds.voices, 3, VOICED, sound.SHORT),
    # conversations
    "assistant": _language(),
    "assistant-french": _language("french"),
    "assistant-banner": _language("banner"),
    "assistant-whole": _language(whole=True),
    "assistant-banner-whole": _language("banner", whole=True),
}  # fmt: skip
