"""ResNet, its deeper stems (d, c, s), ResNeXt and the wide ones, with timm's names of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions, or three of 1 x 1, 3 x 3, 1 x 1 (a bottleneck).

    Args:
        inner: channels between the convolutions.
        outer: channels that come out.
        averaged: whether the way past the convolutions averages before it projects.
    """

    def __init__(
        self, channels: int, inner: int, outer: int, stride: int, groups: int, deep: bool, averaged: bool
    ) -> None:
        super().__init__()
        self.deep = deep
        if deep:
            self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outer)
        else:
            self.conv1 = nn.Conv2d(channels, inner, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, outer, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != outer:
            project = nn.Conv2d(channels, outer, 1, 1 if averaged else stride, bias=False)
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
            before = [pool if stride > 1 else nn.Identity()] if averaged else []
            self.downsample = nn.Sequential(*before, project, nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.deep:
            x = self.bn3(self.conv3(torch.relu(x)))
        return torch.relu(x + beside)


class ResNet(nn.Module):
    """The network.

    Args:
        layers: blocks of every stage.
        channels: of every stage; four times as many come out of bottlenecks.
        stem: width of three small convolutions in the stem, 0: one of 7 x 7.
        averaged: as for `Block`.
        groups, width: of the 3 x 3 convolutions in bottlenecks (ResNeXt, wide ResNet).
    """

    def __init__(
        self, classes: int, inputs: int, layers: Sequence[int], deep: bool, *, stem: int = 0,
        averaged: bool = False, groups: int = 1, width: int = 64,
        channels: Sequence[int] = (64, 128, 256, 512),
    ) -> None:  # fmt: skip
        super().__init__()
        now = 2 * stem or 64
        if stem:
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(inputs, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
                nn.Conv2d(stem, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
                nn.Conv2d(stem, now, 3, 1, 1, bias=False),
            )  # fmt: skip
        else:
            self.conv1 = nn.Conv2d(inputs, now, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(now)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, (count, planes) in enumerate(zip(layers, channels, strict=True)):
            inner = planes * width // 64 * groups if deep else planes
            outer = 4 * planes if deep else planes
            blocks = []
            for k in range(count):
                stride = 2 if i > 0 and k == 0 else 1
                blocks.append(Block(now, inner, outer, stride, groups, deep, averaged))
                now = outer
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = len(layers)
        self.fc = nn.Linear(now, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))
