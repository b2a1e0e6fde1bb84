"""FST and SAU: the papers' equations, what becomes of the twins, and a suspect left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.models.architectures import gap_cnn
from backsweep.models.model import Model
from backsweep.models.neurons import head
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair
from backsweep.repairing.methods.fst import Fst, new_head
from backsweep.repairing.methods.sau import Sau, shared_examples, unshared
from conftest import Twins

SHORT: list[Repair] = [Fst(updates=5, loss=1.0), Sau(updates=6, loss=1.0)]


def case_of(model: Model, twins: Twins, seed: int = 0) -> Case:
    held_out, clean = twins.data.parted(0.25, 1)
    return Case(model.copy("cpu"), clean, held_out, seed=seed)


def state(model: Model) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.mark.parametrize(
    ("repair", "most", "least"),
    [(Fst(updates=150), 0.5, 0.9), (Sau(), 0.5, 0.9)],
    ids=["fst", "sau"],
)
def test_the_backdoor_weakens_and_the_task_stays(
    twins: Twins, repair: Repair, most: float, least: float
) -> None:
    case = case_of(twins.infected, twins)
    assert repair.applies(case) == ""
    assert case.model.success_rate(twins.trigger, case.held_out) > 0.95
    repaired = repair.apply(case)
    assert repaired.success_rate(twins.trigger, case.held_out) < most
    assert case.accuracy(repaired) > least
    clean = case_of(twins.clean, twins)
    assert clean.accuracy(repair.apply(clean)) > least


@pytest.mark.parametrize("repair", SHORT, ids=lambda r: r.name)
def test_the_suspect_is_untouched_and_a_seed_fixes_the_result(twins: Twins, repair: Repair) -> None:
    told: list[float] = []
    case = replace(case_of(twins.infected, twins), tick=told.append)
    before, random = state(case.model), torch.get_rng_state()
    first, again = repair.apply(case), repair.apply(case)
    assert same(state(case.model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.requires_grad for m in (case.model, first) for p in m.net.parameters())
    assert not same(state(first), before)
    assert same(state(first), state(again))
    assert not same(state(first), state(repair.apply(replace(case, seed=1))))
    assert max(told) == told[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (Fst, {"preset": "fast"}), (Fst, {"alpha": -0.1}), (Fst, {"rate": 0.0}), (Fst, {"updates": 0}),
        (Sau, {"preset": "fast"}), (Sau, {"eps": 0.0}), (Sau, {"updates": 0}), (Sau, {"loss": 2.0}),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(cls: type[Repair], settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        cls(**settings)


# ------------------------------------------------------------------ FST


def test_the_head_is_drawn_anew_and_nothing_else(twins: Twins) -> None:
    model = twins.infected.copy("cpu")
    twin, before, name = thawed(model), state(model), head(model)
    weight, old = new_head(twin, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(weight.shape[1])
    assert torch.equal(old, before[name])
    drawn = weight.detach()
    assert float(drawn.abs().max()) <= bound
    assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    stem = name.rpartition(".")[0]
    for key, value in state(twin).items():
        assert torch.equal(value, before[key]) == (key not in (name, f"{stem}.bias"))


def test_the_head_keeps_its_norm_and_is_pushed_away(twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    name = head(case.model)
    old = state(case.model)[name]
    near, far = (state(Fst(alpha=a, updates=60).apply(case))[name] for a in (0.0, 0.5))
    for weight in (near, far):
        assert float(weight.norm()) == pytest.approx(float(old.norm()), rel=1e-4)
    assert float((far * old).sum()) < float((near * old).sum())


def test_alpha_is_halved_where_it_costs_accuracy(twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    always = Fst(updates=5, loss=1.0).apply(case)
    never = Fst(updates=5, loss=0.0).apply(case)
    assert same(state(always), state(Fst(updates=5, alpha=0.2).apply(case)))
    assert same(state(never), state(Fst(updates=5, alpha=0.1).apply(case)))


def test_too_few_samples_are_said(twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    assert "10 at least, there are 9" in Fst().applies(replace(case, clean=case.clean[:9]))
    few = replace(case, held_out=case.held_out[:9])
    assert "there are 9" in Fst().applies(few)
    assert Fst(preset="paper").applies(few) == ""


# ------------------------------------------------------------------ SAU


def test_shared_examples_mislead_both_alike_within_the_bound(twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    model, x, y = case.model, case.clean.x[:64], case.clean.y[:64]
    delta = shared_examples(model, model, x, y, 0.2)
    assert float(delta.abs().max()) <= 0.2 + 1e-6
    changed = model.predict(x + delta)
    assert float((changed != model.predict(x)).float().mean()) > 0.5
    loss = unshared(model, model.logits(x + delta), x, x + delta, y)
    assert float(loss) > 0, "the suspect shares all with itself"
    assert float(unshared(model, model.logits(x), x, x, y)) == 0, "clean inputs mislead it nowhere"


def test_the_second_term_is_minus_log_of_the_other_classes(twins: Twins) -> None:
    case = case_of(twins.infected, twins)
    x, y = case.clean.x[:32], case.clean.y[:32]
    changed = x + shared_examples(case.model, case.model, x, y, 0.2)
    moved = torch.randn((32, 10), generator=torch.Generator().manual_seed(0))
    k, before = case.model.predict(changed), case.model.predict(x)
    misled = (k != y) & (k != before)
    p = moved.softmax(1)[torch.arange(32), k]
    assert misled.any()
    expected = float(-(1 - p[misled]).log().sum() / 32)
    assert float(unshared(case.model, moved, x, changed, y)) == pytest.approx(expected, rel=1e-4)
    sure = torch.zeros((32, 10)).scatter(1, k[:, None], 30.0).requires_grad_()
    unshared(case.model, sure, x, changed, y).backward()
    assert sure.grad is not None
    assert float(sure.grad[misled].abs().sum(1).min()) > 1e-3, "however sure it is, it can unlearn"


def test_running_statistics_stay() -> None:
    shape = (3, 16, 16)
    x = torch.rand((60, *shape), generator=torch.Generator().manual_seed(0))
    data = Data(x, torch.arange(60) % 4)
    case = Case(Model(gap_cnn(4, 3, 16), shape).copy("cpu"), data[:30], data[30:])
    after = state(Sau(updates=4, loss=1.0).apply(case))
    for name, t in state(case.model).items():
        if "running" in name:
            assert torch.equal(t, after[name])
