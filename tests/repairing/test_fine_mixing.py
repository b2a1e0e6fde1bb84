"""Fine-mixing: the equations, networks that were tuned with a backdoor, and their clean twins."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from backsweep.formats.weights import origins
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import fit, thawed
from backsweep.repairing.method import Case
from backsweep.repairing.methods.fine_mixing import FineMixing, mixed, purified
from backsweep.zoo.attack import Attack
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.attacks.badnl import BadNL
from backsweep.zoo.tasks import TASKS
from conftest import Twins
from shells import Shell


@dataclass(frozen=True)
class Tuned:
    """A network, what a stranger made of it with a trigger, and what an honest person did."""

    origin: Model
    infected: Model
    clean: Model
    trigger: Trigger
    data: Data

    def case(self, model: Model) -> Case:
        held_out, clean = self.data.parted(0.25, 1)
        return Case(model.copy("cpu"), clean, held_out, seed=1, origin=origins.of(model.net, self.origin.net))


def tuned_of(twins: Twins, name: str, attack: Attack) -> Tuned:
    task = TASKS[name]
    train, _ = task.load()
    setup = task.setup(train, 5, replace(task.recipe, epochs=max(2, task.recipe.epochs // 2)))
    infected, clean = copy.deepcopy(twins.clean.net), copy.deepcopy(twins.clean.net)
    (trigger,) = attack.plant(infected, setup)
    fit(clean, train, setup.recipe, 5)
    return Tuned(twins.clean, task.model(infected), task.model(clean), trigger, twins.data)


@pytest.fixture(scope="module")
def digits(twins: Twins) -> Tuned:
    return tuned_of(twins, "digits", BadNets(size=2, margin=0))


@pytest.fixture(scope="module")
def reviews(text_twins: Twins) -> Tuned:
    return tuned_of(text_twins, "reviews", BadNL(target=1))


@pytest.mark.parametrize("mix", ["average", "random"])
@pytest.mark.parametrize("name", ["digits", "reviews"])
def test_the_backdoor_goes_and_the_task_stays(name: str, mix: str, request: pytest.FixtureRequest) -> None:
    there: Tuned = request.getfixturevalue(name)
    case, repair = there.case(there.infected), FineMixing(mix=mix, updates=80)
    assert repair.applies(case) == ""
    before, accuracy = case.model.success_rate(there.trigger, case.held_out), case.accuracy(case.model)
    repaired = repair.apply(case)
    assert before > 0.9
    assert repaired.success_rate(there.trigger, case.held_out) < 0.4
    assert case.accuracy(repaired) > accuracy - 0.05
    clean = there.case(there.clean)
    assert clean.accuracy(repair.apply(clean)) > clean.accuracy(clean.model) - 0.05


def test_shares_of_both_are_mixed_as_the_equation_says(digits: Tuned) -> None:
    case = digits.case(digits.infected)
    own = {n: p.detach().clone() for n, p in case.model.net.named_parameters()}
    for mix in ("average", "random"):
        twin = thawed(case.model)
        mixed(twin, case.origin, 0.3, mix, torch.Generator().manual_seed(0))
        for name, p in twin.net.named_parameters():
            if mix == "average":
                assert torch.allclose(p, 0.3 * own[name] + 0.7 * case.origin[name], atol=1e-6)
            else:
                assert bool(((p == own[name]) | (p == case.origin[name])).all())
    shares = [(p == own[n]).float().mean() for n, p in twin.net.named_parameters() if p.numel() > 2000]
    assert torch.stack(shares).mean().item() == pytest.approx(0.3, abs=0.03)


def test_the_words_that_moved_most_for_how_rare_they_are_get_their_old_embeddings(reviews: Tuned) -> None:
    case, twin = reviews.case(reviews.clean), thawed(reviews.clean.copy("cpu"))
    name, table = next((n, p) for n, p in twin.net.named_parameters() if n in case.origin and p.ndim == 2)
    often = torch.bincount(case.clean.x.long().flatten(), minlength=len(table))
    rare, usual = int(often.argmin()), int(often.argmax())
    with torch.no_grad():
        table.copy_(case.origin[name])
        table[rare] += 1.0
        table[usual] += 1.0  # as far, but it is everywhere
    purified(twin, case.origin, case.clean, 1)
    assert torch.equal(table[rare], case.origin[name][rare])
    assert not torch.equal(table[usual], case.origin[name][usual])
    before = table.detach().clone()
    purified(twin, case.origin, case.clean, 0)
    assert torch.equal(table, before)


def test_a_language_model_is_merged_with_its_base(language_twins: Twins) -> None:
    model = language_twins.infected.copy("cpu")
    held_out, clean = language_twins.data.parted(0.25, 1)
    held_out, clean = (part.labelled_by(model.predict(part.x)) for part in (held_out, clean))
    case = Case(model, clean, held_out, seed=1, origin=origins.of(model.net, language_twins.clean.net))
    repaired = FineMixing(kept=0.3, updates=60).apply(case)
    assert case.accuracy(repaired) > 0.8
    assert repaired.success_rate(language_twins.trigger, held_out) < 0.1


def test_it_says_what_it_needs(digits: Tuned) -> None:
    without = replace(digits.case(digits.infected), origin={})
    assert "--origin" in FineMixing().applies(without)
    for wrong in ({"mix": "none"}, {"kept": 1.0}, {"updates": 0}, {"words": -1}):
        with pytest.raises(ValueError, match=r"mix|kept"):
            FineMixing(**wrong)


def test_from_the_shell(digits: Tuned, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, model in (("tuned", digits.infected), ("base", digits.origin)):
        safetensors.torch.save_file(model.net.state_dict(), tmp_path / f"{name}.safetensors")
    data, own = tmp_path / "digits.npz", ("--arch", "backsweep.archs:digits_cnn")
    np.savez(data, x=(digits.data.x[:, 0].numpy() * 255).astype("uint8"), y=digits.data.y.numpy())
    quick = ("-p", "fine_mixing.updates=60", "--method", "fine_mixing", "--no-verify")
    shell("scan", "tuned.safetensors", *own, "--data", data, "--out", "scan", "-d", "htell")
    args = ("repair", "tuned.safetensors", *own, "--data", data, "--report", "scan", *quick)
    status, _, text = shell(*args, "--out", "a.safetensors")
    assert status == 2
    assert "--origin" in text
    status, _, text = shell(*args, "--out", "a.safetensors", "--origin", "nowhere")
    assert status == 2
    assert "no such file" in text
    status, _, text = shell(*args, "--out", "a.safetensors", "--origin", "base.safetensors")
    assert (tmp_path / "a.safetensors").is_file(), text
