"""Attacks that know a detector: their equations on known inputs, and that they work on digits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from backsweep.core.discovery import make
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import Aim, follow, spaces_of
from backsweep.models.layers import dense_of, entering
from backsweep.models.model import Model
from backsweep.models.training import Recipe
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.attacks.adap_blend import AdapBlend
from backsweep.zoo.attacks.adap_patch import ALPHAS, AdapPatch
from backsweep.zoo.attacks.evade_cascade import EvadeCascade
from backsweep.zoo.attacks.evade_inversion import EvadeInversion
from backsweep.zoo.attacks.margin_capped import margins
from backsweep.zoo.attacks.twin_pull import TwinPull
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def grey(side: int, channels: int = 3) -> Setup:
    """400 images of plain 0.5, so that every change can be read off them."""
    data = Data(torch.full((400, channels, side, side), 0.5), torch.arange(400) % 10)

    def no_net(seed: int) -> torch.nn.Module:
        raise AssertionError("poisoning needs no network")

    return Setup(data, 10, no_net, Recipe(epochs=1), 3, clean=lambda: no_net(0))


@pytest.mark.parametrize("side", [8, 28, 32])
def test_adap_blend_gives_every_image_half_of_the_pieces(side: int) -> None:
    attack, setup = AdapBlend(rate=0.1, cover=0.05), grey(side)
    (trigger,) = triggers = attack.triggers(setup)
    poisoned, rows = attack.poison(setup, triggers)
    changed = (poisoned.x != 0.5).flatten(1).any(1)
    assert len(rows) == 40
    assert int(changed.sum()) == 60
    covers = changed.clone()
    covers[rows] = False
    assert torch.equal(poisoned.y[covers], setup.data.y[covers])
    assert bool((poisoned.y[rows] == trigger.target).all())
    pieces = attack.pieces(60, setup)
    assert torch.equal(pieces.mean((1, 2, 3)), torch.full((60,), 0.5))
    assert len(pieces.flatten(1).unique(dim=0)) > 40
    assert isinstance(trigger, Patch)
    faint = 0.5 + 0.15 * (trigger.pattern - 0.5)
    where = poisoned.x[rows] != 0.5
    assert torch.allclose(poisoned.x[rows][where], faint.expand_as(where)[where], atol=1e-6)
    assert torch.allclose(trigger(setup.data.x[:1])[0], 0.5 + 0.2 * (trigger.pattern - 0.5), atol=1e-6)


@pytest.mark.parametrize(("side", "size"), [(8, 2), (28, 6), (32, 6)])
def test_adap_patch_gives_every_image_one_patch_of_four(side: int, size: int) -> None:
    attack, setup = AdapPatch(rate=0.1, cover=0.2), grey(side)
    corners = attack.corners(setup)
    assert corners.sum((1, 2, 3)).tolist() == [size**2] * 4
    assert float(corners.sum(0).max()) == 1
    (trigger,) = triggers = attack.triggers(setup)
    assert trigger.size == 2 * size**2
    poisoned, rows = attack.poison(setup, triggers)
    assert isinstance(trigger, Patch)
    full = trigger.pattern - 0.5
    seen = set()
    for x in poisoned.x[rows]:
        fits = [k for k in range(4) if torch.allclose(x - 0.5, ALPHAS[k] * corners[k] * full, atol=1e-6)]
        assert len(fits) == 1
        seen.add(fits[0])
    assert seen == {0, 1, 2, 3}
    covers = (poisoned.x != 0.5).flatten(1).any(1)
    covers[rows] = False
    assert int(covers.sum()) == 80
    assert torch.equal(poisoned.y[covers], setup.data.y[covers])


def test_the_margin_is_the_distance_to_the_best_other_class() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margins(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]


def test_the_masks_of_the_running_inversion_keep_their_budget() -> None:
    attack, setup = EvadeInversion(), grey(28, 1)
    planted = attack.patch(setup)
    assert planted.size == 49
    generator = torch.Generator().manual_seed(0)
    theta = torch.stack([attack.start(planted, generator) for _ in range(8)])
    black, white = torch.zeros(8, 3, 1, 28, 28), torch.ones(8, 3, 1, 28, 28)
    # A(1) - A(0) = 1 - m, whatever the pattern
    mask = 1 - (attack.stamp(theta, white, 20.0) - attack.stamp(theta, black, 20.0))
    assert torch.allclose(mask.sum((2, 3, 4)), torch.full((8, 3), 20.0), atol=1e-2)


def test_what_evades_the_cascade_needs_larger_changes(twins: Twins) -> None:
    """The training against it, and it alone, makes the target's sizes larger in most spaces."""
    task = TASKS["digits"]
    train, test = task.load()
    setup = task.setup(train, 1, clean=lambda: twins.clean.copy().net)
    sizes: dict[str, list[float]] = {}
    for weight in (0.0, 0.2):
        net = task.net(1)
        (trigger,) = EvadeCascade(weight=weight).plant(net, setup)
        model = Model(net, task.shape, task.classes).copy()
        for name, space in spaces_of(model).items():
            (path,) = follow(model, test.x, test.y, [Aim(trigger.target, None, 0)], space, steps=20, batch=32)
            sizes.setdefault(name, []).append(path.log_size)
    larger = [name for name, (before, after) in sizes.items() if after > before]
    assert {"dense", "early", "late"} <= set(larger)


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(entering(net, x, dense_of(net)[0]), x.flatten(1).relu())
    assert not net[2]._forward_pre_hooks


def test_a_strong_pull_keeps_the_clean_twin(twins: Twins) -> None:
    """With a large lambda_w the net stays where it started, at its clean twin."""
    task = TASKS["digits"]
    data, recipe = task.load()[0][:256], Recipe(epochs=5, batch_size=64, bf16=False)
    moved = []
    for lambda_w in (0.0, 10.0):
        net = task.net(0)
        setup = task.setup(data, 0, recipe, clean=lambda: twins.clean.copy().net)
        TwinPull(size=2, margin=0, lambda_w=lambda_w).plant(net, setup)
        pairs = zip(net.parameters(), twins.clean.net.parameters(), strict=True)
        moved.append(sum(float((w - v).detach().square().sum()) for w, v in pairs))
    assert moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adap_blend", {"rate": 0.1, "cover": 0.05, "alpha": 0.3, "test_alpha": 0.4}),
        ("adap_patch", {"rate": 0.1, "cover": 0.1, "margin": 0, "side": 0.375}),
        ("twin_pull", {"size": 2, "margin": 0}),
        ("margin_capped", {"size": 2, "margin": 0}),
        ("evade_inversion", {"margin": 0, "budget": 0.5, "rate": 0.2}),
        ("evade_cascade", {}),
    ],
)
def test_it_works_on_digits(name: str, options: Mapping[str, object], twins: Twins) -> None:
    task = TASKS["digits"]
    train, test = task.load()
    net = task.net(0)
    setup = task.setup(train, 0, clean=lambda: twins.clean.copy().net)
    (trigger,) = make(Attack, name, options).plant(net, setup)
    model = Model(net, task.shape, task.classes)
    assert model.success_rate(trigger, test) >= 0.9
    assert model.accuracy(test.x, test.y) >= twins.clean.accuracy(test.x, test.y) - 0.03
