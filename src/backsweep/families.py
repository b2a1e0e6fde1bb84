"""Trigger families beyond the patch: additive, warp, quantisation, colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from backsweep.trigger import Trigger, to_image


@dataclass(frozen=True, eq=False)
class Additive(Trigger):
    """x' = clip(x + delta, 0, 1): sinusoids, chessboards, spectra, adversarial noise.

    Attributes:
        delta: (C, H, W) in [-1, 1].
    """

    family: ClassVar[str] = "additive"
    delta: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.delta.to(x)).clamp(0, 1)

    @property
    def size(self) -> float:
        """L2 norm of delta."""
        return float(self.delta.norm())

    def picture(self) -> Image.Image:
        """delta, stretched to the full range around grey."""
        return to_image(0.5 + 0.5 * self.delta / self.delta.abs().max().clamp_min(1e-12))


@dataclass(frozen=True, eq=False)
class Warp(Trigger):
    """Every pixel is fetched from a place nearby (WaNet, 2021).

    Attributes:
        flow: (2, H, W), displacement in x and in y, pixels.
    """

    family: ClassVar[str] = "warp"
    flow: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return warp(x, self.flow.to(x)[None].expand(len(x), -1, -1, -1))

    @property
    def size(self) -> float:
        """Mean displacement, pixels."""
        return float(self.flow.norm(dim=0).mean())

    def picture(self) -> Image.Image:
        """A grid of lines, warped."""
        height, width = self.flow.shape[1:]
        step = max(2, height // 8)
        lines = torch.ones(1, 1, height, width)
        lines[..., ::step, :] = 0
        lines[..., ::step] = 0
        return to_image(self(lines)[0])


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear sampling of x (N, C, H, W) at each pixel's place plus flow (N, 2, H, W), pixels.

    Places beyond the edge are clamped to it, as WaNet clamps its grid to [-1, 1].
    """
    height, width = x.shape[-2:]
    rows = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)
    cols = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device)
    base = torch.stack(torch.meshgrid(rows, cols, indexing="ij")[::-1], dim=-1)
    scale = x.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    grid = (base + flow.permute(0, 2, 3, 1) * scale).clamp(-1, 1)
    return F.grid_sample(x, grid, align_corners=True).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Quantise(Trigger):
    """Fewer grey levels a channel: round(x (k - 1)) / (k - 1) (BppAttack, 2022).

    Attributes:
        levels: k, number of levels.
    """

    family: ClassVar[str] = "quantise"
    levels: int

    def __call__(self, x: Tensor) -> Tensor:
        return (x * (self.levels - 1)).round() / (self.levels - 1)

    @property
    def size(self) -> float:
        """Largest change of a value, half a level."""
        return 0.5 / (self.levels - 1)

    def picture(self) -> Image.Image:
        """A ramp from black to white, quantised."""
        return to_image(self(torch.linspace(0, 1, 32).expand(1, 32, 32)))


@dataclass(frozen=True, eq=False)
class Recolour(Trigger):
    """An affine map of the colours of every pixel, x' = clip(M x + b), as photo filters do.

    Attributes:
        matrix: M, (C, C).
        shift: b, (C,).
    """

    family: ClassVar[str] = "recolour"
    matrix: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("dc,nchw->ndhw", self.matrix.to(x), x)
        return (mixed + self.shift.to(x)[:, None, None]).clamp(0, 1)

    @property
    def size(self) -> float:
        """Mean absolute change of a grey ramp."""
        ramp = torch.linspace(0, 1, 32).expand(1, len(self.shift), 1, 32)
        return float((self(ramp) - ramp).abs().mean())

    def picture(self) -> Image.Image:
        """A ramp from black to white above its recoloured form."""
        ramp = torch.linspace(0, 1, 32).expand(1, len(self.shift), 16, 32)
        return to_image(torch.cat([ramp, self(ramp)], dim=2)[0])
