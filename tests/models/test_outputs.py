"""Networks as people write them: what they return, what they take, what they are wrapped in."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.formats.saving import save
from backsweep.models.model import Model
from conftest import Twins

SHAPE = (3, 8, 8)
X = torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(0))


class Scored(collections.OrderedDict[str, Any]):
    """As transformers returns: a dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as e:
            raise AttributeError(name) from e


@dataclass
class Record:
    """Another way to return several tensors."""

    hidden: Tensor
    logits: Tensor


class Net(nn.Module):
    """A small classifier with any way to answer."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any] = lambda o, z: o, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, classes)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        z = self.conv(x).relu().mean((2, 3))
        return self.answer(self.fc(z), z)


def net(answer: Callable[[Tensor, Tensor], Any] = lambda o, z: o, classes: int = 5) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(answer, classes).eval()


PLAIN = net()
ANSWERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a dictionary with logits": lambda o, z: {"features": z, "logits": o, "other": o + 1},
    "a dictionary with one tensor": lambda o, z: {"out": o, "loss": None},
    "a dictionary with one that fits": lambda o, z: {"out": o, "map": z[:, :, None, None]},
    "an output of transformers": lambda o, z: Scored(loss=o.mean(), logits=o),
    "a record": lambda o, z: Record(z, o),
    "a tuple": lambda o, z: (o, z),
    "a list": lambda o, z: [o, z],
    "probabilities": lambda o, z: o.softmax(1),
    "log-probabilities": lambda o, z: o.log_softmax(1),
    "log-probabilities in a dictionary": lambda o, z: {"logits": o.log_softmax(1)},
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers(kind: str) -> None:
    model = Model(net(ANSWERS[kind]), SHAPE)
    assert model.classes == 5
    torch.testing.assert_close(model.copy().logits(X), PLAIN(X))
    assert model.features(X).shape == (6, 6)
    weight, bias = model.copy().head()
    torch.testing.assert_close(weight, PLAIN.fc.weight.detach(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(bias, PLAIN.fc.bias.detach(), atol=1e-5, rtol=1e-3)
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(model.logits(x).sum(), x)[0].abs().sum() > 0
    assert not model.answers_probabilities


def test_scores_that_are_not_the_first_of_a_tuple() -> None:
    model = Model(net(lambda o, z: (z, o)), SHAPE, classes=5)
    torch.testing.assert_close(model.logits(X), PLAIN(X))


def test_several_that_may_be_the_scores() -> None:
    two = net(lambda o, z: {"a": o, "b": z})
    with pytest.raises(BadInput, match=r"several tensors that may be class scores \('a', 'b'\)"):
        Model(two, SHAPE)
    torch.testing.assert_close(Model(two, SHAPE, classes=5).logits(X), PLAIN(X))


@pytest.mark.parametrize(
    "answer", [lambda o, z: None, lambda o, z: "dog", lambda o, z: {}, lambda o, z: {"a": 1}]
)
def test_answers_without_scores(answer: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(BadInput, match="not a tensor of class scores"):
        Model(net(answer), SHAPE)


def test_log_probabilities_whose_logits_are_hidden() -> None:
    """They are as good as logits."""
    model = Model(net(lambda o, z: (o * 2).log_softmax(1)), SHAPE)
    torch.testing.assert_close(model.logits(X), (PLAIN(X) * 2).log_softmax(1))


# ---------------------------------------------------------------------- one number, many labels


ONE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a logit": lambda o, z: o,
    "a logit without a dimension": lambda o, z: o[:, 0],
    "a sigmoid": lambda o, z: o.sigmoid(),
    "a sigmoid without a dimension": lambda o, z: o.sigmoid()[:, 0],
    "a sigmoid in a dictionary": lambda o, z: {"p": o.sigmoid()},
    "a sigmoid whose logit is hidden": lambda o, z: (o * 1).clone().add(0.0).sigmoid(),
}


@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize("kind", ONE)
def test_one_number_is_two_classes(kind: str, classes: int | None) -> None:
    model = Model(net(ONE[kind], 1), SHAPE, classes)
    z = net(classes=1)(X)
    assert model.classes == 2
    torch.testing.assert_close(model.copy().logits(X), torch.cat([z * 0, z], 1), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.predict(X), (z[:, 0] > 0).long())
    assert any("second of two classes" in note for note in model.notes)
    weight, _ = model.head()
    assert weight.shape == (2, 6)
    assert torch.equal(weight[0], torch.zeros(6))


def test_a_sigmoid_that_cannot_be_seen_before() -> None:
    model = Model(net(lambda o, z: (o.sigmoid() + z.mean(1, keepdim=True).sigmoid()) / 2, 1), SHAPE)
    p = (net(classes=1)(X).sigmoid() + PLAIN.conv(X).relu().mean((2, 3)).mean(1, keepdim=True).sigmoid()) / 2
    assert model.answers_probabilities
    torch.testing.assert_close(model.logits(X)[:, 1:], p.logit(), atol=1e-4, rtol=1e-4)


def test_one_number_for_more_classes_than_two() -> None:
    with pytest.raises(BadInput, match=r"yields \(2, 1\) for 2 inputs, not \(2, 4\)"):
        Model(net(classes=1), SHAPE, 4)


@pytest.mark.parametrize("answer", [lambda o, z: o.sigmoid(), lambda o, z: (o * 3).sigmoid() * 0.9])
def test_labels_that_are_independent_are_refused(answer: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(BadInput, match="multi-label"):
        Model(net(answer), SHAPE)


def test_small_logits_are_no_labels() -> None:
    """An untrained network may well answer with numbers between 0 and 1."""
    quiet = net()
    with torch.no_grad():
        quiet.fc.weight.mul_(1e-3)
        quiet.fc.bias.copy_(torch.linspace(0.1, 0.9, 5))
    assert Model(quiet, SHAPE).classes == 5


# ---------------------------------------------------------------------- what they take


class Raw(Net):
    """Takes pixels from 0 to 255, channels last."""

    def forward(self, x: Tensor) -> Any:
        assert x.shape[1:] == (8, 8, 3)
        return super().forward((x / 255).permute(0, 3, 1, 2))


def test_raw_pixels_and_channels_last(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        raw = Raw().eval()
    model = Model(raw, SHAPE, pixel_range=255, layout="NHWC")
    torch.testing.assert_close(model.logits(X), PLAIN(X))
    torch.testing.assert_close(model.copy().logits(X), PLAIN(X))
    assert model.reading == {"pixel_range": 255, "input_layout": "NHWC"}
    again = load(save(model, tmp_path / "m.safetensors"), Raw)
    torch.testing.assert_close(again.logits(X), PLAIN(X))
    assert again.reading == model.reading
    with pytest.raises(BadInput, match="does not take inputs"):
        Model(raw, SHAPE)
    with pytest.raises(BadInput, match="NCHW or NHWC"):
        Model(PLAIN, SHAPE, layout="HWC")


def test_normalisation_is_in_units_of_the_pixels() -> None:
    model = Model(PLAIN, SHAPE, pixel_range=255, mean=[127.5], std=[63.75])
    torch.testing.assert_close(model.logits(X), PLAIN((X - 0.5) / 0.25))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    lent = net().to(dtype)
    model = Model(lent, SHAPE)
    assert model.logits(X).dtype == torch.float32
    torch.testing.assert_close(model.copy().logits(X), copy.deepcopy(lent).float()(X))
    assert model.notes == (f"its {str(dtype)[6:]} weights are computed with in float32",)
    assert lent.fc.weight.dtype == dtype, "what was lent stays as it was"


class Casting(Net):
    """Turns its inputs to double, whatever they are."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.double())


