"""Washing: the accuracy comes back, the backdoor does not, and the suspect stays as it was."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import nn

from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.models.washing import RECIPES, Views, accuracy_of, pupil_of, redraw, reference_of, washed
from conftest import Twins


def test_the_accuracy_comes_back_and_the_backdoor_does_not(twins: Twins) -> None:
    model = twins.infected.copy("cpu")
    before = model.digest
    reference = washed(model, twins.data, 0)
    assert model.success_rate(twins.trigger, twins.data) > 0.9
    assert reference.success_rate(twins.trigger, twins.data) < 0.3
    assert reference.accuracy(twins.data.x, twins.data.y) > 0.9
    model._digest = ""
    assert model.digest == before
    assert not any(p.requires_grad for p in reference.net.parameters())
    assert not reference.references


def test_the_same_seed_gives_the_same_reference_and_it_is_made_once(twins: Twins) -> None:
    quick = ((3, 64, 3e-3),)
    model = twins.clean.copy("cpu")
    a, b, c = (washed(model, twins.data, seed, quick) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(a.net.parameters(), c.net.parameters(), strict=True))
    model.references["reference"] = a
    assert reference_of(model, twins.data, 9) is a


def test_a_pupil_learns_the_answers_from_nothing_and_is_made_once(twins: Twins) -> None:
    model = twins.infected.copy("cpu")
    pupil = pupil_of(model, twins.data, 3)
    assert pupil is not None
    assert pupil.success_rate(twins.trigger, twins.data) < 0.3
    assert pupil.accuracy(twins.data.x, twins.data.y) > 0.9
    weights = [p for p in model.net.parameters() if p.ndim >= 2]
    learned = [p for p in pupil.net.parameters() if p.ndim >= 2]
    assert all(not torch.allclose(p, q, atol=1e-3) for p, q in zip(weights, learned, strict=True))
    assert pupil_of(model, twins.data, 4) is pupil
    again = twins.infected.copy("cpu")
    same = pupil_of(again, twins.data, 3)
    assert same is not None and same.digest == pupil.digest
    other = pupil_of(model, twins.data, 3, "pupil2", turn=1)
    assert other is not None and other.digest != pupil.digest
    assert not pupil.references


def test_a_harder_recipe_is_tried_where_the_first_was_not_enough(twins: Twins) -> None:
    model = twins.clean.copy("cpu")
    weak = washed(model, twins.data, 0, ((1, 64, 1e-6),))
    better = washed(model, twins.data, 0, ((1, 64, 1e-6), RECIPES[0]))
    assert weak.accuracy(twins.data.x, twins.data.y) < 0.5
    assert better.accuracy(twins.data.x, twins.data.y) > 0.9


def test_the_suspect_is_asked_once_how_often_it_is_right(twins: Twins) -> None:
    model, asked = twins.clean.copy("cpu"), Data(twins.data.x, twins.data.y)
    right = model.accuracy(asked.x, asked.y)
    with patch.object(Model, "predict", autospec=True, side_effect=Model.predict) as predict:
        assert [accuracy_of(model, asked) for _ in range(3)] == [right] * 3
        assert predict.call_count == 1
        other = asked[torch.arange(20)]
        assert accuracy_of(model, other) == model.accuracy(other.x, other.y)
        assert accuracy_of(model.copy("cpu"), asked) == right


def test_only_the_later_half_is_drawn_anew() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(5.0)
        for b in net.buffers():
            b.fill_(7)
    redraw(net, torch.Generator().manual_seed(0))
    kept = {name for name, p in net.named_parameters() if bool((p == 5).all())}
    assert kept == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias"}
    weights = dict(net.named_parameters())
    assert abs(float(weights["5.weight"].detach().std()) - (2 / 64) ** 0.5) < 0.05
    assert float(weights["5.bias"].detach().abs().max()) == 0


def test_running_statistics_of_the_later_half_start_anew() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)
    )
    for b in net.buffers():
        b.fill_(7)
    redraw(net, torch.Generator().manual_seed(0))
    buffers = dict(net.named_buffers())
    assert float(buffers["1.running_mean"][0]) == 7
    assert float(buffers["3.running_mean"][0]) == 0
    assert float(buffers["3.running_var"][0]) == 1


def test_a_view_is_the_same_whatever_it_is_asked_for_with_so_that_activations_can_be_kept() -> None:
    """A wash that cannot resume trains all of the copy: for images with views that went unseen."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=4), nn.Flatten(), nn.Linear(144, 3)
    )
    x = torch.rand((40, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    model, data = Model(net, (1, 28, 28), 3).copy("cpu"), Data(x, torch.arange(40) % 3)
    views = Views(model, data, 5)
    rows = torch.randperm(len(views), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([views[row[None]] for row in rows])
    assert torch.equal(views[rows], alone)
    assert torch.equal(views[torch.arange(40)], x) and len(views) == 160
    assert not torch.equal(views[torch.arange(40, 80)], x)
    twin = washed(model, data, 0, ((3, 16, 3e-3),))
    assert twin.alike is not None, "the later half was trained on kept activations"
    assert torch.equal(next(twin.net.parameters()), next(model.net.parameters()))


def test_a_last_batch_of_one_sample_is_left_out() -> None:
    """BatchNorm refuses a batch of one; a user's number of samples may leave one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    data = Data(torch.rand((9, 1, 8, 8), generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2)
    fit(net, data, Recipe(epochs=2, batch_size=4, bf16=False), seed=0)
    assert not net.training
