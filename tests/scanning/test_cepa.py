"""CEPA: catches the planted twin, passes the clean one; mu, r3, lambda and pairs as the equations say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import backsweep
from backsweep.core.statistics import without_medians
from backsweep.inputs.image.triggers import SampleWise
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence
from backsweep.scanning.detector import Unit
from backsweep.scanning.detectors.cepa import (
    SAMPLES,
    Cepa,
    alternate,
    mean_of,
    next_lambda,
    relative,
    residual_share,
)
from conftest import Twins


def test_tells_the_twins_apart(twins: Twins) -> None:
    bad = backsweep.scan(twins.infected, twins.data, Cepa(), device="cpu")
    good = backsweep.scan(twins.clean, twins.data, Cepa(), device="cpu")
    assert (bad.verdict, bad.targets) == ("backdoored", (twins.trigger.target,))
    assert (good.verdict, good.targets) == ("clean", ())
    assert bad.p_value is not None
    assert good.p_value is not None
    assert bad.p_value < 0.05 < good.p_value
    found = bad.evidence[twins.trigger.target or 0]
    assert float(found.values["won"] or 0) >= 0.9
    trigger = found.trigger
    assert isinstance(trigger, SampleWise)
    # the sample-wise perturbations found the pixel that was stamped
    assert int(trigger.delta.abs().mean((0, 1)).argmax()) == int(twins.trigger.mask.argmax())
    for e in good.evidence:
        assert isinstance(e.trigger, SampleWise)
        assert float((e.trigger.x + e.trigger.delta).min()) >= -1e-6
        assert float((e.trigger.x + e.trigger.delta).max()) <= 1 + 1e-6
        assert 1 <= float(e.values["samples"] or 0) <= SAMPLES["standard"]


def test_the_reconstruction_at_the_penultimate_layer_wins_its_inputs(twins: Twins) -> None:
    detector = Cepa(preset="paper", steps=20)
    evidence = detector.probe(
        twins.infected.copy("cpu"),
        twins.data,
        detector.units(twins.infected, twins.data)[:3],
        0,
        lambda _: None,
    )
    for e in evidence:
        assert e.values["reached"]
        assert float(e.values["won"] or 0) >= 0.9
        assert 0 < float(e.values["r3"] or 0) < 5


def test_mu_is_the_mean_of_the_shifts() -> None:
    """The closed form minimises the second term of J."""
    shift = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    unit = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    mu = mean_of(shift, unit, 2)
    assert torch.allclose(mu[0], shift[:3].mean(0))
    assert torch.allclose(mu[1], shift[3:].mean(0))
    least = (shift - mu[unit]).square().sum()
    assert all((shift - (mu + d)[unit]).square().sum() > least for d in 0.1 * torch.randn(10, 2, 5))


def test_r3_is_zero_when_all_shifts_agree() -> None:
    shift = torch.tensor([3.0, -4.0]).expand(6, -1)
    assert residual_share(shift) == 0
    # +-e around mu: residual ||e||^2
    noise = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).repeat(3, 1)
    assert residual_share(shift + noise) == pytest.approx(5 / 25)


def test_lambda_rises_while_enough_inputs_are_won_and_falls_otherwise() -> None:
    weight = next_lambda(torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.9, 0.89, 1.0]), 0.9)
    assert weight.tolist() == pytest.approx([0.15, 0.1 / 1.5, 0.15])


def linear_model() -> Model:
    """z(x) = x / 10 (linear), logits = 100 z: the shift of z that reaches a class is known."""
    first, head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    first.weight.data, head.weight.data = 0.1 * torch.eye(4), 100 * torch.eye(4)
    return Model(nn.Sequential(nn.Flatten(), first, head), (1, 2, 2)).copy("cpu")


def test_the_alternation_finds_a_consensus_that_is_there() -> None:
    """Where z is linear in x the inputs can agree exactly; without lambda they need not."""
    model, generator = linear_model(), torch.Generator().manual_seed(0)
    x = 0.3 + 0.2 * torch.rand(12, 1, 2, 2, generator=generator)
    drawn = [Data(x, torch.zeros(12, dtype=torch.long))]
    ((shift, delta, won),) = alternate(model, drawn, [2], 0, None, 40, 0.9)
    assert won >= 0.9
    assert residual_share(shift) < 0.01
    assert torch.allclose(shift, 0.1 * delta.flatten(1), atol=1e-5)
    assert int(shift.mean(0).argmax()) == 2
    again = alternate(model, drawn * 2, [2, 1], 0, None, 40, 0.9)
    assert torch.allclose(again[0][0], shift, atol=1e-4), "units do not disturb each other"


def test_one_pass_yields_logits_and_embedding_with_a_gradient() -> None:
    model = linear_model()
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    for layer in (0, None):  # here the first layer is the penultimate one too
        logits, z = model.logits_and_embedded(x, layer)
        assert torch.equal(logits, model.logits(x))
        assert torch.allclose(z, 0.1 * x.flatten(1))
        (grad,) = torch.autograd.grad(z.sum(), x)
        assert torch.allclose(grad, torch.full_like(x, 0.1))


def test_sizes_are_relative_to_the_way_to_the_target_and_to_the_spread() -> None:
    z = torch.tensor([[0.0, 0.0], [4.0, 0.0]]).repeat(5, 1)
    unit = Unit("class-1", 1)
    reach, r1 = relative(torch.tensor([0.0, 1.0]), z, torch.tensor([0, 1] * 5), unit)
    assert reach == pytest.approx(1 / 4)
    assert r1 == pytest.approx(1 / 2)


def test_a_unit_for_each_source_and_target_in_pair_mode(twins: Twins) -> None:
    units = Cepa(mode="pair").units(twins.clean, twins.data)
    assert len(units) == 90
    assert {(u.source, u.target) for u in units} == {(s, t) for s in range(10) for t in range(10) if s != t}
    detector = Cepa(mode="pair", steps=6)
    (e,) = detector.probe(twins.clean.copy("cpu"), twins.data, units[11:12], 0, lambda _: None)
    assert (e.source, e.target) == (units[11].source, units[11].target)
    assert isinstance(e.trigger, SampleWise)
    assert e.trigger.source == e.source


def evidence(reach: float, target: int, source: int | None = None, reached: bool = True) -> Evidence:
    values = {"reach": reach, "reached": reached, "mu": reach, "attack_success_rate": 0.5}
    values |= dict.fromkeys(("r1", "r2", "r3", "won"), 1.0)
    return Evidence("cepa", f"{source}-{target}", target, source, values, None)


SIZES = [0.5, 0.6, 0.55, 0.52, 0.48, 0.58, 0.61, 0.47, 0.53, 0.57]


@pytest.mark.parametrize(
    ("size", "reached", "level"),
    [(0.2, True, ERROR), (0.2, False, NOTE), (0.45, True, NOTE), (2.0, True, NOTE)],
)
def test_a_small_shift_that_works_is_flagged(size: float, reached: bool, level: str) -> None:
    table = [evidence(r, t) for t, r in enumerate(SIZES)]
    table[3] = evidence(size, 3, None, reached)
    (found,) = Cepa().judge(table, 10, 0.05)
    assert found.level == level
    assert level == NOTE or found.target == 3


def test_two_classes_cannot_be_told() -> None:
    (found,) = Cepa().judge([evidence(0.1, 0), evidence(1.0, 1)], 2, 0.05)
    assert found.level == WARNING


def test_a_pair_is_compared_with_its_source_and_its_target() -> None:
    """Easy targets and easy sources are no backdoors; a pair below both is."""
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 0.4, (2, 6))
    table = [
        evidence(math.exp(easy[0, s] + easy[1, t] + rng.normal(0, 0.05)), t, s)
        for s in range(6)
        for t in range(6)
        if s != t
    ]
    detector = Cepa(mode="pair")
    (found,) = detector.judge(table, 6, 0.05)
    assert found.level == NOTE
    k = next(i for i, e in enumerate(table) if (e.source, e.target) == (4, 1))
    table[k] = evidence(float(table[k].values["reach"] or 0) / 6, 1, 4)
    (found,) = detector.judge(table, 6, 0.05)
    assert (found.level, found.source, found.target) == (ERROR, 4, 1)


def test_medians_of_rows_and_columns_vanish() -> None:
    table = np.array([1.0, 2, 3, 11, 12, 13, 21, 22, np.inf])
    left = without_medians(table, [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2] * 3)
    assert left[:8].tolist() == [0.0] * 8
    assert left[8] == np.inf


def test_a_set_of_perturbations_is_a_trigger(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, delta = torch.rand(3, 1, 8, 8, generator=generator), torch.rand(3, 1, 8, 8, generator=generator) - 0.5
    trigger = SampleWise(target=1, source=None, x=x, delta=delta, mean=delta.mean(0))
    trigger.save(tmp_path / "t.safetensors")
    loaded = Trigger.load(tmp_path / "t.safetensors")
    assert isinstance(loaded, SampleWise)
    assert torch.equal(loaded.delta, delta)
    assert torch.equal(loaded(x), (x + delta.mean(0)).clamp(0, 1))
    assert loaded.size == pytest.approx(float(delta.flatten(1).norm(dim=1).mean()))
    picture = np.asarray(loaded.picture())
    assert picture.shape == (16, 24)
    assert np.allclose(picture[:8, 8:16] / 255, x[1, 0], atol=0.003)
    assert np.allclose(picture[8:, 8:16] / 255, (x + delta).clamp(0, 1)[1, 0], atol=0.003)


def test_a_network_without_embedding_is_not_looked_at(twins: Twins) -> None:
    linear = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    assert "0 before its head" in Cepa().applies(linear, twins.data)
    assert Cepa().applies(twins.clean, twins.data) == ""
    assert "no layer 7" in Cepa(layer=7).applies(twins.clean, twins.data)


@pytest.mark.parametrize(
    "settings",
    [{"preset": "fast"}, {"mode": "all"}, {"threshold": 0.0}, {"steps": 1}, {"per_class": 0}, {"layer": -1}],
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preset|threshold"):
        Cepa(**settings)  # type: ignore[arg-type]
