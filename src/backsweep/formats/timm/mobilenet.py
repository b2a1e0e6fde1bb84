"""MobileNet V2 and V3 and EfficientNet, with timm's names of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "hswish": F.hardswish, "silu": F.silu}


@dataclass(frozen=True)
class Step:
    """Equal blocks: how many, kernel, stride of the first, channels inside (a factor) and out.

    Attributes:
        squeezed: share of channels in the squeeze-and-excitation, 0: none.
        act: name of the activation, "": that of the network.
    """

    count: int
    kernel: int
    stride: int
    wide: float
    channels: int
    squeezed: float = 0.0
    act: str = ""


def rounded(channels: float, by: int = 8) -> int:
    """A multiple of `by` near to a number of channels, and never far below it."""
    near = max(by, int(channels + by / 2) // by * by)
    return near + by if near < 0.9 * channels else near


class Squeeze(nn.Module):
    """Squeeze-and-excitation: a factor for every channel out of the means of all."""

    def __init__(self, channels: int, inner: int, act: str) -> None:
        super().__init__()
        self.third = act != "silu"  # of MobileNet V3: hard sigmoid, ReLU
        self.conv_reduce = nn.Conv2d(channels, inner, 1)
        self.conv_expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv_reduce(x.mean((2, 3), keepdim=True))
        z = self.conv_expand(F.relu(z) if self.third else F.silu(z))
        return x * (F.hardsigmoid(z) if self.third else z.sigmoid())


class Block(nn.Module):
    """A convolution of each channel between two that mix them; the first is left out where nothing widens."""

    def __init__(self, before: int, step: Step, act: str, plain: bool) -> None:
        super().__init__()
        self.act, self.plain = ACTIVATIONS[step.act or act], plain
        inner = before if plain else rounded(before * step.wide)
        self.beside = step.stride == 1 and before == step.channels
        if not plain:
            self.conv_pw = nn.Conv2d(before, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
        padding = (step.kernel - 1) // 2
        self.conv_dw = nn.Conv2d(inner, inner, step.kernel, step.stride, padding, groups=inner, bias=False)
        # EfficientNet squeezes relative to what comes in, MobileNet V3 to what is inside
        squeezed = round((before if act == "silu" else inner) * step.squeezed)
        squeezed = squeezed if act == "silu" else rounded(inner * step.squeezed)
        self.se = Squeeze(inner, squeezed, act) if step.squeezed else nn.Identity()
        last = nn.Conv2d(inner, step.channels, 1, bias=False)
        if plain:
            self.bn1, self.conv_pw, self.bn2 = nn.BatchNorm2d(inner), last, nn.BatchNorm2d(step.channels)
        else:
            self.bn2, self.conv_pwl, self.bn3 = nn.BatchNorm2d(inner), last, nn.BatchNorm2d(step.channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            y = self.bn2(self.conv_pw(self.se(self.act(self.bn1(self.conv_dw(x))))))
        else:
            y = self.act(self.bn1(self.conv_pw(x)))
            y = self.bn3(self.conv_pwl(self.se(self.act(self.bn2(self.conv_dw(y))))))
        return x + y if self.beside else y


class Last(nn.Module):
    """A convolution of 1 x 1 as the last stage (V3)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.bn1(self.conv(x)))


