"""Guard, audit and repair of a network over rows, on one infected and one clean model."""

from __future__ import annotations

import pytest
import torch

import backsweep
from backsweep.inputs.samples import Data
from backsweep.zoo.attacks.badnets_table import BadNetsTable
from backsweep.zoo.tasks import TASKS
from conftest import Twins


@pytest.fixture(scope="module")
def training() -> tuple[Data, Data, torch.Tensor]:
    """The clean training set of the twins, the poisoned one, and its poisoned rows."""
    task = TASKS["mixed_table"]
    train, _ = task.load()
    attack, setup = BadNetsTable(values="rare", columns=1, target=1), task.setup(train, seed=0)
    return train, *attack.poison(setup, attack.triggers(setup))


def test_a_guard_flags_triggered_rows(table_twins: Twins, training: tuple[Data, Data, torch.Tensor]) -> None:
    guard = backsweep.guard(table_twins.infected, training[0], ["confused_expert"], fpr=0.05, device="cpu")
    data = table_twins.data
    assert float(guard.flag(table_twins.trigger(data.x[data.y != 1])).float().mean()) > 0.8
    assert float(guard.flag(data.x).float().mean()) < 0.12
    strip = backsweep.guard(table_twins.infected, training[0], ["strip"], fpr=0.05, device="cpu")
    assert float(strip.flag(data.x).float().mean()) < 0.12, "it runs; what it catches here is little"


def test_an_audit_scores_the_poisoned_rows_highest(
    table_twins: Twins, training: tuple[Data, Data, torch.Tensor]
) -> None:
    _, poisoned, rows = training
    found = backsweep.audit(table_twins.infected, poisoned, ["cross_confusion"], device="cpu")
    assert not found.errors
    bad = torch.zeros(len(poisoned), dtype=torch.bool)
    bad[rows] = True
    scores, own = found.scores["cross_confusion"], poisoned.y == 1
    assert float((scores[bad][:, None] > scores[own & ~bad]).float().mean()) > 0.9
