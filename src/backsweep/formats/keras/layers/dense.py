"""Layers over the axis of channels: fully connected ones, activations and normalisations."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from backsweep.formats.keras.layers import activations
from backsweep.formats.keras.layers.base import (
    Activated,
    Layer,
    known_as,
)
from backsweep.formats.keras.layers.settings import Settings


@known_as("Dense")
class Dense(Activated):
    """A fully connected layer over the last axis."""

    bias: Tensor | None
    weight: Tensor

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return ["kernel", "bias"] if settings.flag("use_bias", True) else ["kernel"]

    def read(self, settings: Settings) -> None:
        super().read(settings)
        weight = self.keep("weight", "kernel", (1, 0))
        self.check("units", settings.whole("units"), len(weight))
        if settings.flag("use_bias", True):
            self.keep("bias", "bias", (0,))
        else:
            self.bias = None

    def before(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@known_as("Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU")
class Activation(Activated):
    """An activation alone."""

    def read(self, settings: Settings) -> None:
        self.activation = activations.LAYERS[settings.kind](settings)


@known_as("Softmax")
class Softmax(Activation):
    """A softmax along an axis."""

    def scores(self, *inputs: Any) -> Any:
        axis = getattr(self.activation, "axis", 0)
        return inputs[0] if inputs[0].ndim == 2 and axis in (1, -1) else self(*inputs)


@known_as("PReLU")
class PReLU(Layer):
    """A slope of the negative part for each place, or for several that share it."""

    weight: Tensor

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return ["alpha"]

    def read(self, settings: Settings) -> None:
        settings.get("shared_axes")
        self.keep("weight", "alpha", tuple(range(self._held["alpha"].value.ndim)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) - self.weight * F.relu(-x)


# ---------------------------------------------------------------------- normalisations


class Scaled(Layer):
    """A normalisation with a scale (gamma) and a shift (beta) that may be missing."""

    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        own = (("gamma", "scale"), ("beta", "center"))
        return [slot for slot, key in own if settings.flag(key, True)]

    def read(self, settings: Settings) -> None:
        self.epsilon = settings.number("epsilon", 1e-3)
        for name, slot in (("weight", "gamma"), ("bias", "beta")):
            if slot in self._held:
                self.keep(name, slot, tuple(range(self._held[slot].value.ndim)))
            else:
                setattr(self, name, None)


@known_as("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2")
class BatchNormalization(Scaled):
    """Each channel by what its mean and variance were in training."""

    running_mean: Tensor
    running_var: Tensor

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return [*super().slots(settings), "moving_mean", "moving_variance"]

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.axes = settings.axes("axis", -1)
        self.check("the number of its axes", len(self.axes), 1)
        self.keep("running_mean", "moving_mean", (0,))
        self.keep("running_var", "moving_variance", (0,))

    def forward(self, x: Tensor) -> Tensor:
        turned = x.movedim(self.axes[0], 1)
        out = F.batch_norm(
            turned, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.epsilon
        )
        return out.movedim(1, self.axes[0])


@known_as("LayerNormalization")
class LayerNormalization(Scaled):
    """Each sample by its own mean and variance over the last axes."""

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.axes = settings.axes("axis", -1)
        settings.flag("rms_scaling", False)
        if settings.flag("rms_scaling", False):
            raise settings.wrong("rms_scaling", True)

    def forward(self, x: Tensor) -> Tensor:
        axes = sorted(a % x.ndim for a in self.axes)
        if axes != list(range(axes[0], x.ndim)):
            raise ValueError("a LayerNormalization over other axes than the last ones")
        return F.layer_norm(x, x.shape[axes[0] :], self.weight, self.bias, self.epsilon)


@known_as("GroupNormalization")
class GroupNormalization(Scaled):
    """Each group of channels by its own mean and variance."""

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.groups = settings.whole("groups", 32, least=-1)
        (self.axis,) = settings.axes("axis", -1)[:1]

    def forward(self, x: Tensor) -> Tensor:
        turned = x.movedim(self.axis, 1)
        groups = turned.shape[1] if self.groups == -1 else self.groups
        return F.group_norm(turned, groups, self.weight, self.bias, self.epsilon).movedim(1, self.axis)


@known_as("UnitNormalization")
class UnitNormalization(Layer):
    """Vectors of length one."""

    def read(self, settings: Settings) -> None:
        self.axes = settings.axes("axis", -1)

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=self.axes, keepdim=True).clamp_min(1e-12)


@known_as("LayerScale")
class LayerScale(Layer):
    """Times a learnt number for each channel, as in ConvNeXt."""

    weight: Tensor

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return ["gamma"]

    def read(self, settings: Settings) -> None:
        settings.get("init_values")
        settings.get("projection_dim")
        self.keep("weight", "gamma", (0,))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight
