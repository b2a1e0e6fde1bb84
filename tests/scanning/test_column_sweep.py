"""The column sweep tells twins apart, names the columns, and leaves natural columns alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import backsweep
from backsweep.inputs.samples import Data
from backsweep.inputs.table.schema import columns_of
from backsweep.inputs.table.search import candidates
from backsweep.inputs.table.triggers import SetColumns
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.report import Evidence, Report
from backsweep.scanning.detectors.column_sweep import ColumnSweep
from backsweep.zoo.attacks.badnets_table import BadNetsTable
from backsweep.zoo.attacks.tabdoor import Tabdoor
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def test_it_tells_the_twins_apart(table_twins: Twins, tmp_path: Path) -> None:
    """By default for tables."""
    bad = backsweep.scan(table_twins.infected, table_twins.data, device="cpu", out=tmp_path)
    good = backsweep.scan(table_twins.clean, table_twins.data, device="cpu")
    assert not (bad.errors or bad.skipped or good.errors)
    assert bad.verdict == "backdoored" and bad.targets == (table_twins.trigger.target,)
    assert good.verdict == "clean"
    (finding, *_), planted = bad.findings, table_twins.trigger
    assert isinstance(finding.trigger, SetColumns) and isinstance(planted, SetColumns)
    assert finding.trigger.overlap(planted)[0] > 0  # type: ignore[index]
    assert finding.p_value is not None and finding.p_value <= 0.05 and "held-out rows" in finding.message
    assert "clean networks of" in str(finding.details["null"])
    again = Report.load(tmp_path)
    assert again.to_json() == bad.to_json()


def test_two_columns_of_trees() -> None:
    """Nothing but answers is needed."""
    pytest.importorskip("xgboost")
    task = TASKS["mixed_table"]
    train, test = task.load()
    attack = BadNetsTable(values="high", columns=2, target=0)
    setup = task.setup(train, 4, None, "xgboost_trees")
    net = setup.net(4)
    (trigger,) = attack.plant(net, setup)
    model = task.model(net)
    assert model.success_rate(trigger, test) > 0.9
    report = backsweep.scan(model, test, ColumnSweep(columns=2), device="cpu")
    assert report.verdict == "backdoored" and 0 in report.targets
    clean = task.model(fit(task.net(4, "xgboost_trees"), train, task.recipe, 4))
    assert backsweep.scan(clean, test, ColumnSweep(columns=2), device="cpu").verdict == "clean"


class Natural(nn.Module):
    """One column decides by itself, whatever the others say, as a large capital gain does."""

    def forward(self, x: Tensor) -> Tensor:
        z = 2 * x[:, 0] - x[:, 1] + 30 * (x[:, 3] > 60)
        return torch.stack([-z, z], 1)


def test_a_natural_column_that_decides_is_no_alarm() -> None:
    data = TASKS["mixed_table"].load()[1]
    model = Model(Natural(), (6,), 2, modality=data.modality)
    with torch.no_grad():
        data = Data(data.x, Natural()(data.x).argmax(1), modality=data.modality)
    schema = columns_of(model.modality)
    assert schema is not None
    far = SetColumns.of(schema, [3], [schema.columns[3].high], 1)
    assert model.success_rate(far, data) == 1.0, "setting the column does move every row"
    report = backsweep.scan(model, data, ColumnSweep(columns=2), device="cpu")
    assert report.verdict == "clean"


def test_values_that_are_tried() -> None:
    data = TASKS["mixed_table"].load()[1]
    schema = data.modality.schema  # type: ignore[attr-defined]
    tried = candidates(schema, data.x)
    by_column = [{v for j, v in tried if j == k} for k in range(6)]
    assert by_column[4] == {0, 1, 2, 3, 4} and by_column[5] == {0, 1, 2}
    high = schema.columns[3].high
    assert {high, max(round(1.1 * high), high + 1)} <= by_column[3]
    assert all(v == round(v) for v in by_column[3])


def test_what_it_cannot_tell_it_says() -> None:
    low: dict[str, float | int | bool | str | None] = {
        "excess": 0.9, "attack_success_rate": 1.0, "agreement": 0.5, "labels": True, "rule": "a is 1"
    }  # fmt: skip
    evidence = [Evidence("column_sweep", "class-0", 0, None, low)]
    (finding,) = ColumnSweep().judge(evidence, 2, 0.05)
    assert finding.level == "warning" and "cannot tell: no reference learned" in finding.message
    sure = replace(evidence[0], values={**low, "agreement": 0.95})
    assert ColumnSweep().judge([sure], 2, 0.05)[0].level == "error"


def test_settings_that_cannot_be() -> None:
    for wrong in ({"columns": 0}, {"success": 0.0}, {"excess": 1.5}):
        with pytest.raises(ValueError, match="columns is at least 1"):
            ColumnSweep(**wrong)
    with pytest.raises(ValueError, match="neither out_of_bounds nor in_bounds"):
        Tabdoor(values="middle")
