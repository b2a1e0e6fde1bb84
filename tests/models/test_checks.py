"""Data meet a model: classes by name, classes of one sample, no labels; in scan, audit, guard and repair."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from backsweep.auditing.audit import audit
from backsweep.core.errors import BadInput
from backsweep.guarding.guard import guard
from backsweep.inputs.samples import Data
from backsweep.models.checks import answered, fitted
from backsweep.models.model import Model
from backsweep.render.pages.scan import html
from backsweep.repairing.repair import repair
from backsweep.reports.report import Report
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.scanning.scan import scan

LABELS = ("red", "green", "blue")
NAMES = ("blue", "green", "red")  # sorted, as folders are
FEW = NeuralCleanse(steps=2)
MATCHED = "the classes were matched with the model's labels by name"


def images(y: Any) -> Tensor:
    """Noise (N, 3, 6, 6) as bytes, in the colours y."""
    y = torch.as_tensor(y)
    x = torch.randint(
        0, 100, (len(y), 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    x[torch.arange(len(y)), y] += 100
    return x


@pytest.fixture
def model() -> Model:
    """Says which colour an image is of."""
    mix, head = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        mix.weight.copy_(torch.eye(3)[..., None, None])
        head.weight.copy_(20 * torch.eye(3))
    net = nn.Sequential(mix, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return Model(net, (3, 6, 6), labels=LABELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders named after the colours."""
    y = [i % 3 for i in range(60)]
    for i, pixels in enumerate(images(y).permute(0, 2, 3, 1).numpy()):
        place = tmp_path / "data" / LABELS[y[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "data"


# ---------------------------------------------------------------------- classes by name


def test_names_are_matched_from_python_as_from_the_shell(model: Model, folder: Path) -> None:
    """However the folder is opened, the classes are the model's."""
    opened = Data.open(folder, shape=model.shape)
    assert opened.names == NAMES
    reports = [scan(model, given, FEW) for given in (
        str(folder), folder, opened, Data.open(folder, names=LABELS),
    )]  # fmt: skip
    assert [r.data["clean_accuracy"] for r in reports] == [1.0] * 4
    assert len({tuple(r.data["example_labels"]) for r in (reports[0], reports[1], reports[3])}) == 1
    assert [r.data.get("notes") for r in reports] == [None, None, [MATCHED], None]


def test_matching(model: Model) -> None:
    y = torch.tensor([0, 1, 2] * 10)
    _, data = fitted(model, Data(images(2 - y), y, NAMES))
    assert data.y.tolist() == (2 - y).tolist()
    assert (data.names, data.notes) == (LABELS, (MATCHED,))
    assert fitted(model, data)[1].notes == (MATCHED,), "once"
    again = Data(images(y), y, ("RED", "Green", "blue"))
    assert fitted(model, again)[1].y.tolist() == y.tolist()
    assert fitted(model, again)[1].notes == ()


def test_matching_of_numbers_that_are_names() -> None:
    """Labels 1 to 3 of classes 0 to 2, as flowers have them, and folders named so."""
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), (3, 6, 6), labels=("1", "2", "3"))
    data = Data(images([0, 1, 2] * 10), torch.tensor([1, 2, 3] * 10), ("0", "1", "2", "3"))
    assert fitted(model, data)[1].y.tolist() == [0, 1, 2] * 10


def test_names_that_match_in_part(model: Model) -> None:
    y = torch.tensor([0, 1, 2] * 10)
    with pytest.raises(BadInput) as caught:
        fitted(model, Data(images(y), y, ("blue", "lime", "red")))
    assert "the classes 'lime' match none of the model's 3 classes" in str(caught.value)
    where_they_are = Data(images(y), y, ("red", "lime", "blue"))  # those that match stand where they should
    assert fitted(model, where_they_are)[1].y.tolist() == y.tolist()
    absent = Data(images(y % 2 * 2), y % 2 * 2, ("blue", "lime", "red"))
    assert fitted(model, absent)[1].y.tolist() == (2 - y % 2 * 2).tolist(), (
        "a class without samples may differ"
    )


