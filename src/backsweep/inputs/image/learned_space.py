"""A learnt space of images: two small U-Nets lead there and back; a trigger in it (UNICORN, 2023)."""

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

EPS = 1e-7


@dataclass(frozen=True, eq=False)
class Transformed(Trigger):
    """x' = clip(Q((1 - m) * P(x) + m * t), 0, 1); P(x) is scaled to [0, 1] before and back after.

    P and Q are the networks of `unet`.

    Attributes:
        into, back: weights of P and Q, one flat tensor each.
        filters, blocks: of both networks.
        mask, pattern: m and t, (C, H, W) in [0, 1].
        low, high: the values of P(x) that are scaled to 0 and 1.
        example: an input, (C, H, W) in [0, 1]; `size` and `picture` are those of its trigger.
    """

    family: ClassVar[str] = "transformed"
    drawn: ClassVar[str] = "an input with the trigger"
    into: Tensor
    back: Tensor
    filters: int
    blocks: int
    mask: Tensor
    pattern: Tensor
    low: float
    high: float
    example: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        done = []
        with torch.no_grad():
            for part in x.split(256):
                z = unet(self.into, part, self.filters, self.blocks)
                z = blend(z, self.mask.to(x), self.pattern.to(x), self.low, self.high)
                done.append(unet(self.back, z, self.filters, self.blocks).clamp(0, 1))
        return torch.cat(done) if done else x

    @property
    def size(self) -> float:
        """L2 norm of the change of the example."""
        return float((self(self.example[None]) - self.example).norm())

    def picture(self) -> Image.Image:
        """The example with its trigger."""
        return to_image(self(self.example[None])[0])


def blend(z: Tensor, mask: Tensor, pattern: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """(1 - m) * z + m * t for z (N, C, H, W), where t = 0 stands for `low` and t = 1 for `high`."""
    return (1 - mask) * z + mask * (pattern * (high - low) + low)


def unet_layers(channels: int, filters: int, blocks: int) -> list[torch.Size]:
    """Shapes of the kernels of `unet` from top to bottom and up again; each layer has a bias too."""
    widths = [filters * 2**b for b in range(blocks + 1)]
    down = list(zip(widths, [channels, *widths], strict=False))
    up = [(widths[b], widths[b] + widths[b + 1]) for b in reversed(range(blocks))]
    return [torch.Size((after, before, 3, 3)) for after, before in [*down, *up, (channels, filters)]]


def unet_weights(channels: int, filters: int, blocks: int, generator: torch.Generator) -> Tensor:
    """Random start weights of `unet`, one flat tensor (He's normal kernels, no bias)."""
    parts = []
    for shape in unet_layers(channels, filters, blocks):
        deviation = (2 / shape[1:].numel()) ** 0.5
        parts += [torch.randn(shape.numel(), generator=generator) * deviation, torch.zeros(shape[0])]
    return torch.cat(parts)


def unet(weights: Tensor, x: Tensor, filters: int, blocks: int) -> Tensor:
    """A U-Net of 3x3 convolutions that keeps the shape of x (N, C, H, W); any H and W will do.

    One convolution per level on the way down and on the way up, no BatchNorm: what it makes of an
    input hangs on that input alone.
    """
    shapes = unet_layers(x.shape[1], filters, blocks)
    sizes = [n for shape in shapes for n in (shape.numel(), shape[0])]
    flat = weights.to(x.device).split(sizes)
    kernels = [kernel.reshape(shape) for kernel, shape in zip(flat[0::2], shapes, strict=True)]
    biases: Sequence[Tensor] = flat[1::2]

    def layer(i: int, z: Tensor) -> Tensor:
        return F.conv2d(z, kernels[i], biases[i], padding=1)

    levels = [F.relu(layer(0, x))]
    for i in range(1, blocks + 1):
        levels.append(F.relu(layer(i, F.max_pool2d(levels[-1], 2, ceil_mode=True))))
    z = levels.pop()
    for i in range(blocks + 1, 2 * blocks + 1):
        skip = levels.pop()
        z = F.relu(layer(i, torch.cat([skip, F.interpolate(z, size=skip.shape[2:])], 1)))
    return layer(2 * blocks + 1, z)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of images (N, C, H, W) in [0, 1]; a Gaussian window of 11 pixels, sigma 1.5.

    The window is cut at the edges and smaller on tiny images.
    """

    def window(n: int) -> Tensor:
        far = (torch.arange(n)[:, None] - torch.arange(n)).float()
        k = torch.exp(-far.square() / (2 * 1.5**2)) * (far.abs() <= min(5, (n - 1) // 2))
        return (k / k.sum(1, keepdim=True)).to(x)

    rows, columns = window(x.shape[2]), window(x.shape[3]).T
    mx, my, xx, yy, xy = (rows @ v @ columns for v in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    cover = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    return (cover / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))).mean()


def box(theta: Tensor) -> Tensor:
    """tanh(theta) / (2 + eps) + 1/2, in [0, 1]."""
    return torch.tanh(theta) / (2 + EPS) + 0.5


def inside(x: Tensor) -> Tensor:
    """x clipped to [0, 1]; the gradient passes unclipped."""
    return x + (x.clamp(0, 1) - x).detach()
