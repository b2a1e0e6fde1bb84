"""`scan` with what users give it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import backsweep
import backsweep.scanning.scan
from backsweep.core.discovery import configure
from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Report
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.scanning.scan import DEFAULT_DETECTORS, choose
from conftest import Twins

FAST = NeuralCleanse(steps=2)


def test_a_plain_module_with_a_pair_or_a_dataset(twins: Twins) -> None:
    net, (x, y) = twins.clean.net, (twins.data.x, twins.data.y)
    a = backsweep.scan(net, (x, y), FAST, device="cpu")
    b = backsweep.scan(net, TensorDataset(x, y), FAST, device="cpu")
    assert a.model["classes"] == 10
    assert [e.values for e in a.evidence] == [e.values for e in b.evidence]


def test_detectors_by_name_and_by_instance(twins: Twins) -> None:
    assert choose("neural-cleanse") == [NeuralCleanse()]
    with pytest.raises(BadInput, match="only once"):
        choose(["neural_cleanse", FAST])
    with pytest.raises(BadInput, match="at least one"):
        choose([])


def test_settings_of_a_command_line() -> None:
    chosen = configure(ModelDetector, ["neural_cleanse"], ["neural_cleanse.preset=paper"])
    assert chosen == [NeuralCleanse(preset="paper")]
    assert configure(ModelDetector, DEFAULT_DETECTORS, ["cascade.steps=7"]) == [Cascade(steps=7)]
    for wrong in ("preset=paper", "neural_cleanse.preset", "nothing.x=1", "mm_bd.preset=paper"):
        with pytest.raises(BadInput):
            configure(ModelDetector, DEFAULT_DETECTORS, [wrong])


@pytest.mark.parametrize(
    ("change", "says"), [({"alpha": 0.0}, "alpha"), ({"alpha": 1.5}, "alpha"), ({"engine": "x"}, "engine")]
)
def test_bad_settings(twins: Twins, change: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        backsweep.scan(twins.clean, twins.data, FAST, **change)  # type: ignore[arg-type]


def test_no_such_device(twins: Twins) -> None:
    with pytest.raises(BadInput, match="there is cpu"):
        backsweep.scan(twins.clean, twins.data, FAST, device="warp:7")


def test_a_model_at_chance_is_inconclusive_with_the_likely_cause(twins: Twins) -> None:
    wrong = Model(twins.infected.net, (1, 8, 8), 10, mean=[30.0], std=[0.01])
    report = backsweep.scan(wrong, twins.data, FAST, device="cpu")
    assert (report.verdict, report.exit_status) == ("inconclusive", 3)
    assert "normalisation" in report.errors[0].reason
    assert not report.evidence
    shuffled = Data(twins.data.x, (twins.data.y + 1) % 10)
    assert backsweep.scan(twins.infected, shuffled, FAST, device="cpu").verdict == "inconclusive"


def test_a_detector_that_fails_is_an_error_and_not_clean(twins: Twins) -> None:
    class Fails(NeuralCleanse):
        def probe(self, *args: object, **kwargs: object) -> list[object]:  # type: ignore[override]
            raise RuntimeError("out of\nmemory")

    report = backsweep.scan(twins.clean, twins.data, Fails(), device="cpu")
    assert report.verdict == "inconclusive"
    assert report.errors[0].reason == "failed: out of memory"


def test_a_detector_that_does_not_apply_is_skipped_and_not_clean(twins: Twins) -> None:
    class Skips(NeuralCleanse):
        def applies(self, model: Model, data: Data) -> str:
            return "needs BatchNorm"

    report = backsweep.scan(twins.clean, twins.data, Skips(), device="cpu")
    assert report.verdict == "inconclusive"
    assert [(n.what, n.reason) for n in report.skipped] == [("neural_cleanse", "needs BatchNorm")]


def test_a_saved_report_can_be_judged_again(twins: Twins, tmp_path: object) -> None:
    report = backsweep.scan(twins.infected, twins.data, "neural_cleanse", device="cpu", out=str(tmp_path))
    again = Report.load(str(tmp_path))
    assert [f.score for f in again.findings] == [f.score for f in report.findings]
    assert backsweep.judge(again, alpha=0.001).settings["alpha"] == 0.001
    assert again.verdict == "backdoored"
    # so strict a test has no power left, which is not the same as clean
    assert backsweep.judge(again, alpha=1e-9).verdict == "inconclusive"


def test_a_net_that_answers_with_probabilities_is_scanned_as_one_with_logits(twins: Twins) -> None:
    soft = nn.Sequential(twins.infected.net, nn.Softmax(dim=1))
    model = Model(soft, (1, 8, 8), 10)
    x = twins.data.x[:16]
    assert torch.allclose(model.logits(x), twins.infected.logits(x), atol=1e-5)
    a = backsweep.scan(model, twins.data, NeuralCleanse(steps=10), device="cpu")
    b = backsweep.scan(twins.infected, twins.data, NeuralCleanse(steps=10), device="cpu")
    assert [e.values["norm"] for e in a.evidence] == pytest.approx([e.values["norm"] for e in b.evidence])


class Viewing(nn.Module):
    """Reshapes feature maps with view(), which channels-last memory does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.head(z.view(z.size(0), -1))


def test_a_net_that_needs_its_memory_layout_keeps_it() -> None:
    model = Model(Viewing(), (1, 8, 8), 10).copy("cpu")
    x = torch.rand(4, 1, 8, 8)
    assert model.logits(x).shape == (4, 10)
    assert model.features(x).shape == (4, 4 * 36)
