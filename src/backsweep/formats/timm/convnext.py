"""ConvNeXt and ConvNeXt V2, with timm's names of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class Norm(nn.LayerNorm):
    """Normalisation of the channels of a feature map (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Response(nn.Module):
    """Global response normalisation of a feature map (N, H, W, C), of V2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        return x + self.bias + self.weight * x * (size / (size.mean(-1, keepdim=True) + EPS))


class Point(nn.Conv2d):
    """A layer on every pixel (N, H, W, C) that is kept as a convolution of 1 x 1."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class Mlp(nn.Module):
    """Two layers on every pixel."""

    def __init__(self, dim: int, convolved: bool, second: bool) -> None:
        super().__init__()
        kind = Point if convolved else nn.Linear
        self.fc1 = kind(dim, 4 * dim)
        self.grn = Response(4 * dim) if second else nn.Identity()
        self.fc2 = kind(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.grn(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """A convolution of each channel, then two layers on every pixel."""

    def __init__(self, dim: int, convolved: bool, second: bool) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, convolved, second)
        self.gamma = None if second else nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + (y if self.gamma is None else y * self.gamma).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks at one resolution, behind a step down."""

    def __init__(self, before: int, dim: int, depth: int, convolved: bool, second: bool, down: bool) -> None:
        super().__init__()
        # the first stage only changes its channels, if it changes anything
        size = 2 if down else 1
        step = nn.Sequential(Norm(before, EPS), nn.Conv2d(before, dim, size, size))
        self.downsample = step if down or before != dim else nn.Identity()
        self.blocks = nn.Sequential(*(Block(dim, convolved, second) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """Mean, normalisation, classifier."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


class ConvNeXt(nn.Module):
    """The network.

    Args:
        depths, dims: blocks and channels of every stage.
        convolved: layers on pixels are kept as convolutions (the small networks).
        second: ConvNeXt V2.
    """

    def __init__(
        self, classes: int, inputs: int, depths: Sequence[int], dims: Sequence[int], *,
        convolved: bool = False, second: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(inputs, dims[0], 4, 4), Norm(dims[0], EPS))
        before = [dims[0], *dims]
        self.stages = nn.Sequential(
            *(
                Stage(before[i], dim, depth, convolved, second, i > 0)
                for i, (depth, dim) in enumerate(zip(depths, dims, strict=True))
            )
        )
        self.head = Head(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))
