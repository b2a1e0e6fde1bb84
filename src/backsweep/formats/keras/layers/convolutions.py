"""Convolutions and pooling, for channels at either place and with the padding of Keras."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from backsweep.formats.keras.layers.base import (
    Activated,
    Layer,
    channels_first,
    channels_last,
    known_as,
    padding,
)
from backsweep.formats.keras.layers.settings import Settings

_CONV = {1: F.conv1d, 2: F.conv2d}
_TURNED = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


class Spatial(Activated):
    """A layer that moves over one or two axes; x is (N, ..., C), or (N, C, ...) if `first`."""

    axes: int

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.axes = 1 if "1D" in settings.kind else 2
        self.first = settings.first

    def before(self, x: Tensor) -> Tensor:
        """What the layer does to x, whatever place the channels have."""
        if x.ndim != self.axes + 2:
            raise ValueError(f"{x.ndim} axes for a layer of {self.axes + 2}")
        return self.moved(x) if self.first else channels_last(self.moved(channels_first(x)))

    def moved(self, x: Tensor) -> Tensor:
        """What the layer does to x (N, C, ...)."""
        raise NotImplementedError


class Convolution(Spatial):
    """A convolution and its activation."""

    kernels: ClassVar[tuple[str, ...]] = ("kernel",)
    bias: Tensor | None
    weight: Tensor

    def read(self, settings: Settings) -> None:
        super().read(settings)
        axes = self.axes
        self.size = settings.sizes("kernel_size", axes)
        self.stride = settings.sizes("strides", axes, 1)
        self.dilation = settings.sizes("dilation_rate", axes, 1)
        self.padding = settings.choice("padding", ("same", "valid", "causal")[: 4 - axes], "valid")
        self.keep_all(settings)
        if settings.flag("use_bias", True):
            self.keep("bias", "bias", (0,))
        else:
            self.bias = None

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return [*cls.kernels, "bias"] if settings.flag("use_bias", True) else list(cls.kernels)

    def keep_all(self, settings: Settings) -> None:
        """Keep the kernels, outputs first."""
        axes = self.axes
        self.groups = settings.whole("groups", 1)
        kernel = self.keep("weight", "kernel", (axes + 1, axes, *range(axes)))
        self.check("filters", settings.whole("filters"), len(kernel))
        self.check_size(kernel)

    def check_size(self, kernel: Tensor) -> None:
        """The size that the settings tell must be that of the kernel."""
        for said, found in zip(self.size, kernel.shape[2:], strict=True):
            self.check("kernel_size", said, found)

    def padded(self, x: Tensor) -> Tensor:
        """x (N, C, ...) with the zeros that the padding puts around it."""
        if self.padding == "causal":
            return F.pad(x, ((self.size[0] - 1) * self.dilation[0], 0))
        if self.padding == "same":
            around = padding(x, self.size, self.stride, self.dilation)
            return F.pad(x, around) if any(around) else x
        return x

    def moved(self, x: Tensor) -> Tensor:
        x = self.padded(x)
        return _CONV[self.axes](x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


known_as("Conv1D", "Conv2D", "Convolution1D", "Convolution2D")(Convolution)


@known_as("DepthwiseConv1D", "DepthwiseConv2D")
class Depthwise(Convolution):
    """A convolution of each channel by its own kernels."""

    kernels: ClassVar[tuple[str, ...]] = ("depthwise_kernel",)

    def keep_all(self, settings: Settings) -> None:
        held = self._held["depthwise_kernel"].value
        self.check("the axes of its kernel", self.axes + 2, held.ndim)
        *size, channels, times = held.shape
        self.check("depth_multiplier", settings.whole("depth_multiplier", 1), times)
        axes = (self.axes, self.axes + 1, *range(self.axes))
        kernel = self.keep("weight", "depthwise_kernel", axes, (channels * times, 1, *size))
        self.groups = channels
        self.check_size(kernel)


@known_as("SeparableConv1D", "SeparableConv2D", "SeparableConvolution2D")
class Separable(Depthwise):
    """A convolution of each channel, then of one place."""

    kernels = ("depthwise_kernel", "pointwise_kernel")
    point_weight: Tensor

    def keep_all(self, settings: Settings) -> None:
        super().keep_all(settings)
        point = self.keep("point_weight", "pointwise_kernel", (self.axes + 1, self.axes, *range(self.axes)))
        self.check("filters", settings.whole("filters"), len(point))

    def moved(self, x: Tensor) -> Tensor:
        convolution = _CONV[self.axes]
        x = convolution(self.padded(x), self.weight, None, self.stride, 0, self.dilation, self.groups)
        return convolution(x, self.point_weight, self.bias)


@known_as("Conv1DTranspose", "Conv2DTranspose", "Convolution2DTranspose")
class Transposed(Convolution):
    """A convolution the other way round: of the size that a convolution would come from."""

    def keep_all(self, settings: Settings) -> None:
        axes = self.axes
        self.check("groups", settings.whole("groups", 1), 1)
        kernel = self.keep("weight", "kernel", (axes + 1, axes, *range(axes)))
        self.check("filters", settings.whole("filters"), kernel.shape[1])
        self.check_size(kernel)

    def moved(self, x: Tensor) -> Tensor:
        turned = _TURNED[self.axes]
        whole = turned(x, self.weight, None, self.stride, dilation=self.dilation)
        around: list[int] = []
        for size, kernel, stride, rate in zip(
            x.shape[2:], self.size, self.stride, self.dilation, strict=True
        ):
            reach = (kernel - 1) * rate + 1
            spare = max(reach - stride, 0)
            before = spare // 2 if self.padding == "same" else 0
            wanted = size * stride + (0 if self.padding == "same" else spare)
            around = [-before, wanted - ((size - 1) * stride + reach - before), *around]
        whole = F.pad(whole, around) if any(around) else whole
        return whole if self.bias is None else whole + self.bias.reshape(-1, *[1] * self.axes)


# ---------------------------------------------------------------------- pooling


class Pooling(Spatial):
    """The largest or the mean of the values in a window; a mean is of what is not padding."""

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.size = settings.sizes("pool_size", self.axes, 2)
        strides = settings.get("strides")
        self.stride = self.size if strides is None else settings.sizes("strides", self.axes)
        self.same = settings.choice("padding", ("same", "valid"), "valid") == "same"
        self.largest = settings.kind.startswith("Max")

    def moved(self, x: Tensor) -> Tensor:
        around = padding(x, self.size, self.stride, (1,) * self.axes) if self.same else []
        flat = self.axes == 1
        if self.largest:
            x = F.pad(x, around, value=-math.inf) if any(around) else x
            return (
                F.max_pool1d(x, self.size, self.stride) if flat else F.max_pool2d(x, self.size, self.stride)
            )
        if not any(around):
            return self._mean(x)
        there = x.new_ones(1, 1, *x.shape[2:])
        return self._mean(F.pad(x, around)) / self._mean(F.pad(there, around))

    def _mean(self, x: Tensor) -> Tensor:
        if self.axes == 1:
            return F.avg_pool1d(x, self.size, self.stride)
        return F.avg_pool2d(x, self.size, self.stride)


known_as(
    "MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D", "MaxPool1D", "MaxPool2D",
    "AvgPool1D", "AvgPool2D",
)(Pooling)  # fmt: skip


@known_as(
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
    "GlobalAvgPool1D", "GlobalAvgPool2D", "GlobalMaxPool1D", "GlobalMaxPool2D",
)  # fmt: skip
class Global(Layer):
    """The largest or the mean of all places."""

    def read(self, settings: Settings) -> None:
        self.axes = 1 if settings.kind.endswith("1D") else 2
        self.first, self.kept_axes = settings.first, settings.flag("keepdims", False)
        self.largest = "Max" in settings.kind

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.axes + 2:
            raise ValueError(f"{x.ndim} axes for a layer of {self.axes + 2}")
        places = tuple(range(2, x.ndim)) if self.first else tuple(range(1, x.ndim - 1))
        return x.amax(places, self.kept_axes) if self.largest else x.mean(places, keepdim=self.kept_axes)
