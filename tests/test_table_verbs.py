"""Guard, audit and repair of a network over rows, on one infected and one clean model."""

from __future__ import annotations

import pytest
import torch

import backsweep
from backsweep.core.errors import BadInput
from backsweep.guarding.detectors.column_transplant import ColumnTransplant
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.scanning.detectors.column_sweep import ColumnSweep
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


def test_trees_are_not_mended_and_it_says_what_to_do(table_twins: Twins) -> None:
    """What only answers has no weights; the rule of the scan is what the training set can be searched for."""
    infected, data = table_twins.infected, table_twins.data
    asked = Model.black_box(lambda x: infected.logits(x), infected.shape, modality=infected.modality)
    report = backsweep.scan(asked, data, ColumnSweep(columns=1), device="cpu")
    assert report.verdict == "backdoored" and report.findings[0].trigger is not None
    rule = report.findings[0].trigger.rule
    assert " is " in rule
    with pytest.raises(BadInput, match="train it again without the rows in which") as e:
        backsweep.repair(asked, data, report, device="cpu")
    assert rule in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(BadInput, match="load the network itself"):
        backsweep.repair(asked, data, None, device="cpu")


def test_a_guard_of_what_only_answers(table_twins: Twins, training: tuple[Data, Data, torch.Tensor]) -> None:
    """Cells are put into other rows: it takes answers alone, and is the default there."""
    infected, data = table_twins.infected, table_twins.data
    asked = Model.black_box(lambda x: infected.logits(x), infected.shape, modality=infected.modality)
    guard = backsweep.guard(asked, training[0][:600], fpr=0.05, device="cpu")
    assert [d.name for d in guard.detectors] == ["column_transplant"]
    triggered = table_twins.trigger(data.x[data.y != 1])[:100]
    assert float(guard.flag(triggered).float().mean()) > 0.8
    assert float(guard.flag(data.x[:200]).float().mean()) < 0.12
    reason = ColumnTransplant().applies(Model(torch.nn.Flatten(), (1, 1, 2)), data)
    assert "columns of a table" in reason
