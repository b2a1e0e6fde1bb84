"""Tables that scikit-learn brings, and its models, as the zoo trains and keeps them."""

from __future__ import annotations

import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.models.training import fit
from backsweep.zoo.samples import tables
from backsweep.zoo.tasks import TASKS

SMALL = (
    "breast_cancer", "wine", "diabetes", "digit_columns", "digit_columns-parity", "digit_columns-four",
    "mixed_table",
)  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_task_says_what_its_columns_are(name: str) -> None:
    task = TASKS[name]
    train, test = task.load()
    schema = train.modality.schema  # type: ignore[attr-defined]
    assert task.sizes == tuple(len(c.categories) for c in schema.columns)
    assert set(train.y.tolist()) == set(test.y.tolist()) == set(range(task.classes))
    assert len(schema.classes) == task.classes
    rows = {tuple(r) for r in train.x.tolist()}
    assert sum(tuple(r) in rows for r in test.x.tolist()) <= 0.02 * len(test), "no row is in both parts"


def test_digits_are_grouped_and_others_left_out() -> None:
    train, test = tables.digit_columns([(1, 7), (8,)])
    assert train.names == ("1 7", "8")
    sevens_and_ones = sum(int((d.y == 0).sum()) for d in (train, test))
    assert sevens_and_ones == 182 + 179


@pytest.mark.parametrize("arch", ["random_forest", "logistic_regression"])
def test_models_of_scikit_learn_are_kept_as_bytes(arch: str) -> None:
    pytest.importorskip("skops")
    task = TASKS["wine"]
    train, test = task.load()
    net = fit(task.net(3, arch), train, task.recipe, 3)
    model = task.model(net)
    assert not model.gives, "it only answers"
    assert model.accuracy(test.x, test.y) > 0.9
    again = task.net(0, arch)
    again.load_state_dict(net.state_dict())
    assert torch.equal(task.model(again).predict(test.x), model.predict(test.x))


def test_adult_with_another_class(tmp_path: object) -> None:
    with pytest.raises(BadInput, match=r"adult\.data is not there"):
        tables.adult_column("sex", tmp_path)  # type: ignore[arg-type]
