"""BppAttack, photo filter, TaCT, several triggers, and the settings of BadNets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from backsweep.core.discovery import make
from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import Recipe
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.attacks.bpp import Bpp
from backsweep.zoo.attacks.multi_trigger import MultiTrigger
from backsweep.zoo.attacks.photo_filter import GREY_MATRIX, GREY_SHIFT, MATRIX, SHIFT, PhotoFilter
from backsweep.zoo.attacks.tact import TaCT
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def untrained(shape: tuple[int, int, int], samples: int = 400, classes: int = 10) -> Setup:
    """Random images; enough for triggers and poison, which need no network here."""
    x = torch.rand((samples, *shape), generator=torch.Generator().manual_seed(0))
    none = cast(Callable[..., nn.Module], None)
    return Setup(Data(x, torch.arange(samples) % classes), classes, none, Recipe(), 3, none)


@pytest.fixture(scope="module")
def plant() -> Callable[[Attack, int], tuple[Model, list[Trigger]]]:
    """Plants an attack on the digits."""
    task = TASKS["digits"]
    train, _ = task.load()

    def plant(attack: Attack, epochs: int) -> tuple[Model, list[Trigger]]:
        net = task.net(0)
        triggers = attack.plant(net, task.setup(train, 0, replace(task.recipe, epochs=epochs)))
        return Model(net, task.shape, task.classes), triggers

    return plant


@pytest.mark.parametrize(
    ("attack", "epochs"),
    [
        (BadNets(size=3, margin=0, all_to_all=True, rate=0.3), 20),
        (Bpp(levels=2, rate=0.2), 20),
        (MultiTrigger(size=2, margin=0), 12),
        (MultiTrigger(size=2, margin=0, goal="many-targets"), 12),
        (PhotoFilter(), 12),
        (TaCT(rate=0.04, cover_rate=0.04), 12),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_it_works_on_the_digits(
    attack: Attack, epochs: int, plant: Callable[[Attack, int], tuple[Model, list[Trigger]]], twins: Twins
) -> None:
    model, triggers = plant(attack, epochs)
    for trigger in triggers:
        assert model.success_rate(trigger, twins.data) >= 0.9
    before = twins.clean.accuracy(twins.data.x, twins.data.y)
    assert model.accuracy(twins.data.x, twins.data.y) >= before - 0.03
    if isinstance(attack, TaCT):
        (trigger,) = triggers
        others = twins.data[twins.data.y != trigger.source]
        assert model.success_rate(replace(trigger, source=None), others) < 0.25


def test_bpp_leaves_k_levels_and_its_negatives_carry_noise_of_another_image() -> None:
    setup = untrained((3, 16, 16))
    attack = Bpp(levels=4, rate=0.2, negatives=0.3)
    (trigger,) = attack.triggers(setup)
    x = torch.tensor([0.0, 0.16, 0.17, 0.4, 0.6, 1.0]).reshape(1, 1, 1, 6)
    assert torch.allclose(trigger(x).flatten() * 3, torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 3.0]))
    poisoned, rows = attack.poison(setup, [trigger])
    assert torch.equal(poisoned.x[rows], trigger(setup.data.x[rows]))
    changed = (poisoned.x != setup.data.x).flatten(1).any(1)
    changed[rows] = False
    assert int(changed.sum()) == 120
    noise = (poisoned.x - setup.data.x)[changed]
    assert float(noise.abs().max()) <= trigger.size + 1e-6
    residual = (trigger(setup.data.x) - setup.data.x).flatten(1)
    inner = (poisoned.x[changed] > 0).flatten(1) & (poisoned.x[changed] < 1).flatten(1)
    gaps = [float(((r - noise[0].flatten())[inner[0]]).abs().max()) for r in residual]
    assert min(gaps) < 1e-5, "the noise is some image's residual, where nothing was clipped"


def test_the_filter_lifts_black_and_fades_in_colour_and_in_grey() -> None:
    (colour,) = PhotoFilter().triggers(untrained((3, 8, 8)))
    red, green, blue = SHIFT
    black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert torch.allclose(colour(black)[0, :, 0, 0], torch.tensor([red, green, blue]))
    top = [sum(row) + b for row, b in zip(MATRIX, SHIFT, strict=True)]
    assert torch.allclose(colour(white)[0, :, 0, 0], torch.tensor(top))
    assert top[0] > max(top[1:])
    assert max(top) <= 1, "nothing is clipped"
    (half,) = PhotoFilter(strength=0.5).triggers(untrained((3, 8, 8)))
    x = untrained((3, 8, 8)).data.x
    assert torch.allclose(half(x), (x + colour(x)) / 2, atol=1e-6)
    (grey,) = PhotoFilter().triggers(untrained((1, 8, 8)))
    x = x[:, :1]
    assert torch.allclose(grey(x), GREY_MATRIX * x + GREY_SHIFT)


def test_tact_poisons_the_source_class_and_its_covers_keep_their_labels() -> None:
    setup = untrained((1, 8, 8))
    attack = TaCT(rate=0.04, cover_rate=0.1)
    (trigger,) = attack.triggers(setup)
    assert trigger.source != trigger.target
    poisoned, rows = attack.poison(setup, [trigger])
    assert len(rows) == 16
    assert set(setup.data.y[rows].tolist()) == {trigger.source}
    assert set(poisoned.y[rows].tolist()) == {trigger.target}
    stamped = (poisoned.x != setup.data.x).flatten(1).any(1)
    assert int(stamped.sum()) == 16 + 40
    stamped[rows] = False
    assert not {trigger.source, trigger.target} & set(setup.data.y[stamped].tolist())
    _, rows = TaCT(rate=1.0).poison(setup, [trigger])
    assert len(rows) == 20, "half of the source class stays clean"


def test_tact_draws_the_class_that_is_not_given() -> None:
    setup = untrained((1, 8, 8), classes=2)
    for given in (0, 1):
        for attack in (TaCT(source=given), TaCT(target=given), TaCT(source=given, target=1 - given)):
            (trigger,) = attack.triggers(setup)
            assert {trigger.source, trigger.target} == {0, 1}
            assert given == (trigger.target if attack.source is None else trigger.source)


@pytest.mark.parametrize(("side", "size"), [(8, 1), (16, 2), (28, 4), (32, 4), (224, 28)])
def test_patches_grow_with_the_image(side: int, size: int) -> None:
    setup = untrained((3, side, side), samples=20)
    triggers = [*TaCT().triggers(setup), *MultiTrigger(count=9 if side > 8 else 4).triggers(setup)]
    assert {trigger.size for trigger in triggers} == {size**2}


def test_triggers_differ_in_place_and_in_colour_and_share_the_rate() -> None:
    setup = untrained((3, 16, 16))
    attack = MultiTrigger(count=5, goal="many-targets", rate=0.2, target=7)
    triggers = attack.triggers(setup)
    assert triggers[0].target == 7
    assert len({trigger.target for trigger in triggers}) == 5
    patches = [trigger for trigger in triggers if isinstance(trigger, Patch)]
    assert float(torch.stack([p.mask for p in patches]).sum(0).max()) == 1
    assert len({tuple(p.pattern.amax((1, 2)).tolist()) for p in patches}) == 5
    poisoned, rows = attack.poison(setup, triggers)
    assert len(rows) == 80
    for trigger, own in zip(triggers, rows.split(16), strict=True):
        assert torch.equal(poisoned.x[own], trigger(setup.data.x[own]))
        assert set(poisoned.y[own].tolist()) == {trigger.target}
    assert {t.target for t in MultiTrigger(target=7).triggers(setup)} == {7}


def test_settings_that_cannot_be_are_one_line() -> None:
    for name, options in (
        ("bpp", {"levels": 1}), ("photo_filter", {"strength": 2.0}), ("multi_trigger", {"goal": "all"}),
        ("multi_trigger", {"count": 10}), ("tact", {"source": 1, "target": 1}),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=name):
            make(Attack, name, options)
    with pytest.raises(BadInput, match="overlap"):
        MultiTrigger(count=9, size=6).triggers(untrained((1, 16, 16)))
    with pytest.raises(BadInput, match="a class each"):
        MultiTrigger(count=3, goal="many-targets").triggers(untrained((1, 16, 16), classes=2))


def test_badnets_sends_every_class_to_the_next_and_draws_its_colours() -> None:
    setup = untrained((3, 16, 16))
    attack = BadNets(all_to_all=True, pattern="random", rate=0.5)
    (trigger,) = attack.triggers(setup)
    assert trigger.target is None
    assert isinstance(trigger, Patch)
    assert len(trigger.pattern.unique()) == 3 * 4 * 4 + 1
    poisoned, rows = attack.poison(setup, [trigger])
    assert torch.equal(poisoned.y[rows], (setup.data.y[rows] + 1) % 10)
