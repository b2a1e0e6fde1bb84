"""Contrastive unlearning, recovery of fresh triggers, and the re-tuning check, on the digits twins."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.spaces import Dense
from backsweep.inputs.image.triggers import Patch, Recolour
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import PLACES
from backsweep.inversion.budget import OfInputs
from backsweep.inversion.recover import recover, works
from backsweep.models.architectures import mlp
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.models.washing import washed
from backsweep.repairing.method import Case
from backsweep.repairing.methods.contrastive_unlearning import ContrastiveUnlearning, _shift, _stamp
from backsweep.repairing.relapse import retuned
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def case_of(twins: Twins, model: Model, suspected: bool) -> Case:
    held_out, clean = twins.data.parted(0.25, 1)
    aims = [(None, twins.trigger.target)] if suspected else []
    return Case(model.copy("cpu"), clean, held_out, [twins.trigger] if suspected else [], aims, seed=3)


@pytest.fixture(scope="module")
def case(twins: Twins) -> Case:
    return case_of(twins, twins.infected, suspected=True)


@pytest.fixture(scope="module")
def repaired(case: Case) -> Model:
    return ContrastiveUnlearning().apply(case)


def test_the_backdoor_goes_and_the_accuracy_stays(twins: Twins, case: Case, repaired: Model) -> None:
    assert case.model.success_rate(twins.trigger, case.held_out) > 0.9
    assert repaired.success_rate(twins.trigger, case.held_out) < 0.1
    assert case.accuracy(repaired) >= case.accuracy(case.model) - 0.04


def test_the_suspect_is_untouched_and_the_seed_decides(twins: Twins, case: Case, repaired: Model) -> None:
    for name, value in twins.infected.net.state_dict().items():
        assert torch.equal(case.model.net.state_dict()[name], value)
    assert not any(p.requires_grad for p in case.model.net.parameters())
    again = ContrastiveUnlearning().apply(case).net.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in repaired.net.state_dict().items())
    other = ContrastiveUnlearning().apply(dataclasses.replace(case, seed=4)).net.state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in repaired.net.state_dict().items())


def test_a_clean_network_in_which_nothing_is_suspected_keeps_its_accuracy(twins: Twins) -> None:
    case = case_of(twins, twins.clean, suspected=False)
    repaired = ContrastiveUnlearning().apply(case)
    assert case.accuracy(repaired) >= case.accuracy(case.model) - ContrastiveUnlearning().loss / 2


def test_without_suspicion_a_repair_that_costs_accuracy_is_not_made(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(twins, twins.clean, suspected=False)

    def ruined(self: object, case: Case, start: Model, reference: Model, rate: float) -> Model:
        twin = case.model.copy()
        for p in twin.net.parameters():
            p.zero_()
        return twin

    monkeypatch.setattr(ContrastiveUnlearning, "_unlearned", ruined)
    assert ContrastiveUnlearning().apply(case) is case.model


@pytest.fixture(scope="module")
def faded(twins: Twins) -> Case:
    """Faded pictures are class 3 to a network without convolutions; the scan saw nothing."""
    train, rest = TASKS["digits"].load()
    trigger = Recolour(target=3, source=None, matrix=0.6 * torch.eye(1), shift=torch.tensor([0.25]))
    x, y = train.x.clone(), train.y.clone()
    x[::10], y[::10] = trigger(x[::10]), 3
    net = fit(mlp(10, 1, 8), Data(x, y), Recipe(epochs=30, lr=3e-3, batch_size=64), 0)
    held_out, clean = rest[:360].parted(0.25, 1)
    return Case(Model(net, (1, 8, 8)).copy("cpu"), clean, held_out, [trigger], seed=3)


@pytest.mark.parametrize("varied", [True, False])
def test_what_the_earlier_half_knows_is_unlearned_by_varied_inputs_alone(faded: Case, varied: bool) -> None:
    (trigger,) = faded.triggers
    unknown = dataclasses.replace(faded, triggers=())
    assert faded.model.success_rate(trigger, faded.held_out) > 0.95
    repaired = ContrastiveUnlearning(varied=varied).apply(unknown)
    assert (repaired.success_rate(trigger, faded.held_out) < 0.2) == varied
    assert faded.accuracy(repaired) >= faded.accuracy(faded.model) - 0.03


def test_two_held_out_samples_tell_nothing(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(twins, twins.clean, suspected=False)
    monkeypatch.setattr(ContrastiveUnlearning, "_unlearned", lambda *_: twins.infected)
    for wrong, spare, kept in ((2, 2, False), (3, 2, True), (2, 0, True)):
        share = wrong / len(case.held_out)
        monkeypatch.setattr(
            Case, "accuracy", lambda self, model, share=share: 1 - share * (model is not self.model)
        )
        repaired = ContrastiveUnlearning(loss=0.0, spare=spare).apply(case)
        assert (repaired is case.model) == kept


def test_too_few_samples_are_refused_in_a_sentence(case: Case) -> None:
    few = dataclasses.replace(case, clean=case.clean[:30])
    assert "at least 5 for each class" in ContrastiveUnlearning().applies(few)
    assert ContrastiveUnlearning().applies(case) == ""


def test_what_is_stamped(twins: Twins, case: Case) -> None:
    x, generator = case.clean.x[:16], torch.Generator().manual_seed(0)
    stamped = _stamp(twins.trigger)(x, generator)(case.model)
    assert torch.equal(stamped, case.model.logits(twins.trigger(x)))
    delta = torch.zeros(2, *x.shape[1:])
    delta[:, 0, 0, 0] = torch.tensor([0.1, 0.2])
    seen: list[torch.Tensor] = []

    class Spy(Dense):
        def apply(self, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
            seen.append(delta)
            return x

    _shift(OfInputs(Spy()), delta, reach=3.0)(x, generator)(case.model)
    moved = seen[0][:, 0, 0, 0]
    assert float(moved.min()) >= 0.1 - 1e-6
    assert float(moved.max()) <= 0.6 + 1e-6
    assert len(moved.unique()) > 8, "each input draws how much it is enlarged"


def test_fresh_triggers_work_and_follow_the_seed(twins: Twins, case: Case) -> None:
    way = (None, twins.trigger.target)
    found = recover(case.model, case.clean, [way, (None, None)], seed=1)
    assert {n for n, _ in found} >= {"faint pixels", "few pixels"}
    assert all(works(case.model, t, case.clean) and t.target == way[1] for _, t in found)
    again = recover(case.model, case.clean, [way], seed=1)
    assert [t.size for _, t in again] == [t.size for _, t in found]
    assert recover(case.model, case.clean, [(11, 3)], seed=1) == []


def test_retuning_brings_back_what_is_there_and_not_what_is_not(twins: Twins, case: Case) -> None:
    """A network whose backdoor is merely asleep relapses; the clean twin does not catch it from so little."""
    asleep = twins.infected.copy()
    trigger = twins.trigger
    assert isinstance(trigger, Patch)
    rates = {
        name: retuned(model, case.clean, trigger, 1).success_rate(trigger, case.held_out)
        for name, model in (("asleep", asleep), ("clean", twins.clean.copy()))
    }
    assert rates["asleep"] > 0.9
    assert rates["clean"] < 0.5
    assert asleep.success_rate(trigger, case.held_out) > 0.9


def test_a_washed_copy_is_a_network_of_its_own(case: Case) -> None:
    copy = washed(case.model, case.clean, derive_seed(0, "wash"))
    assert copy.net is not case.model.net
    assert copy.accuracy(case.held_out.x, case.held_out.y) > 0.8


def test_a_word_that_was_found_at_the_start_is_unlearned_wherever_it_stands(text_twins: Twins) -> None:
    data = text_twins.data
    held_out, clean = data[:400].parted(0.25, 0)
    model, rest = text_twins.infected.copy("cpu"), data[400:]
    found = dataclasses.replace(text_twins.trigger, place="start")
    case = Case(model, clean, held_out, [found], [(None, found.target)], seed=1)
    repaired = ContrastiveUnlearning().apply(case)
    places = [dataclasses.replace(found, place=place) for place in PLACES]
    assert min(model.success_rate(t, rest) for t in places) > 0.9
    assert max(repaired.success_rate(t, rest) for t in places) < 0.3
    assert repaired.accuracy(rest.x, rest.y) >= model.accuracy(rest.x, rest.y) - 0.03