def test_names_that_match_nothing(model: Model) -> None:
    y = torch.tensor([0, 1, 2] * 10)
    _, data = fitted(model, Data(images(y), y, ("x", "y", "z")))
    assert data.y.tolist() == y.tolist()
    assert data.notes == ("no class of the data is named after one of the model: taken by their numbers",)


def test_labels_that_are_twice_in_a_model() -> None:
    """ImageNet has two cranes; each stays where it is."""
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), (3, 6, 6), labels=("crane", "ant", "crane"))
    y = torch.tensor([0, 1, 2] * 10)
    assert fitted(model, Data(images(y), y, ("Crane", "Ant", "Crane")))[1].y.tolist() == y.tolist()


# ---------------------------------------------------------------------- classes of one sample


def rare(count: int = 29) -> Data:
    y = [*(i % 2 for i in range(count)), 2]
    return Data(images(y), y)


def test_a_class_of_one_sample_is_left_out(model: Model, tmp_path: Path) -> None:
    report = scan(model, rare(), FEW, out=tmp_path)
    note = "left out as a source, with one sample: class blue"
    assert report.data["notes"] == [note]
    assert (report.data["samples"], report.data["classes_present"]) == (29, 2)
    assert not report.errors
    assert len(report.evidence) == 3, "as a target it is looked at"
    assert Report.load(tmp_path).data == report.data
    assert note in html(report)
    assert "notes" not in scan(model, rare()[:29], FEW).data


@pytest.mark.parametrize("y", [[0] * 19 + [2], [0, 1, 2] + [0] * 18, [0] * 10 + [1] * 9 + [2]])
def test_with_too_little_left_nothing_is_said(model: Model, y: list[int]) -> None:
    report = scan(model, Data(images(y), y), FEW)
    assert report.exit_status == 3
    assert "too few samples to tell" in report.errors[0].reason
    assert not report.evidence


def test_hopeless_data_are_refused(model: Model) -> None:
    for y, words in (([0] * 30, "all samples are of class red"), ([0, 1] * 5, "10 in all")):
        with pytest.raises(BadInput, match=words):
            scan(model, Data(images(y), y), FEW)


def test_the_others(model: Model) -> None:
    """A training set keeps every sample; a guard and a repair do without the class."""
    made = audit(model, rare())
    assert made.data["samples"] == 30
    assert "notes" not in made.data
    fit = guard(model, rare(399), ["scale_up"], fpr=0.05)
    assert fit.about["data"]["samples"] == 399
    assert fit.about["data"]["notes"] == ["left out as a source, with one sample: class blue"]
    for act in (guard, partial(repair, report=None)):
        with pytest.raises(BadInput, match="too few samples to tell"):
            act(model, Data(images([0] * 19 + [2]), [0] * 19 + [2]))


# ---------------------------------------------------------------------- no labels


def test_the_models_own_answers_as_labels(model: Model, tmp_path: Path) -> None:
    y = [0, 1, 2] * 10
    data = Data(images(y), None)
    report = scan(model, data, FEW, out=tmp_path)
    assert report.data["clean_accuracy"] is None
    assert len(report.evidence) == 3
    assert not report.errors
    known = scan(model, Data(images(y), y), FEW)
    assert [e.values for e in known.evidence] == [e.values for e in report.evidence]
    assert "not measured" in html(Report.load(tmp_path))
    fit = guard(model, Data(images([0, 1, 2] * 130), None), ["scale_up"], fpr=0.05)
    assert fit.about["data"]["clean_accuracy"] is None
    one = [0] * 25 + [2]
    assert "class blue" in scan(model, Data(images([*one, 1, 1]), None), FEW).data["notes"][0]


def test_where_labels_are_needed(model: Model) -> None:
    data = Data(images([0, 1, 2] * 10), None)
    for act in (audit, partial(repair, report=None)):
        with pytest.raises(BadInput, match="no labels in this data, and they are needed here"):
            act(model, data)


def test_one_answer_to_everything(model: Model) -> None:
    with pytest.raises(BadInput, match="the model answers red to every sample; check the normalisation"):
        answered(model, Data(images([0] * 30), None))


def test_a_file_without_labels(model: Model, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images([0, 1, 2] * 10).numpy())
    report = scan(model, Data.open(tmp_path / "d.npz", labels="model"), FEW)
    assert report.data["notes"] == ["no labels were read: the model's own answers take their place"]
