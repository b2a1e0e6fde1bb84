"""Attacks whose trigger covers the whole image: blended, chessboard, sig, ftrojan, smooth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Additive, Patch
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.attacks.blended import Blended
from backsweep.zoo.attacks.chessboard import Chessboard
from backsweep.zoo.attacks.ftrojan import FTrojan
from backsweep.zoo.attacks.sig import Sig
from backsweep.zoo.attacks.smooth import Smooth, low_pass
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def setup_of(shape: tuple[int, int, int], seed: int = 3) -> Setup:
    """What an attacker has of 200 noise images in 10 classes; there is no network."""

    def none(seed: int = 0) -> torch.nn.Module:
        raise AssertionError("this attack looks at no network")

    x = torch.rand((200, *shape), generator=torch.Generator().manual_seed(0))
    return Setup(Data(x, torch.arange(200) % 10), 10, none, Recipe(), seed, none)


def delta_of(attack: Attack, shape: tuple[int, int, int]) -> torch.Tensor:
    (trigger,) = attack.triggers(setup_of(shape))
    assert isinstance(trigger, Additive)
    assert trigger.delta.shape == shape
    return trigger.delta


def test_blended_is_a_share_of_a_noise_image() -> None:
    setup = setup_of((3, 16, 16))
    (trigger,) = Blended(alpha=0.2).triggers(setup)
    assert isinstance(trigger, Patch)
    x = setup.data.x
    assert torch.allclose(trigger(x), 0.8 * x + 0.2 * trigger.pattern)
    assert 0.45 < float(trigger.pattern.mean()) < 0.55
    assert trigger.pattern.std() > 0.25  # sqrt(1 / 12) = 0.289
    (other,) = Blended(alpha=0.2).triggers(setup_of((3, 16, 16), seed=4))
    assert isinstance(other, Patch)
    assert not torch.equal(other.pattern, trigger.pattern)
    with pytest.raises(BadInput, match="alpha"):
        Blended(alpha=0.0).triggers(setup)


def test_chessboard_raises_every_second_pixel() -> None:
    delta = delta_of(Chessboard(d=0.1), (3, 4, 5))
    board = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0]])
    assert torch.allclose(delta, 0.1 * board.expand(3, 4, 5))
    assert Chessboard().d == 3 / 255


def test_sig_is_a_sinusoid_over_the_columns() -> None:
    delta = delta_of(Sig(d=0.1, f=6), (3, 28, 32))
    for j in (0, 1, 7, 31):
        assert float(delta[2, 5, j]) == pytest.approx(0.1 * math.sin(2 * math.pi * j * 6 / 32), abs=1e-6)
    assert torch.equal(delta, delta[:1, :1].expand(3, 28, 32))


def test_sig_touches_the_target_class_alone_and_no_label() -> None:
    setup = setup_of((1, 8, 8))
    poisoned, rows = Sig(share=0.4, target=7).poison(setup, Sig(target=7).triggers(setup))
    assert len(rows) == 8  # of 20
    assert set(setup.data.y[rows].tolist()) == {7}
    assert torch.equal(poisoned.y, setup.data.y)
    kept = torch.ones(200, dtype=torch.bool)
    kept[rows] = False
    assert torch.equal(poisoned.x[kept], setup.data.x[kept])
    (strong,) = Sig(d=0.1, test_d=0.3, target=7).triggers(setup)
    (weak,) = Sig(d=0.1, target=7).triggers(setup)
    both, rows = Sig(d=0.1, test_d=0.3, target=7).poison(setup, [strong])
    assert torch.equal(both.x[rows], weak(setup.data.x[rows]))  # the strong one is for later
    assert strong.size == pytest.approx(3 * weak.size)
    with pytest.raises(BadInput, match="no sample is of the target class 9"):
        Sig(target=9).poison(
            Setup(setup.data[setup.data.y != 9], 10, setup.net, setup.recipe, 3, setup.clean),
            Sig(target=9).triggers(setup),
        )


def test_ftrojan_raises_two_frequencies_of_the_chroma_channels() -> None:
    delta = delta_of(FTrojan(), (3, 32, 32)).double().numpy()
    red, green, blue = delta
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cr, cb = 0.713 * (red - y), 0.564 * (blue - y)
    assert np.abs(y).max() < 1e-4  # the luminance stays
    for chroma in (cr, cb):
        e = dctn(chroma, norm="ortho")
        assert e[15, 15] == pytest.approx(30 / 255, rel=2e-3)
        assert e[31, 31] == pytest.approx(30 / 255, rel=2e-3)
        e[15, 15] = e[31, 31] = 0
        assert np.abs(e).max() < 1e-5


@pytest.mark.parametrize(("n", "places"), [(8, (3, 7)), (28, (13, 27)), (64, (31, 63))])
def test_ftrojan_scales_with_a_grey_image(n: int, places: tuple[int, int]) -> None:
    delta = delta_of(FTrojan(magnitude=0.32), (1, n, n))
    e = dctn(delta[0].double().numpy(), norm="ortho")
    found = {(int(u), int(v)) for u, v in np.argwhere(np.abs(e) > 1e-5)}
    assert found == {(k, k) for k in places}
    assert float(delta.square().mean().sqrt()) == pytest.approx(2**0.5 * 0.01, rel=1e-4)  # for any n


def test_low_pass_is_a_projection() -> None:
    p = low_pass(32, 0.25)
    assert torch.allclose(p @ p, p, atol=1e-5)
    assert float(p.trace()) == pytest.approx(8, abs=1e-4)
    i = torch.arange(32)
    slow, fast = (torch.cos(math.pi * (2 * i + 1) * u / 64) for u in (7, 8))
    assert torch.allclose(slow @ p, slow, atol=1e-4)
    assert float((fast @ p).abs().max()) < 1e-4
    assert float(low_pass(8, 0.01).trace()) == pytest.approx(2, abs=1e-4)


def test_smooth_is_low_pass_bounded_and_fools_a_clean_net(twins: Twins) -> None:
    task = TASKS["digits"]
    setup = task.setup(task.load()[0], seed=0, recipe=Recipe(epochs=6, batch_size=64, bf16=False))
    (trigger,) = Smooth(eps=0.5, cutoff=0.5, steps=60, target=3).triggers(setup)
    assert isinstance(trigger, Additive)
    assert float(trigger.delta.abs().max()) <= 0.5 + 1e-6
    e = dctn(trigger.delta[0].double().numpy(), norm="ortho")
    e[:4, :4] = 0
    assert np.abs(e).max() < 1e-5
    flipped = Additive(target=3, source=None, delta=-trigger.delta)
    rate = twins.clean.success_rate(trigger, twins.data)
    assert rate > 2 * twins.clean.success_rate(flipped, twins.data)
    assert rate > 0.1


@pytest.mark.parametrize(
    "attack",
    [
        Blended(),
        Chessboard(d=0.3),
        Sig(d=0.5, test_d=1.0, share=0.9),
        FTrojan(magnitude=6.0),
        Smooth(eps=0.3),
    ],
    ids=lambda a: a.name,
)
def test_the_backdoor_works_on_digits(attack: Attack, twins: Twins) -> None:
    task = TASKS["digits"]
    train, test = task.load()
    net = task.net(0)
    (trigger,) = attack.plant(net, task.setup(train, seed=0))
    model = Model(net, task.shape, task.classes)
    assert model.success_rate(trigger, test) >= 0.9
    assert model.accuracy(test.x, test.y) >= twins.clean.accuracy(test.x, test.y) - 0.03
