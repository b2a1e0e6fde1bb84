"""BTI-DBF: its generator and mask, what becomes of the twins, and a suspect left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backsweep.models.model import Model
from backsweep.repairing.method import Case
from backsweep.repairing.methods.bti_dbf import RECIPES, BtiDbf, _Work
from conftest import Twins


def case_of(model: Model, twins: Twins, known: bool = False) -> Case:
    held_out, clean = twins.data.parted(0.25, 1)
    aims = [(None, twins.trigger.target)] if known else []
    return Case(model.copy("cpu"), clean, held_out, aims=aims)


def state(model: Model) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def test_the_backdoor_weakens_and_the_task_stays(twins: Twins) -> None:
    case = case_of(twins.infected, twins, known=True)
    assert BtiDbf().applies(case) == ""
    assert case.model.success_rate(twins.trigger, case.held_out) > 0.95
    repaired = BtiDbf(loss=1.0).apply(case)
    assert repaired.success_rate(twins.trigger, case.held_out) < 0.6
    assert case.accuracy(repaired) > 0.85
    clean = case_of(twins.clean, twins)
    assert clean.accuracy(BtiDbf(rounds=1, loss=1.0).apply(clean)) > 0.9


def test_the_suspect_is_untouched_and_a_seed_fixes_the_result(twins: Twins) -> None:
    told: list[float] = []
    case = replace(case_of(twins.infected, twins), tick=told.append)
    repair = BtiDbf(rounds=1, loss=1.0)
    before, random = state(case.model), torch.get_rng_state()
    first, again = repair.apply(case), repair.apply(case)
    assert same(state(case.model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.requires_grad for m in (case.model, first) for p in m.net.parameters())
    assert not same(state(first), before) and same(state(first), state(again))
    assert not same(state(first), state(repair.apply(replace(case, seed=1))))
    assert max(told) == told[-1] == pytest.approx(1.0)


def test_the_mask_keeps_what_the_classes_are_told_by(twins: Twins) -> None:
    case = case_of(twins.clean, twins)
    work = _Work(case, RECIPES["standard"], 0.02, "bti_dbf")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mask = work.decouple(case.model)
    weight, bias = case.model.head()
    z, y = case.model.features(case.clean.x), case.clean.y
    right, wrong = (((m * z) @ weight.T + bias).argmax(1) == y for m in (mask, 1 - mask))
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1
    assert float(right.float().mean()) > float(wrong.float().mean()) + 0.3


def test_the_generator_stays_near_the_images_and_goes_to_its_target(twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    work, target = _Work(case, RECIPES["standard"], 0.02, "bti_dbf"), twins.trigger.target
    x = case.clean.x[:100]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mask = work.decouple(case.model)
        for _ in range(2):
            work.invert(case.model, mask, target)
        assert work.target(case.model) == target
    with torch.no_grad():
        made = work.made(x)
    assert made.shape == x.shape and float(made.min()) >= 0 and float(made.max()) <= 1
    assert float((made - x).square().mean()) < 0.06


def test_what_is_no_image_is_declined(twins: Twins, text_twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    texts = replace(case, model=text_twins.infected.copy("cpu"))
    assert "generator draws images" in BtiDbf().applies(texts)
    row = Model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), 2).copy("cpu")
    assert "generator draws images" in BtiDbf().applies(replace(case, model=row))


@pytest.mark.parametrize("settings", [{"preset": "fast"}, {"rounds": 0}, {"loss": 2.0}, {"image": 0.0}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BtiDbf(**settings)  # type: ignore[arg-type]
