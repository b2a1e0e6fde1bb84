"""FLARE: its two numbers by hand, layouts and heaps, and poisoned sets beside unpoisoned ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from backsweep.auditing.audit import streamed
from backsweep.auditing.detector import TrainingSet
from backsweep.auditing.detectors.flare import Flare, split
from backsweep.auditing.neighbours import Tree, layout
from backsweep.auditing.normalisation import likelihood, normalised, remotest
from backsweep.inputs.samples import Data
from backsweep.models.model import Model

SHAPE = (1, 4, 4)


def network() -> nn.Sequential:
    """A convolution of two channels, a BatchNorm that knows their statistics, and a head."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([0.5, -1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    net.eval()
    return net


def given_of(data: Data, model: Model) -> TrainingSet:
    work = model.copy("cpu")
    z, logits = streamed(work, data.x)
    return TrainingSet(data, model.classes, z, logits, work, lambda _d, _s: model)


def test_the_least_likelihood_and_the_largest_deviation_of_a_layer() -> None:
    net, x = network(), torch.rand((3, *SHAPE), generator=torch.Generator().manual_seed(1))
    a = net[0](x).detach().flatten(2)
    mean, var = torch.tensor([0.5, -1.0])[:, None], torch.tensor([4.0, 0.25])[:, None] + 1e-5
    density = -((a - mean) ** 2) / (2 * var) - (2 * math.pi * var).log() / 2
    model = Model(net, SHAPE, 2)
    (least,), (most,) = (normalised(model, x, what) for what in (likelihood, remotest))
    assert torch.allclose(least[:, 0], density.flatten(1).min(1).values, atol=1e-4)
    assert torch.allclose(most, ((a - mean).abs() / var.sqrt()).max(2).values, atol=1e-4)


def test_an_exported_program_has_the_same_layers() -> None:
    net, x = network(), torch.rand((2, *SHAPE))
    program = torch.export.export(net, (x,)).module()
    for what in (likelihood, remotest):
        own, exported = (normalised(Model(n, SHAPE, 2), x, what) for n in (net, program))
        assert len(own) == len(exported) == 1 and torch.allclose(own[0], exported[0], atol=1e-5)


def test_a_layout_keeps_neighbours_and_its_tree_finds_the_heaps() -> None:
    draw = np.random.default_rng(0)
    x = np.repeat(np.eye(3, 6) * 8, [300, 250, 120], axis=0) + draw.normal(size=(670, 6))
    place = layout(x, 20, 0)
    assert place.shape == (670, 2) and np.isfinite(place).all()
    assert np.array_equal(place, layout(x, 20, 0)), "a seed fixes it"
    tree = Tree.of(place, 100)
    odd = split(tree, 0.02)
    assert odd is not None
    assert odd[:300].mean() < 0.05 and odd[300:].mean() > 0.9
    one = draw.normal(size=(300, 2))
    assert split(Tree.of(one, 100), 10.0) is None, "one heap does not fall apart"


def test_the_tree_is_that_of_hdbscan() -> None:
    from sklearn.cluster import HDBSCAN

    points = np.random.default_rng(1).normal(size=(400, 2)) + np.repeat(np.eye(2) * 5, 200, axis=0)
    known, tree = HDBSCAN(min_cluster_size=50, copy=True).fit(points), Tree.of(points, 50)
    for far in (0.5, 1.0, 3.0):
        theirs, ours = known.dbscan_clustering(far, 50), tree.cut(1 / far, 50)
        assert np.array_equal(theirs < 0, ours < 0)
        assert len(set(zip(theirs.tolist(), ours.tolist(), strict=True))) == len(set(ours.tolist()))


def poisoned(bad: int) -> tuple[Data, torch.Tensor]:
    """Grey images of two classes, and some with a white corner that bear the label 1."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(600 + bad) % 2
    y[600:] = 1
    x = 0.2 + 0.15 * y[:, None, None, None] + 0.03 * torch.randn((600 + bad, *SHAPE), generator=draw)
    x[600:, :, :2, :2] = 1.0
    return Data(x.clamp(0, 1), y), torch.arange(600 + bad) >= 600


def expecting(data: Data) -> Model:
    """A network whose BatchNorm has the statistics of a set."""
    net = network().train()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = None
    with torch.no_grad():
        norm.reset_running_stats()
        net(data.x)
    return Model(net.eval(), SHAPE, 2)


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_poison_lies_apart_and_an_unpoisoned_set_has_none(preset: str) -> None:
    detector, levels = Flare(preset=preset), {}
    for count in (120, 0):
        data, bad = poisoned(count)
        scores, evidence = detector.measure(given_of(data, expecting(data)))
        statistic = {e.target: float(e.values["statistic"] or 0) for e in evidence}
        levels[count] = statistic[1] / statistic[0]
        if count:
            cut = {e.target: float(e.values["cut"] or 0) for e in evidence}[1]
            flagged = (scores > cut) & (data.y == 1)
            assert float(flagged[bad].float().mean()) > 0.9
            # the paper knows no labels: the smaller class may be another heap of its own
            assert preset == "paper" or float(flagged[~bad].float().mean()) < 0.05
    assert levels[120] > 3 if preset == "standard" else levels[120] > 1
    assert preset == "paper" or levels[0] < 3


def test_what_has_no_batchnorm_is_declined() -> None:
    data, _ = poisoned(40)
    plain = Model(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), SHAPE, 2)
    assert "needs BatchNorm" in Flare().applies(given_of(data, plain))
    assert Flare().applies(given_of(data, expecting(data))) == ""


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="preset"):
        Flare(preset="umap")
    with pytest.raises(ValueError, match="xi"):
        Flare(xi=0.0)
