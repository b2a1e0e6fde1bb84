"""Beatrix (Ma et al., NDSS 2023): Gram matrices of a triggered input's features leave the bands of its class.

A trigger that makes the right neurons fire still makes them fire in the wrong combination. The products
of all pairs of channels, at several orders, are compared with what clean inputs of the class have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import Tap
from backsweep.models.model import Model

FLOOR = 0.01  # least bound to divide by, as a share of the mean entry of its order
POOLED = 300  # clean samples that make the band of all classes together


@dataclass(frozen=True)
class Beatrix(SampleDetector):
    """Scores an input by how far its Gram matrices lie outside the bands of the class that it is given.

    Attributes:
        layer: whose inputs are the features, an affine operation counted from the end: -1 is the head (the
            penultimate representation), -2 the fully connected or convolutional layer before it.
        orders: highest power; all from 1 are taken.
        band: half width of a band in median absolute deviations.
        per_class: clean samples that make the band of a class, at most.
        least: a class with fewer clean samples gets the band of all classes together.
        channels: that are looked at; of more, so many are drawn once.
    """

    name: ClassVar[str] = "beatrix"
    summary: ClassVar[str] = "inputs whose features co-occur unlike their class's (Beatrix)"
    needs: ClassVar[tuple[str, ...]] = ("layers",)
    batch: ClassVar[int] = 128

    layer: int = -1
    orders: int = 8
    band: float = 10.0
    per_class: int = 30
    least: int = 10
    channels: int = 64

    def __post_init__(self) -> None:
        if self.layer >= 0:
            raise ValueError(f"layer {self.layer} is not counted from the end; -1 is the head")
        if self.orders < 1:
            raise ValueError(f"orders {self.orders}: the lowest order is 1")
        if not self.band > 0:
            raise ValueError(f"band {self.band} must be above zero")
        if not 2 <= self.least <= self.per_class:
            raise ValueError(f"least {self.least} must lie between 2 and per_class, {self.per_class}")
        if self.channels < 1:
            raise ValueError(f"channels {self.channels}: at least 1 is needed")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        count, clean = len(model.affine()), len(self.halves(data)[0])
        if count < -self.layer:
            return f"layer {self.layer} is not there: the network has {count} affine operations"
        if clean < self.least:
            return f"it needs at least {self.least} clean samples to learn from; there are {clean}"
        with torch.no_grad(), Tap(count + self.layer) as tap:
            model.logits(model.modality.blank(2, model.shape).to(model.device))
        if tap.seen[0][0].shape[0] != 2 or tap.seen[0][0].ndim not in (2, 3, 4):
            return f"what enters layer {self.layer} is not a feature map per input"
        return ""

    def passes(self, model: Model) -> float:
        return 1

    @torch.no_grad()
    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Median and median absolute deviation (classes, orders, entries), and the channels (C,).

        Samples belong to the class that the network gives them, as inputs will.
        """
        reader, predicted = _Reader(model, self.layer), model.predict(data.x)
        rng = torch.Generator().manual_seed(derive_seed(0, self.name, "channels"))
        total = reader(data.x[:1].to(model.device))[0].shape[1]
        channels = torch.randperm(total, generator=rng)[: self.channels].sort().values

        def spread(rows: Tensor) -> tuple[Tensor, Tensor]:
            parts = []
            for x in data.x[rows].split(self.batch):
                maps = reader(x.to(model.device))[0][:, channels.to(model.device)]
                parts.append(torch.stack([g.float().cpu() for g in grams(maps, self.orders)], 1))
            g = torch.cat(parts)
            median = g.median(0).values
            return median, (g - median).abs().median(0).values

        every = torch.arange(len(data))
        pooled = spread(every[:: max(1, -(-len(data) // POOLED))])
        bands = []
        for label in range(model.classes):
            rows = every[predicted == label]
            bands.append(pooled if len(rows) < self.least else spread(rows[: self.per_class]))
        median, mad = (torch.stack(part) for part in zip(*bands, strict=True))
        return {"median": median, "mad": mad, "channels": channels}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """Mean over orders and entries of the distance to the band, in units of the bound that is passed."""
        median, mad, channels = (learned[k].to(model.device) for k in ("median", "mad", "channels"))
        reader, floor = _Reader(model, self.layer), (FLOOR * median.mean((0, 2))).clamp_min(1e-30)

        def score(x: Tensor) -> Tensor:
            maps, label = reader(x)
            total = torch.zeros(len(x), device=x.device)
            for i, g in enumerate(grams(maps[:, channels], self.orders)):
                middle, half = median[label, i], self.band * mad[label, i]
                total += outside(g.float(), middle - half, middle + half, float(floor[i])).mean(1)
            return total / self.orders

        return score


def grams(maps: Tensor, orders: int) -> list[Tensor]:
    """G_p = (F^p (F^p)')^(1/p) for p = 1 .. orders and features F (N, C, places) that are not negative.

    Powers and roots are taken entry by entry. Upper triangles with the diagonal, (N, C (C + 1) / 2),
    in double precision and scaled to 1 on the way, since the 16th power of a feature leaves float32.
    """
    top = maps.flatten(1).amax(1).clamp_min(1e-30).double()
    unit = maps.double() / top[:, None, None]
    row, column = torch.triu_indices(maps.shape[1], maps.shape[1], device=maps.device)
    found = []
    for p in range(1, orders + 1):
        power = unit**p
        found.append((power @ power.mT)[:, row, column] ** (1 / p) * top[:, None] ** 2)
    return found


def outside(g: Tensor, low: Tensor, high: Tensor, floor: float) -> Tensor:
    """(low - g) / |low| below the band, (g - high) / |high| above it, 0 inside."""
    below = (low - g).relu() / low.abs().clamp_min(floor)
    return below + (g - high).relu() / high.abs().clamp_min(floor)


class _Reader:
    """Features (N, C, places) that enter a layer, and the predicted class (N,), in one pass.

    A flattened feature map is given its places back; what is negative counts as not active.
    """

    def __init__(self, model: Model, layer: int) -> None:
        names = model.affine()
        self.model, self.index = model, len(names) + layer
        before = dict(model.net.named_parameters()).get(names[self.index - 1]) if self.index else None
        self.maps = len(before) if before is not None and before.ndim == 4 else 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with Tap(self.index) as tap:
            label = self.model.logits(x).argmax(1)
        z = tap.seen[0][0].float().relu()
        if z.ndim == 2:  # (N, D) or flattened (N, C, H, W)
            count = self.maps if self.maps and z.shape[1] % self.maps == 0 else z.shape[1]
            return z.reshape(len(z), count, -1), label
        return (z.mT if z.ndim == 3 else z.flatten(2)), label
