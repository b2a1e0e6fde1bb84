"""Trees from formats that run no code; pickles, damage and regressions are refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backsweep
from backsweep.core.errors import BadInput
from backsweep.formats.opening import digest, load
from backsweep.inputs.samples import Data
from backsweep.inputs.table.modality import Table
from backsweep.models.model import Model
from backsweep.zoo.tasks import TASKS
from conftest import Twins

COLUMNS = 6


@pytest.fixture(scope="module")
def rows() -> Data:
    return TASKS["mixed_table"].load()[0]


def booster(rows: Data, objective: str = "binary:logistic", classes: int = 2) -> Any:
    xgboost = pytest.importorskip("xgboost")
    y = rows.y.numpy() if classes == 2 else np.arange(len(rows)) % classes
    settings = {"objective": objective, "max_depth": 3, "nthread": 1}
    if classes > 2:
        settings["num_class"] = classes
    return xgboost.train(settings, xgboost.DMatrix(rows.x.numpy(), y), 5)


def agrees(model: Model, rows: Data, expected: Any) -> None:
    """Whether the probabilities are those of the library."""
    found = model.logits(rows.x[:50]).softmax(1)
    assert torch.allclose(found, torch.as_tensor(np.asarray(expected), dtype=torch.float32), atol=1e-4)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_xgboost_answers_as_its_library(tmp_path: Path, rows: Data, suffix: str) -> None:
    made = booster(rows)
    made.save_model(tmp_path / f"model.{suffix}")
    model = load(tmp_path / f"model.{suffix}")
    assert (model.shape, model.classes, model.modality.name) == ((COLUMNS,), 2, "table")
    assert model.digest == digest(tmp_path / f"model.{suffix}") and not model.gives
    p = made.predict(__import__("xgboost").DMatrix(rows.x[:50].numpy()))
    agrees(model, rows, np.stack([1 - p, p], 1))


def test_three_classes_of_xgboost(tmp_path: Path, rows: Data) -> None:
    made = booster(rows, "multi:softprob", 3)
    made.save_model(tmp_path / "m.json")
    model = load(tmp_path / "m.json")
    assert model.classes == 3
    agrees(model, rows, made.predict(__import__("xgboost").DMatrix(rows.x[:50].numpy())))


def test_lightgbm_answers_as_its_library(tmp_path: Path, rows: Data) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    data = lightgbm.Dataset(rows.x.double().numpy(), rows.y.numpy())
    made = lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 5)
    made.save_model(tmp_path / "model.txt")
    p = made.predict(rows.x[:50].double().numpy())
    agrees(load(tmp_path / "model.txt"), rows, np.stack([1 - p, p], 1))
    text = (tmp_path / "model.txt").read_text(encoding="utf-8")
    start = text.index("left_child=")
    line = text[start : text.index("\n", start)]
    for bad in ("99999", "0"):  # outside the tree, and back to its root
        (tmp_path / "bad.txt").write_text(
            text.replace(line, f"left_child={bad} " + line.split(" ", 1)[1]), "utf-8"
        )
        with pytest.raises(BadInput, match=r"leads outside itself, or back"):
            load(tmp_path / "bad.txt")


@pytest.mark.parametrize(
    "name", ["HistGradientBoostingClassifier", "RandomForestClassifier", "LogisticRegression"]
)
def test_skops_brings_scikit_learn(tmp_path: Path, rows: Data, name: str) -> None:
    io = pytest.importorskip("skops.io")
    from sklearn import ensemble, linear_model

    kind = getattr(ensemble, name, None) or getattr(linear_model, name)
    settings = {"RandomForestClassifier": {"n_estimators": 5}, "LogisticRegression": {"max_iter": 500}}
    made = kind(**settings.get(name, {"max_iter": 5})).fit(rows.x.double().numpy(), rows.y.numpy())
    io.dump(made, tmp_path / "model.skops")
    agrees(load(tmp_path / "model.skops"), rows, made.predict_proba(rows.x[:50].double().numpy()))


class Evil:
    """What a stranger would like to be built."""

    classes_ = (0, 1)


def test_other_types_in_skops_are_refused(tmp_path: Path) -> None:
    io = pytest.importorskip("skops.io")
    io.dump(Evil(), tmp_path / "model.skops")
    with pytest.raises(
        BadInput, match=r"Evil'?, which could run code; only scikit-learn's own models are read"
    ):
        load(tmp_path / "model.skops")


def test_pickles_are_refused_with_the_format_to_use(tmp_path: Path, rows: Data) -> None:
    from sklearn.linear_model import LogisticRegression

    made = LogisticRegression().fit(rows.x.numpy()[:, :2], rows.y.numpy())
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(made))
    with pytest.raises(BadInput, match=r"a pickle of sklearn would run code .*skops.io.dump") as e:
        load(tmp_path / "model.pkl")
    assert "\n" not in str(e.value)


def test_damage_and_regressions_are_one_line(tmp_path: Path, rows: Data) -> None:
    booster(rows, "reg:squarederror").save_model(tmp_path / "r.json")
    with pytest.raises(BadInput, match=r"its objective is reg:squarederror; classifiers are scanned"):
        load(tmp_path / "r.json")
    booster(rows).save_model(tmp_path / "m.json")
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    (tmp_path / "torn.json").write_text(text[: len(text) // 2], "utf-8")
    with pytest.raises(BadInput, match="cannot be read as a model of XGBoost") as e:
        load(tmp_path / "torn.json")
    assert "\n" not in str(e.value)
    raw = json.loads(text)
    tree = raw["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][1] = 0
    (tmp_path / "round.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(BadInput, match=r"leads outside itself, or back|cannot be read"):
        load(tmp_path / "round.json")


def test_any_predict_proba_can_be_scanned_from_python(rows: Data) -> None:
    from sklearn.linear_model import LogisticRegression

    small = rows[torch.arange(300)]
    made = LogisticRegression(max_iter=500).fit(small.x.numpy(), small.y.numpy())
    report = backsweep.scan(made, small, backsweep.detectors.ColumnSweep(columns=1), device="cpu")
    assert not report.errors and report.evidence and report.verdict == "clean"
    assert report.model["modality"] == "table" and "schema" in report.model
    with pytest.raises(BadInput, match=r"give a backsweep.Model or a torch module"):
        backsweep.scan("model", small)  # type: ignore[arg-type]


def test_a_tree_of_the_zoo_is_trained_kept_and_poisoned(table_twins: Twins) -> None:
    pytest.importorskip("xgboost")
    from backsweep.models.training import fit

    task = TASKS["mixed_table"]
    train, test = task.load()
    net = fit(task.net(0, "xgboost_trees"), train, task.recipe, 0)
    again = task.net(1, "xgboost_trees")
    again.load_state_dict(net.state_dict())
    model, twin = task.model(net), task.model(again)
    assert model.accuracy(test.x, test.y) > 0.9 and torch.equal(model.predict(test.x), twin.predict(test.x))
    assert isinstance(test.modality, Table) and model.copy().predict(test.x[:3]).shape == (3,)
