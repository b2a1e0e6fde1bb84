"""CLIBE: a few-shot change of weights carries over where a backdoor is; the lent network stays as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import backsweep
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Evidence
from backsweep.scanning.detectors.clibe import Clibe, changed, entropy
from backsweep.zoo.tasks import TASKS
from conftest import Twins

QUICK = Clibe(steps=20, draws=1)


def test_the_planted_class_needs_less_than_the_others_and_no_class_of_the_twin_does(twins: Twins) -> None:
    """Without clean networks of this kind it is no accusation: cannot tell."""
    before = {k: v.clone() for k, v in twins.infected.net.state_dict().items()}
    bad, good = (backsweep.scan(m, twins.data, QUICK, device="cpu") for m in (twins.infected, twins.clean))
    assert not bad.errors and not bad.skipped
    (found, *_) = bad.findings
    assert (found.target, found.level, bad.verdict) == (twins.trigger.target, "warning", "inconclusive")
    assert "cannot tell, no clean networks like this one were measured" in found.message
    assert found.score is not None and found.threshold is not None and found.score > found.threshold
    assert (good.verdict, good.findings[0].level) == ("clean", "note")
    assert all(torch.equal(v, before[k]) for k, v in twins.infected.net.state_dict().items())
    assert not any(p.grad is not None for p in twins.infected.net.parameters())


def test_a_threshold_set_by_hand_accuses(twins: Twins) -> None:
    bad = backsweep.scan(twins.infected, twins.data, Clibe(steps=20, draws=1, least=0.5), device="cpu")
    assert (bad.verdict, bad.targets) == ("backdoored", (twins.trigger.target,))


def test_the_paper_judges_by_the_entropy_of_the_same_evidence() -> None:
    evidence = [
        Evidence("clibe", f"class-{t}", t, None, {"size": size, "entropy": spread, "labels": True})
        for t, (size, spread) in enumerate([(-2.6, 0.9), (-3.0, 0.3)])
    ]
    (ours,) = Clibe(least=0.3).judge(evidence, 2, 0.05)
    assert (ours.target, ours.level) == (1, "error") and ours.score == pytest.approx(0.4)
    (paper,) = Clibe(preset="paper").judge(evidence, 2, 0.05)
    assert (paper.target, paper.level, paper.score) == (1, "error", -0.3)
    (calm,) = Clibe(least=0.5).judge(evidence, 2, 0.05)
    assert (calm.target, calm.level, calm.p_value) == (1, "note", None)
    empty = [Evidence("clibe", f"class-{t}", t, None, {"size": None, "labels": True}) for t in range(2)]
    (unsure,) = Clibe().judge(empty, 2, 0.05)
    assert unsure.level == "warning" and unsure.message.startswith("cannot tell")


def test_of_transformers_the_weights_of_attention_are_changed_of_others_the_middle_ones(
    text_twins: Twins,
) -> None:
    task = TASKS["reviews"]
    names, attention = changed(task.model(task.net(0, "small_bert")))
    assert names == [f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("qkv", "out")] and attention
    names, attention = changed(text_twins.clean)
    assert names == [f"convolutions.{i}.weight" for i in range(3)] and not attention
    deep = nn.Sequential(nn.Flatten(), *(nn.Linear(4, 4) for _ in range(8)), nn.Linear(4, 2))
    assert changed(Model(deep, (1, 2, 2)))[0] == [f"{i}.weight" for i in (3, 4, 5, 6)]


def test_a_network_without_layers_before_its_head_is_skipped() -> None:
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    data = Data(torch.rand(40, 1, 2, 2), torch.arange(40) % 2)
    assert "no weight before the last layer" in Clibe().applies(model, data)


def test_entropy_is_none_where_all_samples_are_alike() -> None:
    assert entropy(torch.full((8,), 1.5)) == 0.0
    assert entropy(torch.tensor([0.5, 1.5, 2.5, 3.5])) == pytest.approx(math.log(4))


@pytest.mark.parametrize("wrong", [{"preset": "quick"}, {"steps": 0}, {"draws": 0}, {"radius": 0.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"preset|steps"):
        Clibe(**wrong)
