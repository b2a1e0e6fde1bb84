"""Families of image triggers for the inversion loop: patch, pixel, frequency, warp.

Each gives the parameters, what they do to an input, and their size, for many units at once; the
trigger of a unit is one of the classes in `families`, and has the same effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.family import from_unit_box, unit_box
from backsweep.inputs.image.triggers import Additive, Patch, Warp, warp
from backsweep.inputs.trigger import Trigger


class PatchFamily:
    """Mask and pattern, both through `unit_box`."""

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        channels, height, width = shape
        mask = torch.rand((1, height, width), generator=generator)
        pattern = torch.rand((channels, height, width), generator=generator)
        return [from_unit_box(v) for v in (mask, pattern)]

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        mask, pattern = (unit_box(t)[:, None] for t in theta)
        return (1 - mask) * x + mask * pattern

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return unit_box(theta[0]).sum((1, 2, 3))

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        mask, pattern = (unit_box(t).detach().cpu() for t in theta)
        return Patch(target=target, source=source, mask=mask, pattern=pattern)


@dataclass(frozen=True)
class PixelFamily:
    """x' = clip(x + p_pos - p_neg), both p in [0, 1] and without a mask (Pixel, CVPR 2022).

    The size is the sum over pixels of max_c p_pos + max_c p_neg. The authors' term, tanh(p / 10) / 2
    + 1/2 instead of p, is that up to a factor and a constant.

    Attributes:
        start: p starts uniform in [0, start].
    """

    start: float = 0.1

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        return [from_unit_box(self.start * torch.rand(tuple(shape), generator=generator)) for _ in range(2)]

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        return (x + (unit_box(theta[0]) - unit_box(theta[1]))[:, None]).clamp(0, 1)

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return torch.stack([unit_box(t).amax(1).sum((1, 2)) for t in theta]).sum(0)

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        delta = (unit_box(theta[0]) - unit_box(theta[1])).detach().cpu()
        return Additive(target=target, source=source, delta=delta)


@dataclass(frozen=True)
class FrequencyFamily:
    """x' = clip(IDCT(DCT(x) + M * P)): a mask M and a pattern P over the spectrum of the image.

    The transform is the orthonormal two-dimensional DCT, so that x' = clip(x + IDCT(M * P)). M in
    [0, 1] is shared by the channels, P in [-b, b]. The size is the sum over frequencies of
    M * max_c |P|.

    Attributes:
        swing: one frequency alone changes a pixel by at most so much; b = swing / 2 * sqrt(H * W).
        start: standard deviation of the first P, as a share of b. Near zero: noise in all frequencies
            holds a planted one from the beginning, and no other class is ever reached.
    """

    swing: float = 0.5
    start: float = 0.02

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        mask = torch.rand((1, *shape[1:]), generator=generator)
        return [from_unit_box(mask), self.start * torch.randn(tuple(shape), generator=generator)]

    def _spectrum(self, theta: Sequence[Tensor]) -> Tensor:
        bound = self.swing / 2 * math.sqrt(math.prod(theta[1].shape[-2:]))
        return unit_box(theta[0]) * bound * torch.tanh(theta[1])

    def _delta(self, theta: Sequence[Tensor]) -> Tensor:
        spectrum = self._spectrum(theta)
        rows, cols = (dct_matrix(n).to(spectrum) for n in spectrum.shape[-2:])
        return rows.T @ spectrum @ cols

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        return (x + self._delta(theta)[:, None]).clamp(0, 1)

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return self._spectrum(theta).abs().amax(1).sum((1, 2))

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        return Additive(target=target, source=source, delta=self._delta(theta).detach().cpu())


@lru_cache(maxsize=8)
def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II of n values: row k is the k-th cosine; the inverse is the transpose."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    cosines = math.sqrt(2 / n) * torch.cos(math.pi / n * (i + 0.5) * k)
    cosines[0] /= math.sqrt(2)
    return cosines.float()


@dataclass(frozen=True)
class WarpFamily:
    """Every pixel is fetched from a place nearby; the displacement is smooth (as in WaNet, 2021).

    The parameters are displacements in pixels on a coarse control grid, bicubically upsampled. The
    size is the root mean square displacement.

    Attributes:
        height, width: of the inputs.
        grid: control points a side.
        start: standard deviation of the first displacements, pixels.
    """

    height: int
    width: int
    grid: int = 6
    start: float = 1.0

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        return [self.start * torch.randn((2, self.grid, self.grid), generator=generator)]

    def _flow(self, control: Tensor) -> Tensor:
        """(units, 2, grid, grid) -> (units, 2, H, W)."""
        return F.interpolate(control, size=(self.height, self.width), mode="bicubic", align_corners=True)

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        flow = self._flow(theta[0]).repeat_interleave(x.shape[1], 0)
        return warp(x.flatten(0, 1), flow).unflatten(0, x.shape[:2])

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return self._flow(theta[0]).square().sum(1).mean((1, 2)).clamp_min(1e-12).sqrt()

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        flow = self._flow(theta[0][None])[0].detach().cpu()
        return Warp(target=target, source=source, flow=flow)
