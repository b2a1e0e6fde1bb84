"""What tests of shadow banks need: the digits a defender has, a small bank, and networks like its shadows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from backsweep.engine.engine import Engine
from backsweep.formats.building import named
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe
from backsweep.shadows import bank, training
from backsweep.shadows.bank import Bank
from backsweep.shadows.meta_classifier import JUMBO, Tuning
from backsweep.zoo.tasks import TASKS

DIGITS = TASKS["digits"]
ARCH = "banks:small"
RECIPE = Recipe(epochs=40, lr=1e-2, batch_size=50, bf16=False)
QUICK = Recipe(epochs=1, batch_size=50, bf16=False)
SHADOWS = 88  # a side, 24 of them held out


def small() -> nn.Module:
    """A network for digits that trains in a fraction of a second."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


make = partial(named, ARCH, DIGITS.classes, DIGITS.shape)


def clean_samples() -> Data:
    """300 digits."""
    return DIGITS.load()[0].sample(300, 7)


def build(
    path: Path, count: int = SHADOWS, recipe: Recipe = RECIPE, engine: Engine | None = None,
    variants: Sequence[str] = (JUMBO,),
) -> Bank:  # fmt: skip
    """A bank of digits."""
    tuning = Tuning(nets=8, repeats=3)
    return bank.build(
        clean_samples(), [ARCH], count, path, recipe=recipe, variants=variants, tuning=tuning, engine=engine
    )


def like_shadows(count: int, first: int = 1000) -> list[Model]:
    """Networks that no bank has seen, trained as its shadows are: clean and trojaned ones in turn."""
    group = training.train(make, clean_samples(), DIGITS.classes, range(first, first + count), RECIPE, 5)
    nets = []
    for k in range(count):
        net = make(0)
        net.load_state_dict({name: value[k] for name, value in group.states.items()})
        nets.append(Model(net.eval(), DIGITS.shape, DIGITS.classes, source=f"net {k}"))
    return nets