def test_a_network_that_insists_on_its_dtype() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        casting = Casting().double().eval()
    model = Model(casting, SHAPE)
    assert model.logits(X).dtype == torch.float32
    torch.testing.assert_close(model.copy().logits(X), PLAIN(X))


def test_wrappers_are_looked_through() -> None:
    compiled: Any = torch.compile(net(), backend="eager")
    for wrapped in (nn.DataParallel(net()), compiled, nn.DataParallel(compiled)):
        model = Model(wrapped, SHAPE)
        assert type(model.net) is Net
        torch.testing.assert_close(model.logits(X), PLAIN(X))
        assert model.notes
    in_place = net()
    in_place.compile(backend="eager")
    model = Model(in_place, SHAPE)
    torch.testing.assert_close(model.copy().logits(X), PLAIN(X))
    assert model.features(X).shape == (6, 6)
    assert in_place._compiled_call_impl is not None, "what was lent stays as it was"


def test_an_architecture_in_a_wrapper(tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in PLAIN.state_dict().items()}, tmp_path / "m.pth")
    model = load(tmp_path / "m.pth", lambda: nn.DataParallel(Net()), shape=SHAPE)
    torch.testing.assert_close(model.logits(X), PLAIN(X))


# ---------------------------------------------------------------------- and what is said of it


def test_a_report_says_how_it_was_read(twins: Twins, tmp_path: Path) -> None:
    import backsweep
    from backsweep.models.checks import describe_model

    plain = describe_model(twins.clean)
    assert not {"notes", "weights", "pixel_range", "input_layout"} & plain.keys()
    path = tmp_path / "m.pth"
    weights = twins.infected.net.state_dict()
    other = twins.clean.net.state_dict()
    torch.save({"ema": {f"model.{k}": v for k, v in weights.items()}, "state_dict": other}, path)
    model = load(path, "backsweep.archs:digits_cnn", shape=(1, 8, 8), weights="ema")
    report = backsweep.scan(model, twins.data, "neural_cleanse", device="cpu")
    assert report.targets == (twins.trigger.target,)
    assert report.model["weights"] == "ema"
    assert report.model["notes"] == [
        "took the weights from 'ema'",
        "dropped the prefix 'model.' of all weights",
    ]
    from backsweep.render.repeat import command

    assert "--weights ema" in command(report)
    with pytest.raises(BadInput, match="read in another way"):
        clean = load(path, "backsweep.archs:digits_cnn", shape=(1, 8, 8), weights="state_dict")
        backsweep.repair(clean, twins.data, report, device="cpu")
