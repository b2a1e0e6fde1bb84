"""Networks that only answer: what runs without gradients, layers and weights, and what says it cannot."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import backsweep
from backsweep.core.discovery import discover, make
from backsweep.core.errors import BadInput
from backsweep.guarding.detector import SampleDetector
from backsweep.guarding.guard import Guard, guard
from backsweep.models.model import Model
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE
from backsweep.scanning.collect import collect
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.mntd import MNTD
from backsweep.scanning.scan import scan
from conftest import Twins


def hidden(model: Model, **settings: Any) -> Model:
    """The model, of which only probabilities are known."""
    net = copy.deepcopy(model.net).eval()
    return Model.black_box(lambda x: net(x).softmax(1), model.shape, **settings)


@pytest.mark.parametrize(
    "form",
    [
        lambda z: z.softmax(1),
        lambda z: z.log_softmax(1),
        lambda z: z,
        lambda z: z.detach().numpy(),
        lambda z: z.softmax(1).detach().double().numpy().tolist(),
        lambda z: tuple(map(tuple, z.tolist())),
    ],
)
def test_answers_of_any_form_are_log_scores(form: Any, twins: Twins) -> None:
    net = copy.deepcopy(twins.clean.net).eval()
    model = Model.black_box(lambda x: form(net(x)), twins.clean.shape, batch=7)
    x = twins.data.x[:20]
    assert model.classes == 10
    shifted = twins.clean.logits(x).log_softmax(1)
    assert torch.allclose(model.logits(x).log_softmax(1), shifted, atol=1e-4)
    assert model.accuracy(twins.data.x, twins.data.y) == twins.clean.accuracy(twins.data.x, twins.data.y)


def test_nothing_but_answers_is_seen(twins: Twins) -> None:
    sizes = []
    net = copy.deepcopy(twins.clean.net).eval()

    def answer(x: Tensor) -> Tensor:
        sizes.append(len(x))
        assert x.dtype == torch.float32 and x.is_contiguous() and not x.requires_grad
        return net(x)

    model = Model.black_box(answer, twins.clean.shape, batch=16)
    assert model.gives == frozenset()
    x = twins.data.x[:40].clone().requires_grad_()
    assert not model.logits(x).requires_grad
    assert sizes[-3:] == [16, 16, 8]
    assert model.layers() < 1
    with pytest.raises(BadInput, match="no penultimate layer"):
        model.features(x)
    assert any("black box: answers only" in note for note in model.notes)
    other = hidden(twins.infected)
    assert model.digest == hidden(twins.clean).digest != other.digest
    assert model.copy().digest == model.digest


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: torch.zeros(len(x) + 1, 3), "for 2 inputs"),
        (lambda x: torch.full((len(x), 3), torch.nan), "finite number"),
        (lambda x: {"scores": 1}, "the black box fails on"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: torch.zeros(len(x), 3, 3), "finite number for every class"),
        (lambda x: torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0], x[:, 0, 1, 1]], 1), "multi-label"),
    ],
)
def test_what_is_no_answer_is_one_line(answer: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        Model.black_box(answer, (1, 4, 4))
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_scan_by_answers_alone_finds_the_planted_patch_and_passes_the_clean_twin(
    twins: Twins, tmp_path: Path
) -> None:
    found = scan(hidden(twins.infected), twins.data, out=tmp_path / "infected")
    assert (found.verdict, found.targets) == (BACKDOORED, (twins.trigger.target,))
    (trigger,) = [e.trigger for e in found.evidence if e.target == twins.trigger.target]
    assert trigger is not None
    assert twins.infected.success_rate(trigger, twins.data) > 0.9
    assert "queries" in found.findings[0].message
    record = json.loads((tmp_path / "infected" / "report.json").read_text())
    assert any("answers only" in note for note in record["model"]["notes"])
    assert record["model"]["sha256_of"] == "answers"
    clean = scan(hidden(twins.clean), twins.data)
    assert (clean.verdict, clean.targets) == (CLEAN, ())


def test_detectors_that_need_more_are_left_out_with_the_reason(twins: Twins, bank_file: Path) -> None:
    names: list[str | ModelDetector] = [
        "neural_cleanse",
        "cascade",
        "unicorn",
        MNTD(bank=str(bank_file)),
    ]
    net = copy.deepcopy(twins.infected.net).eval()
    report = scan(Model.black_box(net, twins.infected.shape), twins.data, names)
    assert {n.what: n.reason for n in report.skipped} == {
        "neural_cleanse": "it needs gradients of the network, and a black box only answers",
        "cascade": "it needs gradients and weights of the network, and a black box only answers",
        "unicorn": "it needs gradients and layers of the network, and a black box only answers",
    }
    assert [e.detector for e in report.evidence] == ["mntd"]
    assert scan(hidden(twins.clean), twins.data, "neural_cleanse").verdict == INCONCLUSIVE


DETECTORS = {n: d for n, d in discover(ModelDetector).items() if not d.needs}
GUARDS = {n: d for n, d in discover(SampleDetector).items() if not d.needs}


def test_methods_that_need_answers_alone_are_these() -> None:
    assert set(DETECTORS) == {"mntd", "black_box_path", "column_sweep"}
    assert set(GUARDS) == {
        "strip", "scale_up", "teco", "frequency", "step", "onion", "column_transplant",
    }  # fmt: skip


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_measures_the_same_whether_the_network_is_hidden(
    name: str, twins: Twins, bank_file: Path
) -> None:
    quick = {"steps": 2, "pool": 16, "bank": str(bank_file)}
    known = DETECTORS[name]().settings()
    detector = make(ModelDetector, name, {k: v for k, v in quick.items() if k in known})
    net = copy.deepcopy(twins.infected.net).eval()
    models = twins.infected.copy("cpu"), Model.black_box(net, twins.infected.shape).copy("cpu")
    if reason := detector.applies(models[0], twins.data):  # its own tests have it on rows
        pytest.skip(reason)
    both = [list(collect(detector, m, twins.data, seed=0, key="k")) for m in models]
    assert [dict(e.values) for e in both[0]] == [dict(e.values) for e in both[1]]


@pytest.mark.parametrize("name", sorted(set(GUARDS) - {"frequency"}))  # which never asks the network
def test_a_guard_scores_the_same_whether_the_network_is_hidden(name: str, twins: Twins) -> None:
    detector = make(SampleDetector, name)
    if reason := detector.applies(twins.infected, twins.data):
        pytest.skip(reason)
    net = copy.deepcopy(twins.infected.net).eval()
    models = twins.infected.copy("cpu"), Model.black_box(net, twins.infected.shape).copy("cpu")
    both = [detector.fit(m, twins.data)(twins.data.x[:20]) for m in models]
    assert torch.allclose(both[0], both[1], atol=1e-4)


def test_a_guard_of_a_black_box_is_kept_and_belongs_to_it_alone(twins: Twins, tmp_path: Path) -> None:
    model = hidden(twins.infected)
    fitted = guard(model, twins.data, fpr=0.05)
    assert list(fitted.scorers) == ["strip"]
    with pytest.raises(BadInput, match="needs weights of the network"):
        guard(model, twins.data, "washed_reference", fpr=0.05)
    fitted.save(tmp_path / "guard")
    again = Guard.load(tmp_path / "guard", hidden(twins.infected))
    x = twins.data.x[:10]
    assert torch.equal(again.score(x), fitted.score(x))
    with pytest.raises(BadInput, match="another model"):
        Guard.load(tmp_path / "guard", hidden(twins.clean))


def test_a_black_box_cannot_be_repaired_or_audited(twins: Twins) -> None:
    model = hidden(twins.infected)
    with pytest.raises(BadInput, match="a black box only answers") as e:
        backsweep.repair(model, twins.data, None)
    assert "\n" not in str(e.value)
    with pytest.raises(BadInput, match="black box") as e:
        backsweep.audit(model, twins.data)


def test_a_function_of_any_kind_is_copied_by_reference(twins: Twins) -> None:
    class Locked:
        def __call__(self, x: Tensor) -> Any:
            return 4 * np.asarray(x).reshape(len(x), -1)[:, :10]

        def __deepcopy__(self, memo: Any) -> None:
            raise TypeError("it cannot be copied")

    model = Model.black_box(Locked(), (1, 8, 8))
    assert model.copy("cpu").predict(twins.data.x[:3]).shape == (3,)


def test_images_reach_it_as_it_wants_them() -> None:
    seen: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1)[:, :3]

    model = Model.black_box(answer, (3, 4, 5), pixel_range=255, layout="NHWC")
    x = torch.rand(2, 3, 4, 5)
    model.logits(x)
    assert torch.allclose(seen[-1], 255 * x.permute(0, 2, 3, 1))
