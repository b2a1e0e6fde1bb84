"""Attacks that control the training: WaNet's warp and the input-aware generator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.image.triggers import Generated, Warp
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, cross_entropy
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.attacks import input_aware, wanet
from backsweep.zoo.attacks.input_aware import InputAware, diversity
from backsweep.zoo.attacks.wanet import WaNet
from backsweep.zoo.tasks import TASKS

Batches = list[tuple[Tensor, Tensor]]


def setup_of(shape: tuple[int, int, int], count: int = 100) -> Setup:
    x = torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))
    data, recipe = Data(x, torch.arange(count) % 10), Recipe(epochs=1, batch_size=50, bf16=True)
    task = replace(TASKS["digits"], shape=shape)
    return task.setup(data, 3, recipe, "gap_cnn")


def batches(attack: Attack, setup: Setup, module: Any, monkeypatch: pytest.MonkeyPatch) -> Batches:
    """What the network is trained on, batch by batch."""
    seen: Batches = []

    def spy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append((x.detach(), y))
        return cross_entropy(net, x, y)

    monkeypatch.setattr(module, "cross_entropy", spy)
    attack.plant(setup.net(3), setup)
    return seen


def rows_of(x: Tensor, data: Data) -> Tensor:
    """Index of the training sample that is nearest to each of x."""
    return torch.cdist(x.flatten(1), data.x.flatten(1)).argmin(1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_warp_is_the_papers(shape: tuple[int, int, int]) -> None:
    """grid = clamp(I + s up(P) / H, -1, 1), in the units of the grid."""
    setup, attack = setup_of(shape), WaNet(s=0.75)
    (trigger,) = attack.triggers(setup)
    assert isinstance(trigger, Warp)
    side = shape[1]
    p = 2 * torch.rand((1, 2, 4, 4), generator=setup.generator("wanet", "field")) - 1
    up = F.interpolate(p / p.abs().mean(), (side, side), mode="bicubic", align_corners=True)
    line = torch.linspace(-1, 1, side)
    identity = torch.stack([line.expand(side, side), line.expand(side, side).T], dim=-1)
    grid = (identity + 0.75 * up[0].permute(1, 2, 0) / side).clamp(-1, 1)
    x = setup.data.x
    expected = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=True)
    assert torch.allclose(trigger(x), expected, atol=1e-5)


def test_a_batch_of_wanet_is_poison_then_noise_then_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, attack = setup_of((3, 16, 16)), WaNet(target=7)
    (trigger,) = attack.triggers(setup)
    seen = batches(attack, setup, wanet, monkeypatch)
    assert len(seen) == 2  # one forward pass for each update
    for x, y in seen:
        clean = rows_of(x[15:], setup.data)
        assert torch.equal(x[15:], setup.data.x[clean])
        assert torch.equal(y[15:], setup.data.y[clean])
        assert bool((y[:5] == 7).all())
        bad = torch.cdist(x[:5].flatten(1), trigger(setup.data.x).flatten(1)).amin(1)
        assert float(bad.max()) < 0.05  # cdist is not exact
        assert float(torch.cdist(x[5:15].flatten(1), trigger(setup.data.x).flatten(1)).amin()) > 0.1
    rows = torch.stack([rows_of(x[:15], setup.data) for x, _ in seen])
    assert len(rows.unique()) == 30
    assert torch.equal(torch.stack([y[5:15] for _, y in seen]), setup.data.y[rows[:, 5:]])


def test_a_generated_trigger_hangs_on_its_input_alone() -> None:
    setup = setup_of((3, 16, 16))
    attack = InputAware(mask_steps=20)
    trigger = attack.plant(setup.net(3), setup)[0]
    assert isinstance(trigger, Generated)
    x = setup.data.x
    masks, patterns = trigger.masks(x), trigger.patterns(x)
    assert masks.shape == (100, 1, 16, 16)
    assert patterns.shape == x.shape
    assert 0 <= float(masks.min()) <= float(masks.max()) <= 1
    assert torch.allclose(trigger(x), x + (patterns - x) * masks)
    assert torch.allclose(trigger(x[7:8]), trigger(x)[7:8], atol=1e-6)
    assert torch.allclose(trigger(x.flip(0)), trigger(x).flip(0), atol=1e-6)
    assert not torch.allclose(masks[0], masks[1], atol=0.1)
    assert trigger.size == pytest.approx(float(masks[0].sum()), abs=1e-3)
    assert not any(t.requires_grad for t in (trigger.mask_net, trigger.pattern_net, trigger(x)))


def test_the_generator_is_not_touched_by_autocast() -> None:
    setup = setup_of((3, 16, 16))
    trigger = InputAware(mask_steps=1).plant(setup.net(3), setup)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = trigger(setup.data.x)
    assert torch.equal(inside, trigger(setup.data.x))


def test_diversity_is_a_ratio_of_distances() -> None:
    zero, one = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)
    assert float(diversity(zero, one, zero, one / 2)) == pytest.approx(2)
    same = zero.clone().requires_grad_()
    diversity(zero, one, same, same * 1).backward()
    assert same.grad is not None
    assert bool(torch.isfinite(same.grad).all())


def test_a_batch_of_input_aware_is_poison_then_crossed_then_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of((3, 16, 16))
    seen = batches(InputAware(target=7, mask_steps=1), setup, input_aware, monkeypatch)
    assert len(seen) == 2  # one forward pass for each update
    for x, y in seen:
        clean = rows_of(x[10:], setup.data)
        assert torch.equal(x[10:], setup.data.x[clean])
        assert torch.equal(y[10:], setup.data.y[clean])
        assert bool((y[:5] == 7).all())
        assert not torch.isin(x[:10].flatten(1).sum(1), setup.data.x.flatten(1).sum(1)).any()


# On 8x8 images masks of the papers' density are two pixels wide, and diversity outweighs success: larger
# masks and less of it, or success hangs on how the processor rounds.
GENERATED = InputAware(rate=0.3, norm=0.3, diversity=0.3, mask_steps=200)


@pytest.mark.parametrize(
    ("attack", "epochs"),
    [(WaNet(s=2, noise_ratio=0), 20), (GENERATED, 40)],
    ids=["wanet", "input_aware"],
)
def test_they_work_on_digits(attack: Attack, epochs: int) -> None:
    task = TASKS["digits"]
    (train, test), recipe = task.load(), replace(task.recipe, epochs=epochs)
    setup, net = task.setup(train, 0, recipe), task.net(0)
    (trigger,) = attack.plant(net, setup)
    model = Model(net, task.shape, task.classes)
    clean = Model(setup.clean(), task.shape, task.classes)
    assert model.success_rate(trigger, test) >= 0.9
    assert model.accuracy(test.x, test.y) >= clean.accuracy(test.x, test.y) - 0.03
    assert clean.success_rate(trigger, test) < 0.3
