"""Large sets of images stay bytes; whatever is done with them gives what a tensor of float32 gives."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import FUZZ
from torch import Tensor, nn

from backsweep.inputs import held
from backsweep.inputs.held import Held
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.image.spaces import Dense
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.scanning.scan import scan

PIXELS = torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set is a large one."""
    monkeypatch.setattr(held, "LARGE", 2**10)


def packed(rows: Tensor | None = None) -> tuple[Any, Tensor]:
    """The same images held and as a tensor."""
    x, whole = Held(PIXELS, IMAGE.values), PIXELS.float() / 255
    return (x, whole) if rows is None else (x.at(rows), whole[rows])


@FUZZ
@given(st.data())
def test_rows(data: st.DataObject) -> None:
    x, whole = packed()
    for _ in range(data.draw(st.integers(0, 2))):
        rows = torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1)))
        x, whole = x.at(rows), whole[rows]
    picks: list[Any] = [
        data.draw(st.integers(-len(x), len(x) - 1)),
        slice(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 50)), data.draw(st.integers(1, 3))),
        torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1))), dtype=torch.long),
        torch.arange(len(x)) % 2 == 0,
        [0, len(x) - 1], None, (slice(None), 0), (0, 1),
    ]  # fmt: skip
    for pick in picks:
        assert torch.equal(x[pick], whole[pick])
        assert x[pick].dtype == torch.float32


def test_it_acts_like_a_tensor() -> None:
    for rows in (None, torch.tensor([5, 1, 1, 30])):
        x, whole = packed(rows)
        assert (len(x), x.shape, x.ndim, x.dtype) == (len(whole), whole.shape, 4, torch.float32)
        assert torch.equal(torch.cat(list(x.split(3))), whole)
        assert all(map(torch.equal, x.split(2, dim=1), whole.split(2, dim=1)))
        assert torch.equal(x.mean(0), whole.mean(0))
        assert torch.equal(x.mean((2, 3)), whole.mean((2, 3)))
        assert torch.equal(x.std(0), whole.std(0))
        assert torch.equal(x - whole.mean(0), whole - whole.mean(0))
        assert torch.equal(1 - x, 1 - whole)
        assert torch.equal(x == whole, torch.ones_like(whole, dtype=torch.bool))
        assert torch.equal(torch.cat([x, whole]), torch.cat([whole, whole]))
        assert torch.equal(x.flatten(1), whole.flatten(1))
        assert torch.equal(torch.stack(list(x)), whole)
        assert torch.equal(x.to(torch.float64), whole.double())
        assert torch.equal(pickle.loads(pickle.dumps(x))[:], whole)
        assert np.array_equal(np.asarray(x), whole.numpy())
        assert x.to("cpu") is x
    with pytest.raises(AttributeError):
        _ = x.no_such_thing


def test_data_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Data(PIXELS, LABELS)
    monkeypatch.setattr(held, "LARGE", 2**10)
    large = Data(PIXELS, LABELS)
    assert isinstance(plain.x, Tensor)
    assert isinstance(large.x, Held)
    assert plain.digest == large.digest
    for one, other in ((plain, large), *zip(plain.split(3), large.split(3), strict=True)):
        assert one.digest == other.digest
        assert torch.equal(one.x, other.x[:])
        assert torch.equal(one.sample(5, 1).x, other.sample(5, 1).x[:])
    half = large.split(3)[0]
    assert isinstance(half.x, Held), "a part of a large set copies nothing"
    assert half.x._kept.data_ptr() == PIXELS.data_ptr()
    assert isinstance(large[:2].x, Tensor), "a small part is a plain tensor"
    assert large.like(large.x, LABELS).digest == plain.digest


def test_the_mean_sample_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many columns as fit are unpacked at once, in steps in which sums come out the same."""
    x = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    whole = x.float() / 255
    want = Dense().range(whole)
    monkeypatch.setattr(held, "LARGE", 2**18)
    assert torch.equal(Held(x, IMAGE.values).mean(0), whole.mean(0))
    got: Any = Held(x, IMAGE.values)
    assert Dense().range(got) == want


@pytest.mark.usefixtures("small")
def test_floats_stay_as_they_are() -> None:
    assert isinstance(Data(PIXELS.float() / 255, LABELS).x, Tensor)


def test_a_scan_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of both default detectors, on data that are kept as bytes and on plain tensors."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(120) % 3
    x = torch.randint(0, 120, (120, 3, 8, 8), dtype=torch.uint8, generator=generator)
    x[torch.arange(120), y] += 100
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    fit(net, Data(x, y), Recipe(epochs=20, batch_size=20, lr=1e-2), 0)
    model = Model(net, (3, 8, 8))
    detectors = [NeuralCleanse(steps=3), Cascade(steps=3)]
    plain = scan(model, Data(x, y), detectors)
    monkeypatch.setattr(held, "LARGE", 2**12)
    large = scan(model, Data(x, y), detectors)
    assert plain.data == large.data
    assert [e.values for e in plain.evidence] == [e.values for e in large.evidence]
    assert len(plain.evidence) > 3
    assert not plain.errors
