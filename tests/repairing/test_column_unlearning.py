"""Column unlearning: what becomes of the twins over a table, without a trigger too, and what it needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import backsweep
from backsweep.inputs.table.triggers import SetColumns
from backsweep.models.model import Model
from backsweep.repairing.method import Case
from backsweep.repairing.methods.column_unlearning import ColumnUnlearning, stamped
from backsweep.repairing.repair import usual
from conftest import Twins

QUICK = ColumnUnlearning(updates=150, rows=3000)


def case_of(twins: Twins, model: Model) -> Case:
    held_out, clean = twins.data.parted(0.5, 1)
    return Case(model.copy("cpu"), clean, held_out, seed=3)


@pytest.fixture(scope="module")
def case(table_twins: Twins) -> Case:
    return case_of(table_twins, table_twins.infected)


@pytest.fixture(scope="module")
def repaired(case: Case) -> Model:
    return QUICK.apply(case)


def test_a_backdoor_that_no_scan_named_goes_and_the_accuracy_stays(
    table_twins: Twins, case: Case, repaired: Model
) -> None:
    assert case.model.success_rate(table_twins.trigger, case.held_out) > 0.9
    assert repaired.success_rate(table_twins.trigger, case.held_out) < 0.3
    assert case.accuracy(repaired) > case.accuracy(case.model) - 0.02


def test_a_clean_network_keeps_its_accuracy(table_twins: Twins) -> None:
    case = case_of(table_twins, table_twins.clean)
    assert case.accuracy(QUICK.apply(case)) > case.accuracy(case.model) - 0.02


def test_the_suspect_is_untouched_and_a_seed_fixes_the_result(
    table_twins: Twins, case: Case, repaired: Model
) -> None:
    for name, value in table_twins.infected.net.state_dict().items():
        assert torch.equal(case.model.net.state_dict()[name], value)
    again = QUICK.apply(case).net.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in repaired.net.state_dict().items())


def test_a_recovered_trigger_is_set_in_half_of_the_rows(table_twins: Twins) -> None:
    x, trigger = table_twins.data.x[:400], table_twins.trigger
    assert isinstance(trigger, SetColumns)
    here = stamped(x.clone(), [trigger], torch.Generator().manual_seed(0))
    changed = (here != x).any(1)
    assert 0.35 < float(changed.float().mean()) < 0.6
    assert torch.equal(here[changed], trigger(x[changed])), "and the others are as they were"
    assert torch.equal(stamped(x.clone(), [], torch.Generator().manual_seed(0)), x)


def test_what_it_needs(twins: Twins, case: Case) -> None:
    assert QUICK.applies(case) == ""
    held_out, clean = twins.data.parted(0.25, 1)
    images = Case(twins.infected.copy("cpu"), clean, held_out)
    assert "sets columns of a table" in QUICK.applies(images)
    assert "at least 5 for each class" in QUICK.applies(replace(case, clean=case.clean[:8]))
    for wrong in ({"updates": 0}, {"columns": 0}, {"rows": 0}, {"batch": 1}, {"rate": 0.0}):
        with pytest.raises(ValueError):
            ColumnUnlearning(**wrong)


def test_it_is_what_tables_are_repaired_with(table_twins: Twins) -> None:
    infected, data = table_twins.infected, table_twins.data
    assert usual(infected)[0] == "column_unlearning"
    report = backsweep.scan(infected, data, device="cpu")
    found = backsweep.repair(infected, data, report, device="cpu", verify=False)
    assert found.method == "column_unlearning" and not found.skipped
    assert found.model.success_rate(table_twins.trigger, data) < 0.15
    assert found.model.accuracy(data.x, data.y) > infected.accuracy(data.x, data.y) - 0.02
