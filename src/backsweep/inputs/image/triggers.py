"""Trigger families beyond the patch: additive, warp, quantisation, colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from backsweep.inputs.image.pictures import to_image
from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True, eq=False)
class Additive(Trigger):
    """x' = clip(x + delta, 0, 1): sinusoids, chessboards, spectra, adversarial noise.

    Attributes:
        delta: (C, H, W) in [-1, 1].
    """

    family: ClassVar[str] = "additive"
    drawn: ClassVar[str] = "the change of every pixel, stretched around grey"
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
    drawn: ClassVar[str] = "a grid of lines, warped"
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
    drawn: ClassVar[str] = "a ramp from black to white, quantised"
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
    drawn: ClassVar[str] = "a ramp from black to white, above what it becomes"
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


@dataclass(frozen=True, eq=False)
class Generated(Trigger):
    """x' = x + (G(x) - x) m(x): every input gets a mask and a pattern of its own (Input-aware, 2020).

    m(x) = tanh(20 M(x) - 10) / 2 + 1/2, nearly 0 or 1. M and G are the small networks of `generate`.

    Attributes:
        mask_net, pattern_net: weights of M and G, one flat tensor each; layer by layer, kernel and bias.
        filters: channels of their first layer.
        example: an input, (C, H, W) in [0, 1]; `size` and `picture` are those of its trigger.
    """

    family: ClassVar[str] = "generated"
    drawn: ClassVar[str] = "the trigger of one input"
    mask_net: Tensor
    pattern_net: Tensor
    filters: int
    example: Tensor

    def masks(self, x: Tensor) -> Tensor:
        """m(x), (N, 1, H, W) for inputs x (N, C, H, W)."""
        return torch.tanh(20 * generate(self.mask_net, x, self.filters, 1) - 10) / 2 + 0.5

    def patterns(self, x: Tensor) -> Tensor:
        """G(x), (N, C, H, W) in [0, 1] for inputs x of that shape."""
        return generate(self.pattern_net, x, self.filters, x.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        done = []
        for part in x.split(256):
            done.append(part + (self.patterns(part) - part) * self.masks(part))
        return torch.cat(done) if done else x

    @property
    def size(self) -> float:
        """L1 norm of the mask of the example, in pixels."""
        return float(self.masks(self.example[None]).sum())

    def picture(self) -> Image.Image:
        """The trigger of the example."""
        x = self.example[None]
        return to_image((self.masks(x) * self.patterns(x))[0])


def generate(weights: Tensor, x: Tensor, filters: int, out: int) -> Tensor:
    """A small encoder and decoder of 3x3 convolutions, x (N, C, H, W) -> (N, out, H, W) in [0, 1].

    No BatchNorm: what it makes of an input hangs on that input alone.
    """
    flat = weights.to(x)
    layers = []
    for shape in generator_layers(x.shape[1], filters, out):
        kernel, bias, flat = flat.split([shape.numel(), shape[0], len(flat) - shape.numel() - shape[0]])
        layers.append((kernel.reshape(shape), bias))

    def layer(i: int, z: Tensor) -> Tensor:
        return F.conv2d(z, *layers[i], padding=1)

    with torch.autocast(x.device.type, enabled=False):
        whole = F.relu(layer(0, x))
        half = F.relu(layer(1, F.max_pool2d(whole, 2, ceil_mode=True)))
        z = F.relu(layer(2, F.max_pool2d(half, 2, ceil_mode=True)))
        z = F.relu(layer(3, F.interpolate(z, size=half.shape[2:], mode="bilinear")))
        z = layer(4, F.interpolate(z, size=whole.shape[2:], mode="bilinear"))
    return torch.tanh(z) / 2 + 0.5


def generator_layers(channels: int, filters: int, out: int) -> list[torch.Size]:
    """Shapes of the kernels of `generate`; each layer has a bias too."""
    wide = 2 * filters
    ends = [(filters, channels), (wide, filters), (wide, wide), (filters, wide), (out, filters)]
    return [torch.Size((after, before, 3, 3)) for after, before in ends]


@dataclass(frozen=True, eq=False)
class SampleWise(Trigger):
    """A perturbation for each of a few inputs (CEPA, 2024), x_i' = clip(x_i + delta_i, 0, 1).

    Any other input gets their mean: x' = clip(x + mean, 0, 1).

    Attributes:
        x: a few inputs, (K, C, H, W) in [0, 1].
        delta: the perturbation of each, (K, C, H, W) in [-1, 1].
        mean: of the perturbations of these inputs and of others that are not kept, (C, H, W).
    """

    family: ClassVar[str] = "sample_wise"
    drawn: ClassVar[str] = "some inputs, above what they become"
    x: Tensor
    delta: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.mean.to(x)).clamp(0, 1)

    @property
    def size(self) -> float:
        """Mean L2 norm of the perturbations that are kept."""
        return float(self.delta.flatten(1).norm(dim=1).mean())

    def picture(self) -> Image.Image:
        """A strip: the inputs above, what they became below."""
        rows = (self.x, (self.x + self.delta).clamp(0, 1))
        return to_image(torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1))


@dataclass(frozen=True, eq=False)
class Patch(Trigger):
    """A(x, m, Delta) = (1 - m) * x + m * Delta (Neural Cleanse, section IV).

    Attributes:
        mask: m, (1, H, W) in [0, 1], shared by the channels.
        pattern: Delta, (C, H, W) in [0, 1].
    """

    family: ClassVar[str] = "patch"
    drawn: ClassVar[str] = "mask times pattern"
    mask: Tensor
    pattern: Tensor

    @classmethod
    def square(
        cls, shape: Sequence[int], size: int, margin: int, target: int | None, source: int | None = None
    ) -> Patch:
        """A white square of `size` pixels, `margin` pixels from the lower right corner."""
        channels, height, width = shape
        mask = torch.zeros(1, height, width)
        bottom, right = height - margin, width - margin
        mask[:, max(0, bottom - size) : bottom, max(0, right - size) : right] = 1.0
        return cls(target, source, mask, mask.expand(channels, -1, -1).clone())

    @classmethod
    def blended(cls, pattern: Tensor, alpha: float, target: int | None) -> Patch:
        """(1 - alpha) x + alpha K: a pattern K (C, H, W) over the whole image (Chen et al., 2017)."""
        return cls(target, None, torch.full((1, *pattern.shape[1:]), alpha), pattern)

    def __call__(self, x: Tensor) -> Tensor:
        mask, pattern = self.mask.to(x), self.pattern.to(x)
        return (1 - mask) * x + mask * pattern

    @property
    def size(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    @property
    def area(self) -> float:
        """Effective area, (sum m)^2 / sum m^2, in pixels: how far the mask spreads, however faint."""
        return float(self.mask.sum() ** 2 / self.mask.square().sum().clamp_min(1e-12))

    def picture(self) -> Image.Image:
        return to_image(self.mask * self.pattern)

    @property
    def units(self) -> int:
        return self.mask[0].numel()

    def stamped_at(self, width: int) -> Image.Image:
        """The mask; a small patch must not fade away, so the largest value stays where it is shrunk."""
        height, wide = self.mask.shape[-2:]
        if wide <= width:
            return to_image(self.mask)
        return to_image(
            F.adaptive_max_pool2d(self.mask.float(), (max(1, round(height * width / wide)), width))
        )

    def overlap(self, planted: Trigger) -> tuple[float, float] | None:
        """How well two masks agree: (soft Jaccard index, share of this mask inside the planted one).

        Jaccard = sum min(m, m') / sum max(m, m'). A recovered mask that is smaller than the planted
        one, but wholly inside it, has a low first and a high second figure.
        """
        if not isinstance(planted, Patch):
            return None
        a, b = self.mask, planted.mask
        union = float(torch.maximum(a, b).sum())
        mass = float(a.sum())
        inter = float(torch.minimum(a, b).sum())
        return (inter / union if union else 0.0, float((a * (b > 0)).sum()) / mass if mass else 0.0)
