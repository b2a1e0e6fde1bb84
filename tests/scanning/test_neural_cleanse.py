"""Neural Cleanse: catches the planted twin, passes the clean one, says what it cannot tell."""

from __future__ import annotations

import math

import pytest
import torch

import backsweep
from backsweep.inputs.image.triggers import Patch
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Report
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from conftest import Twins


def scan(twins: Twins, name: str, **settings: object) -> Report:
    detector = NeuralCleanse(**settings)  # type: ignore[arg-type]
    return backsweep.scan(getattr(twins, name), twins.data, detector, device="cpu")


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"preset": "paper", "steps": 30}, marks=pytest.mark.slow)]
)
def test_tells_the_twins_apart(twins: Twins, settings: dict[str, object]) -> None:
    bad, good = scan(twins, "infected", **settings), scan(twins, "clean", **settings)
    assert (bad.verdict, bad.targets) == ("backdoored", (twins.trigger.target,))
    assert good.verdict == "clean"
    assert good.targets == ()
    assert bad.p_value is not None
    assert bad.p_value < 0.01
    assert good.p_value is not None
    assert good.p_value > 0.05
    found = bad.findings[0]
    assert isinstance(found.trigger, Patch)
    agreed = found.trigger.overlap(twins.trigger)
    assert agreed is not None
    jaccard, inside = agreed
    assert jaccard > 0.2
    assert inside > 0.3
    assert found.attack_success_rate is not None
    assert found.attack_success_rate > 0.9


def test_every_class_is_reported(twins: Twins) -> None:
    report = scan(twins, "clean", steps=20)
    assert [e.target for e in report.evidence] == list(range(10))
    for e in report.evidence:
        assert isinstance(e.trigger, Patch)
        assert e.values["norm"] == e.trigger.size
        assert e.values["updates"] == 20
        assert 0 <= float(e.values["attack_success_rate"] or 0) <= 1


def test_same_seed_same_result_and_the_lent_model_is_unchanged(twins: Twins) -> None:
    net = twins.infected.net
    net.train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.random.get_rng_state()
    a, b = scan(twins, "infected", steps=20), scan(twins, "infected", steps=20)
    assert [e.values for e in a.evidence] == [e.values for e in b.evidence]
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    net.eval()


def evidence(
    norms: list[float], reached: list[bool] | None = None, veiled: int | None = None
) -> list[Evidence]:
    """Evidence of a scan with these norms; the mask of class `veiled` is faint and wide."""
    found = []
    for t, (n, r) in enumerate(zip(norms, reached or [True] * len(norms), strict=True)):
        mask, opacity = torch.zeros(1, 32, 32), 0.1 if t == veiled else 1.0
        mask.view(-1)[: max(1, round(n / opacity))] = opacity
        patch = Patch(target=t, source=None, mask=mask, pattern=torch.ones(3, 32, 32))
        values = {"norm": n, "reached": r, "attack_success_rate": 0.99}
        found.append(Evidence("neural_cleanse", f"class-{t}", t, None, values, patch))
    return found


def test_a_tenth_of_the_median_is_flagged() -> None:
    found = NeuralCleanse().judge(evidence([50, 60, 5, 55, 48, 52, 61, 47, 58, 53]), 10, 0.05)
    assert [(f.level, f.target) for f in found] == [(ERROR, 2)]


def test_two_targets_are_both_flagged() -> None:
    found = NeuralCleanse().judge(evidence([50, 60, 5, 55, 48, 4, 61, 47, 58, 53]), 10, 0.05)
    assert {f.target for f in found} == {2, 5}


def test_a_large_outlier_is_not_suspicious() -> None:
    found = NeuralCleanse().judge(evidence([50, 60, 500, 55, 48, 52, 61, 47, 58, 53]), 10, 0.05)
    assert [f.level for f in found] == [NOTE]


def test_a_trigger_that_never_worked_is_not_small() -> None:
    norms = [50.0, 60, 5, 55, 48, 52, 61, 47, 58, 53]
    found = NeuralCleanse().judge(evidence(norms, [n != 5 for n in norms]), 10, 0.05)
    assert [f.level for f in found] == [NOTE]


def test_two_classes_cannot_be_judged_and_that_is_said() -> None:
    (found,) = NeuralCleanse().judge(evidence([5.0, 500.0]), 2, 0.05)
    assert (found.level, found.p_value) == (WARNING, None)
    assert "2 classes" in found.message


def test_most_classes_without_a_working_trigger_is_inconclusive() -> None:
    (found,) = NeuralCleanse().judge(evidence([5.0] * 10, [t < 2 for t in range(10)]), 10, 0.05)
    assert found.level == WARNING


def test_a_faint_veil_is_no_patch() -> None:
    """Clean networks with global average pooling have such a class by nature."""
    norms = [50.0, 60, 5, 55, 48, 52, 61, 47, 58, 53]
    (found,) = NeuralCleanse().judge(evidence(norms, veiled=2), 10, 0.05)
    assert (found.level, found.target) == (WARNING, 2)
    assert "class 2 has an unusually small trigger" in found.message


def test_classes_of_very_different_size_hide_a_planted_patch() -> None:
    norms = [58.1, 345.0, 233.3, 26.7, 24.2, 37.1, 63.6, 230.0, 13.4, 59.4]
    (found,) = NeuralCleanse().judge(evidence(norms), 10, 0.05)
    assert (found.level, found.target) == (WARNING, 8)
    assert "would not stand out" in found.message


def test_both_indices_are_reported() -> None:
    norms = [50.0, 60, 5, 55, 48, 52, 61, 47, 58, 53]
    (found,) = NeuralCleanse().judge(evidence(norms), 10, 0.05)
    assert found.score == pytest.approx((math.log(52.5) - math.log(5)) / 0.25, rel=0.01)
    assert found.details["paper_index"] == pytest.approx((52.5 - 5) / (1.4826 * 5.0), rel=0.1)


@pytest.mark.parametrize("settings", [{"preset": "fast"}, {"threshold": 0.0}, {"steps": 0}, {"batch": -1}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preset|threshold|steps"):
        NeuralCleanse(**settings)  # type: ignore[arg-type]
