"""Samples from loaders of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from backsweep.core.errors import BadInput
from backsweep.inputs.batches import gathered
from backsweep.inputs.samples import Data

X = torch.rand((10, 1, 4, 4), generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


class Once:
    """Counts how often it is gone through."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.times = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(self.batches)


def test_a_loader_gives_data() -> None:
    for loader in (
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=None),
        Once([(X[:3], Y[:3]), [X[3:].numpy(), Y[3:].tolist()]]),
        Once([{"pixel_values": X, "labels": Y}]),
        Once([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)]),
        iter([(X, Y)]),
    ):
        data = Data.of(loader)
        assert torch.equal(data.x, X)
        assert torch.equal(data.y, Y)


def test_it_is_gone_through_once() -> None:
    loader = Once([(X, Y)])
    assert Data.of(loader).source == "Once"
    assert loader.times == 1


def test_bytes_stay_bytes_until_they_are_divided() -> None:
    data = Data.of(Once([((X * 255).byte(), Y)]))
    assert float(data.x.max()) <= 1


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "yields nothing"),
        ([X], "yields Tensor"),
        ([(X, Y, Y)], "yields tuple"),
        ([{"x": X}], "yields dict"),
        ([(X, Y[:3])], "10 images with 3 labels"),
        ([(X, Y), (X[:, :, :2], Y)], "different sizes"),
        ([("dog", Y)], "no numbers"),
    ],
)
def test_what_a_loader_cannot_yield(batches: list[Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Data.of(Once(batches))


def test_a_loader_without_an_end() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield X, Y

    with pytest.raises(BadInput, match="yields more than"):
        gathered(endless(), 10_000)
