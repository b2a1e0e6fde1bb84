"""MM-BD: margins are the largest there are, the decision is two-sided, no data is used."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import backsweep
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import margin
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence
from backsweep.scanning.detectors.mm_bd import MmBd, gamma_p
from backsweep.zoo.attacks.blended import Blended
from backsweep.zoo.tasks import TASKS
from conftest import Twins

# Margins of a network without an outlier.
PLAIN = [20.6, 18.9, 28.0, 27.6, 30.7, 25.2, 24.7, 22.7, 27.8, 23.0]


def evidence(margins: list[float]) -> list[Evidence]:
    return [Evidence("mm_bd", f"class-{t}", t, None, {"margin": m}) for t, m in enumerate(margins)]


def diagonal(gains: list[float], side: int = 4) -> Model:
    """A network whose logit c is gain_c times pixel c; its largest margins are known."""
    layer = nn.Linear(side * side, len(gains), bias=False)
    weight = torch.zeros(len(gains), side * side)
    weight[range(len(gains)), range(len(gains))] = torch.tensor(gains)
    layer.load_state_dict({"weight": weight})
    return Model(nn.Sequential(nn.Flatten(), layer), (1, side, side), len(gains)).copy("cpu")


def probe(model: Model, detector: MmBd) -> list[Evidence]:
    nothing = Data(torch.rand((2, 1, 2, 2)), torch.tensor([0, 1]))[:0]  # the rows are never used
    return detector.probe(model, nothing, detector.units(model, nothing), 0, lambda share: None)


def test_margin_is_the_goal_above_the_best_other() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [2.0, -4.0]


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_the_largest_margin_is_found_without_data(preset: str) -> None:
    """r_c = gain_c * 1 - 0, reached by one white pixel and the others black."""
    gains = [6.0, 7.0, 8.0, 9.0, 30.0]
    found = [float(e.values["margin"] or 0) for e in probe(diagonal(gains), MmBd(preset=preset))]
    assert found == pytest.approx(gains, rel=0.02)


def test_inputs_need_not_be_images() -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.load_state_dict({"weight": torch.diag(torch.tensor([4.0, 5.0, 6.0]))})
    found = probe(Model(layer, (3,), 3).copy("cpu"), MmBd())
    assert [float(e.values["margin"] or 0) for e in found] == pytest.approx([4, 5, 6], rel=0.02)


def test_margins_are_those_of_inputs_in_the_unit_box() -> None:
    for e in probe(diagonal([5.0] * 4), MmBd(preset="paper", images=3)):
        assert float(e.values["margin"] or 0) <= 5.0 + 1e-4


def test_the_paper_preset_stops_when_the_loss_stands_still() -> None:
    """Once every image is at the corner of the box, nothing moves; the standard preset never stops."""
    paper, standard = probe(diagonal([90.0] * 4), MmBd(preset="paper")), probe(diagonal([90.0] * 4), MmBd())
    assert all(1 < int(e.values["steps"] or 0) < 100 for e in paper)
    assert all(e.values["passes"] == 30 * int(e.values["steps"] or 0) for e in paper)
    assert all((e.values["steps"], e.values["passes"]) == (70, 560) for e in standard)


def test_a_class_does_not_hang_on_its_neighbours(twins: Twins) -> None:
    """All classes in one pass, as on a GPU, or one after another."""
    model = twins.infected.copy("cpu")
    for detector in (MmBd(steps=15), MmBd(preset="paper", steps=15)):
        together = probe(model, detector)
        for unit, e in zip(detector.units(model, twins.data), together, strict=True):
            (alone,) = detector.probe(model, twins.data, [unit], 0, lambda share: None)
            assert float(alone.values["margin"] or 0) == pytest.approx(
                float(e.values["margin"] or 0), rel=0.03
            )


def test_tells_the_twins_apart(twins: Twins) -> None:
    """A blend over the whole image; the margins of a patch this small stay ordinary."""
    task, attack = TASKS["digits"], Blended()
    net = task.net(0)
    (trigger,) = attack.plant(net, task.setup(task.load()[0], seed=0))
    infected = Model(net, task.shape, task.classes)
    bad, good = (backsweep.scan(m, twins.data, MmBd(), device="cpu") for m in (infected, twins.clean))
    assert (bad.verdict, bad.targets) == ("backdoored", (trigger.target,))
    assert (good.verdict, good.targets) == ("clean", ())
    assert (bad.p_value or 1) < 0.01 < 0.05 < (good.p_value or 0)


def test_twice_the_others_is_flagged() -> None:
    margins = [*PLAIN]
    margins[3] = 60.0
    found = MmBd().judge(evidence(margins), 10, 0.05)
    assert [(f.level, f.target) for f in found] == [(ERROR, 3)]
    assert float(found[0].details["paper_p"] or 1) < 1e-3
    assert "60.0" in found[0].message


def test_the_paper_alarms_where_the_outlier_test_does_not() -> None:
    """Margins of a clean network; the gamma fit leaves out the largest of them, which is then an outlier."""
    margins = [20.6, 18.9, 28.0, 27.6, 34.7, 25.2, 24.7, 22.7, 27.8, 23.0]
    (standard,) = MmBd().judge(evidence(margins), 10, 0.05)
    (paper,) = MmBd(preset="paper").judge(evidence(margins), 10, 0.05)
    assert (standard.level, standard.target) == (NOTE, 4)
    assert (paper.level, paper.target) == (ERROR, 4)
    assert paper.p_value == standard.details["paper_p"]
    assert (paper.score or 0) > (paper.threshold or math.inf)


def test_a_small_margin_or_none_is_not_suspicious() -> None:
    for least in (0.5, 0.0, -3.0):
        found = MmBd().judge(evidence([*PLAIN[:9], least]), 10, 0.05)
        assert [f.level for f in found] == [NOTE]


def test_gamma_p_is_the_chance_of_the_largest_of_all_classes() -> None:
    """The exponent is the number of classes, the largest margin takes no part in the fit."""
    from scipy.stats import gamma

    shape, loc, scale = gamma.fit(sorted(PLAIN)[:-1])
    expected = 1 - gamma.cdf(max(PLAIN), shape, loc=loc, scale=scale) ** 10
    assert gamma_p(PLAIN) == pytest.approx(expected)
    far = gamma_p([*PLAIN[:9], 500.0])
    assert far is not None
    assert 0 <= far < 1e-12  # 1 - F^K itself would be 0 by rounding long before


@pytest.mark.parametrize("margins", [[1.0, 2.0], [5.0, 5.0, 5.0, 5.0, 9.0], [1.0, 2.0, math.inf, 4.0, 3.0]])
def test_where_no_gamma_can_be_fitted_that_is_said(margins: list[float]) -> None:
    assert gamma_p(margins) is None
    (found,) = MmBd(preset="paper").judge(evidence(margins), len(margins), 0.05)
    assert (found.level, found.p_value) == (WARNING, None)


def test_two_classes_cannot_be_judged() -> None:
    (found,) = MmBd().judge(evidence([5.0, 500.0]), 2, 0.05)
    assert (found.level, found.p_value) == (WARNING, None)


@pytest.mark.parametrize("settings", [{"preset": "fast"}, {"images": 0}, {"steps": 0}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preset|images"):
        MmBd(**settings)  # type: ignore[arg-type]
