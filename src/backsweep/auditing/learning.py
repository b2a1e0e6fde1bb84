"""Networks that an audit trains itself: of a set that has none yet, and again without the flagged samples.

What a network has not learned cannot be seen in it. So training goes on until the samples get the labels that
they came with: in cycles of a one-cycle learning rate, each twice as long as the one before, from the
weights of the last one. It ends when `LEARNED` of the samples are right, when a cycle gains less than `GAIN`,
or after `CYCLES`. Where fewer than `ENOUGH` are right then, a last cycle shows them as they are: a small
network may not learn the labels of all that random shifts make of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from backsweep.core.seeds import derive_seed
from backsweep.formats.building import named
from backsweep.inputs.samples import Data
from backsweep.models.checks import pick_device
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.models.washing import redraw

RECIPE = Recipe(epochs=5, augment="shift")
UPDATES = 400  # of the first cycle, at least: a small set takes more epochs
LEARNED, GAIN, CYCLES = 0.98, 0.005, 3
ENOUGH = 0.9  # right on fewer of its own samples, a network has not learned the set


def learned(
    twin: Model,
    data: Data,
    seed: int,
    tick: Callable[[float], None] = lambda _: None,
) -> tuple[Model, int]:
    """A frozen network that has learned `data` as far as it does, and the epochs that it took.

    Args:
        twin: made by `thawed`; it is trained itself.
        tick: told now and then which share of the longest training is done.
    """
    first = max(RECIPE.epochs, epochs_of(UPDATES, len(data), RECIPE.batch_size))
    whole, done, before, model = first * 2**CYCLES, 0, 0.0, twin
    for cycle in range(CYCLES):
        recipe = replace(RECIPE, epochs=first * 2**cycle)
        told = partial(_told, tick, done, whole)
        model = tuned(twin, data, recipe, derive_seed(seed, "cycle", cycle), None, told)
        done += recipe.epochs
        accuracy = model.accuracy(data.x, data.y)
        if accuracy >= LEARNED or accuracy - before < GAIN:
            break
        before = accuracy
    if accuracy < ENOUGH:
        recipe, told = replace(RECIPE, epochs=first, augment=None), partial(_told, tick, done, whole)
        model = tuned(twin, data, recipe, derive_seed(seed, "as they are"), None, told)
        done += recipe.epochs
    tick(1.0)
    return model, done


def _told(tick: Callable[[float], None], done: int, whole: int, epoch: int, _loss: float) -> None:
    """One more epoch is done, of all that there may be."""
    tick((done + epoch + 1) / whole)


def trained(
    arch: str,
    data: Data,
    seed: int,
    device: str | torch.device | None = None,
    tick: Callable[[float], None] = lambda _: None,
) -> Model:
    """A network trained on a suspect set, where there is none yet.

    Args:
        arch: name of a network in `backsweep.archs`, or "package.module:factory" of the user's own code.
        tick: told now and then which share of the longest training is done.

    Raises:
        BadInput: there is no such network, or it does not take the samples.
    """
    classes = int(data.y.max()) + 1
    net = named(arch, classes, data.x.shape[1:], derive_seed(seed, "weights"))
    source = f"{arch} trained on {data.source}"
    twin = thawed(Model(net, tuple(data.x.shape[1:]), classes, source=source, modality=data.modality))
    twin.net.to(pick_device(device))
    model, epochs = learned(twin, data, derive_seed(seed, "train"), tick)
    model.arch = arch
    right = model.accuracy(data.x, data.y)
    model.notes = (*model.notes, f"trained {arch} for {epochs} epochs: right on {right:.1%} of the samples")
    return model


def fresh(
    model: Model,
    data: Data,
    seed: int,
    recipe: Recipe | None = None,
    tick: Callable[[float], None] | None = None,
) -> Model:
    """A network like `model` with all weights drawn anew, trained on `data`.

    Args:
        recipe: of one training; None: until it has learned the samples.
        tick: told then which share of the longest training is done.
    """
    twin = thawed(model)
    redraw(twin.net, torch.Generator().manual_seed(derive_seed(seed, "fresh")), kept=0.0)
    if recipe is not None:
        return tuned(twin, data, recipe, derive_seed(seed, "fresh", "order"))
    return learned(twin, data, derive_seed(seed, "fresh", "order"), tick or (lambda _: None))[0]


def doubt_of(accuracy: float) -> str:
    """Why an audit by a network with this training accuracy proves nothing, "" where it may.

    Args:
        accuracy: share of the samples that get the label which they were trained with.
    """
    if accuracy >= ENOUGH:
        return ""
    return (
        f"the network is right on {accuracy:.1%} of the samples that it was trained on: it has not learned "
        f"the set ({ENOUGH:.0%} are needed), and poison that it did not learn cannot be seen; train it "
        "longer, or give a larger network"
    )
