"""CUBE: groups by hand, and poisoned texts beside their unpoisoned twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import backsweep
from backsweep.auditing.audit import streamed
from backsweep.auditing.detector import TrainingSet
from backsweep.auditing.detectors.cube import Cube, groups
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.zoo.attacks.badnl import BadNL
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def of(model: Model, data: Data) -> TrainingSet:
    work = model.copy("cpu")
    z, logits = streamed(work, data.x)
    return TrainingSet(data, model.classes, z, logits, work, lambda _d, _s: model)


def test_dense_groups_are_told_apart() -> None:
    draw = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 8) * 20, [300, 200, 60], axis=0)
    found = groups(centres + draw.normal(size=centres.shape), "standard", 0)
    parts = [found[:300], found[300:500], found[500:]]
    main = [np.bincount(p[p >= 0]).argmax() for p in parts]
    assert len(set(main)) == 3
    assert all((p == m).mean() > 0.9 for p, m in zip(parts, main, strict=True))
    assert (groups(np.ones((200, 4)), "standard", 0) == 0).all(), "what is all alike is one group"


def test_the_groups_of_a_label_that_are_suspected() -> None:
    """Label 1: 6 in group 0, 3 of their own in group 1, 1 in that of label 0, which is group 2."""
    group = np.array([0] * 6 + [1] * 3 + [2] + [2] * 10)
    rows = np.arange(20) < 10
    assert Cube()._outside(group, rows) == {1: pytest.approx(0.3)}
    assert Cube(preset="paper")._outside(group, rows) == {1: pytest.approx(0.3), 2: pytest.approx(0.1)}


def points(poison: int) -> tuple[Data, torch.Tensor]:
    """Inputs of two classes around two points, and some around a third that bear the label 1."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)[torch.tensor([0] * 400 + [1] * 400 + [2] * poison)]
    x = (0.3 + 0.4 * centres + 0.04 * torch.randn((800 + poison, 8), generator=generator)).clamp(0, 1)
    y = torch.tensor([0] * 400 + [1] * (400 + poison))
    return Data(x.reshape(-1, 1, 2, 4), y), torch.arange(800 + poison) >= 800


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_poisoned_samples_lie_together_and_those_of_a_clean_set_do_not(preset: str) -> None:
    model = Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 2)), (1, 2, 4), 2)
    detector = Cube(preset=preset)
    data, bad = points(120)
    scores, evidence = detector.measure(of(model, data))
    findings = detector.judge(evidence, 2, 0.05)
    assert (findings[0].target, findings[0].level) == (1, "error")
    assert float(evidence[1].values["statistic"] or 0) == pytest.approx(120 / 520, abs=0.03)
    flagged = (scores > float(evidence[1].values["cut"] or 0)) & (data.y == 1)
    others = 0.05 if preset == "standard" else 0.2  # of the paper what lies in no group is flagged too
    assert float(flagged[bad].float().mean()) > 0.9 and float(flagged[~bad].float().mean()) < others
    levels = [f.level for f in detector.judge(detector.measure(of(model, points(0)[0]))[1], 2, 0.05)]
    assert preset == "paper" or levels == ["note"]


def test_an_alarm_that_no_unpoisoned_sets_stand_behind_is_no_verdict(text_twins: Twins) -> None:
    task = TASKS["reviews"]
    train, _ = task.load()
    attack = BadNL(target=1)
    setup = task.setup(train, 0)
    poisoned, _ = attack.poison(setup, attack.triggers(setup))
    found = backsweep.audit(text_twins.infected, poisoned, "cube", device="cpu")
    assert found.verdict == "inconclusive" and "cannot tell" in found.findings[0].message
    assert found.findings[0].p_value is None
    with pytest.raises(ValueError, match="share"):
        Cube(share=1.0)
    with pytest.raises(ValueError, match="preset"):
        Cube(preset="umap")