class MobileNet(nn.Module):
    """The network.

    Args:
        stages: steps of every stage.
        act: name of the activation.
        stem: channels of the first convolution.
        last: channels of V3's last stage, 0: there is none.
        head: channels before the classifier.
        pooled: whether the last convolution comes after the mean (V3).
    """

    def __init__(
        self, classes: int, inputs: int, stages: Sequence[Sequence[Step]], *, act: str, stem: int, head: int,
        last: int = 0, pooled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.act, self.pooled = ACTIVATIONS[act], pooled
        self.conv_stem = nn.Conv2d(inputs, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        now, found = stem, []
        for i, stage in enumerate(stages):
            blocks: list[nn.Module] = []
            for step in stage:
                for k in range(step.count):
                    blocks.append(Block(now, replace(step, stride=1) if k else step, act, plain=i == 0))
                    now = step.channels
            found.append(nn.Sequential(*blocks))
        if last:
            found.append(nn.Sequential(Last(now, last)))
            now = last
        self.blocks = nn.Sequential(*found)
        self.conv_head = nn.Conv2d(now, head, 1, bias=pooled)
        self.bn2 = nn.Identity() if pooled else nn.BatchNorm2d(head)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = x.mean((2, 3), keepdim=True) if self.pooled else x
        x = self.act(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((2, 3)))


def mobilenet_v2(
    classes: int, inputs: int, width: float, depth: float = 1.0, fixed: bool = False
) -> MobileNet:
    """MobileNet V2 of a width and a depth; `fixed`: stem and head keep their width."""
    table = [(1, 3, 1, 1.0, 16), (2, 3, 2, 6.0, 24), (3, 3, 2, 6.0, 32), (4, 3, 2, 6.0, 64),
             (3, 3, 1, 6.0, 96), (3, 3, 2, 6.0, 160), (1, 3, 1, 6.0, 320)]  # fmt: skip
    stages = []
    for i, (count, kernel, stride, wide, channels) in enumerate(table):
        times = count if fixed and i in (0, len(table) - 1) else math.ceil(count * depth)
        stages.append([Step(times, kernel, stride, wide, rounded(channels * width))])
    head = 1280 if fixed else max(1280, rounded(1280 * width))
    return MobileNet(
        classes, inputs, stages, act="relu6", stem=32 if fixed else rounded(32 * width), head=head
    )


def mobilenet_v3(classes: int, inputs: int, width: float, small: bool) -> MobileNet:
    """MobileNet V3, large or small, of a width."""
    se = 0.25
    large_steps = [
        [Step(1, 3, 1, 1.0, 16, act="relu")],
        [Step(1, 3, 2, 4.0, 24, act="relu"), Step(1, 3, 1, 3.0, 24, act="relu")],
        [Step(3, 5, 2, 3.0, 40, se, "relu")],
        [Step(1, 3, 2, 6.0, 80), Step(1, 3, 1, 2.5, 80), Step(2, 3, 1, 2.3, 80)],
        [Step(2, 3, 1, 6.0, 112, se)],
        [Step(3, 5, 2, 6.0, 160, se)],
    ]
    small_steps = [
        [Step(1, 3, 2, 1.0, 16, se, "relu")],
        [Step(1, 3, 2, 4.5, 24, act="relu"), Step(1, 3, 1, 3.67, 24, act="relu")],
        [Step(1, 5, 2, 4.0, 40, se), Step(2, 5, 1, 6.0, 40, se)],
        [Step(2, 5, 1, 3.0, 48, se)],
        [Step(3, 5, 2, 6.0, 96, se)],
    ]
    steps = small_steps if small else large_steps
    stages = [[replace(s, channels=rounded(s.channels * width)) for s in stage] for stage in steps]
    stem = 16 if width < 0.75 else rounded(16 * width)
    last = rounded((576 if small else 960) * width)
    return MobileNet(
        classes, inputs, stages, act="hswish", stem=stem, head=1024 if small else 1280, last=last, pooled=True
    )


def efficientnet(classes: int, inputs: int, width: float, depth: float) -> MobileNet:
    """EfficientNet of a width and a depth."""
    table = [(1, 3, 1, 1.0, 16), (2, 3, 2, 6.0, 24), (2, 5, 2, 6.0, 40), (3, 3, 2, 6.0, 80),
             (3, 5, 1, 6.0, 112), (4, 5, 2, 6.0, 192), (1, 3, 1, 6.0, 320)]  # fmt: skip
    stages = [
        [Step(math.ceil(count * depth), kernel, stride, wide, rounded(channels * width), 0.25)]
        for count, kernel, stride, wide, channels in table
    ]
    return MobileNet(
        classes, inputs, stages, act="silu", stem=rounded(32 * width), head=rounded(1280 * width)
    )
