"""Layers that give values another shape or place: flattening, padding, merging, preprocessing, operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.keras.layers.base import Layer, channels_first, channels_last, known_as, stacked
from backsweep.formats.keras.layers.settings import Settings

_EPSILON = 1e-7  # of Keras, for the standard deviations of its normalisation of inputs


# ---------------------------------------------------------------------- shapes


@known_as(
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "AlphaDropout", "GaussianNoise",
    "ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
    "RandomContrast", "RandomBrightness", "RandomHue", "RandomSaturation", "RandomColorJitter",
    "RandomColorDegeneration", "RandomSharpness", "RandomShear", "RandomErasing", "RandomPosterization",
    "RandomGrayscale", "RandomGaussianBlur", "RandomInvert", "RandomPerspective", "RandomElasticTransform",
    "RandAugment", "AugMix", "Identity", "StochasticDepth",
)  # fmt: skip
class Identity(Layer):
    """What does something in training alone."""

    lenient = True

    def forward(self, x: Tensor) -> Tensor:
        return x


@known_as("Flatten")
class Flatten(Layer):
    """All values of a sample in a row, channels last."""

    def read(self, settings: Settings) -> None:
        self.first = settings.first

    def forward(self, x: Tensor) -> Tensor:
        return (channels_last(x) if self.first and x.ndim > 2 else x).flatten(1)


@known_as("Reshape")
class Reshape(Layer):
    """The values of a sample in another shape."""

    def read(self, settings: Settings) -> None:
        shape = settings.get("target_shape")
        self.shape = settings.sizes("target_shape", len(shape) if isinstance(shape, list) else 1, least=-1)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


@known_as("Permute")
class Permute(Layer):
    """The axes in another order, counted from 1."""

    def read(self, settings: Settings) -> None:
        dims = settings.get("dims")
        self.dims = settings.sizes("dims", len(dims) if isinstance(dims, list) else 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *self.dims)


@known_as("RepeatVector")
class RepeatVector(Layer):
    """Each vector several times."""

    def read(self, settings: Settings) -> None:
        self.times = settings.whole("n")

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None].expand(-1, self.times, -1)


@known_as("ZeroPadding2D", "Cropping2D")
class Padding(Layer):
    """Rows and columns of zeros around images, or cut off."""

    def read(self, settings: Settings) -> None:
        self.first = settings.first
        key, sign = ("cropping", -1) if settings.kind == "Cropping2D" else ("padding", 1)
        rows, columns = settings.pairs(key)
        self.around = [sign * n for n in (*columns, *rows)]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.around if self.first else [0, 0, *self.around])


@known_as("ZeroPadding1D", "Cropping1D")
class Padding1D(Layer):
    """Steps of zeros around a sequence, or cut off."""

    def read(self, settings: Settings) -> None:
        key, sign = ("cropping", -1) if settings.kind == "Cropping1D" else ("padding", 1)
        self.around = [sign * n for n in settings.sizes(key, 2, 1, 0)]
        self.first = settings.first

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.around if self.first else [0, 0, *self.around])


class Resized(Layer):
    """Images of another size."""

    size: tuple[int, int]

    def read(self, settings: Settings) -> None:
        self.first = settings.first
        self.how = settings.choice("interpolation", ("nearest", "bilinear"), self.default)

    default = "bilinear"

    def forward(self, x: Tensor) -> Tensor:
        turned = x if self.first else channels_first(x)
        size = self.wanted(turned)
        if self.how == "bilinear":
            turned = F.interpolate(turned, size, mode="bilinear", align_corners=False)
        else:
            turned = F.interpolate(turned, size, mode="nearest-exact")
        return turned if self.first else channels_last(turned)

    def wanted(self, x: Tensor) -> tuple[int, int]:
        """Height and width for x (N, C, H, W)."""
        return self.size


@known_as("UpSampling2D")
class UpSampling(Resized):
    """Images several times as large."""

    default = "nearest"

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.times = settings.sizes("size", 2, 2)

    def wanted(self, x: Tensor) -> tuple[int, int]:
        return x.shape[2] * self.times[0], x.shape[3] * self.times[1]


@known_as("Resizing")
class Resizing(Resized):
    """Images of a size that is told."""

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.size = (settings.whole("height"), settings.whole("width"))
        settings.get("fill_mode")
        settings.get("fill_value")


# ---------------------------------------------------------------------- merging, operations between layers

_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": torch.add, "Subtract": torch.sub, "Multiply": torch.mul, "Maximum": torch.maximum,
    "Minimum": torch.minimum, "Average": torch.add, "Divide": torch.div, "TrueDivide": torch.div,
}  # fmt: skip
MERGED = ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average")
OPERATIONS = {*_PAIRS, "GetItem", "Mean"} - {"Average"}


def paired(kind: str, one: Any, two: Any) -> Tensor:
    """Two tensors, or a tensor and a number, place by place."""
    first, second = (torch.as_tensor(v, dtype=torch.float32) for v in (one, two))
    out: Tensor = _PAIRS[kind](first, second)
    return out


@known_as(*MERGED)
class Merged(Layer):
    """Inputs of as many axes, place by place."""

    def read(self, settings: Settings) -> None:
        self.kind = settings.kind

    def forward(self, inputs: Any, *more: Any) -> Tensor:
        if len(more) == 1:  # an operation, which HDF5 files do not tell from the layer of its name
            return paired(self.kind, inputs, more[0])
        parts = stacked(inputs)
        if len({p.ndim for p in parts}) > 1:
            raise ValueError("inputs of another number of axes each")
        whole: Tensor = reduce(_PAIRS[self.kind], parts)
        return whole / len(parts) if self.kind == "Average" else whole


@known_as("CustomScaleLayer")
class ScaledSum(Layer):
    """One input plus another one times a number, as in InceptionResNet."""

    def read(self, settings: Settings) -> None:
        self.scale = settings.number("scale", 1.0)

    def forward(self, inputs: Any) -> Tensor:
        one, two = stacked(inputs)
        return one + two * self.scale


@known_as("Concatenate")
class Concatenate(Layer):
    """Inputs one behind the other."""

    def read(self, settings: Settings) -> None:
        (self.axis,) = settings.axes("axis", -1)[:1]

    def forward(self, inputs: Any) -> Tensor:
        return torch.cat(stacked(inputs), self.axis)


class Operation(Layer):
    """An operation of Keras that was written between layers: `x + y`, `x[:, 0]`, a mean."""

    def read(self, settings: Settings) -> None:
        self.kind = settings.kind
        if self.kind == "Mean":
            axis = settings.get("axis")
            self.axes = settings.axes("axis", -1) if axis is not None else ()
            self.wide = settings.flag("keepdims", False)
            if not self.axes or 0 in self.axes:
                raise settings.wrong("axis", axis)

    def forward(self, x: Any, *more: Any) -> Tensor:
        if self.kind == "Mean" and not more:
            return x.mean(self.axes, self.wide)
        if self.kind == "GetItem" and len(more) == 1:
            key = tuple(more[0]) if isinstance(more[0], list) else (more[0],)
            if not all(isinstance(k, int | slice) for k in key) or key[:1] != (slice(None),):
                raise BadInput("it takes other parts of its batch, or parts by a tensor; rebuild it without")
            return x[key]
        if len(more) == 1 and self.kind in _PAIRS:
            return paired(self.kind, x, more[0])
        raise ValueError(f"{self.kind} with {len(more) + 1} inputs")


# ---------------------------------------------------------------------- preprocessing


@known_as("Rescaling")
class Rescaling(Layer):
    """Times a number, plus a number; or one for each channel."""

    scale: Tensor
    offset: Tensor

    def read(self, settings: Settings) -> None:
        for key, default in (("scale", 1.0), ("offset", 0.0)):
            numbers = settings.numbers(key) or [default]
            value = torch.tensor(numbers if len(numbers) > 1 else numbers[0])
            self.register_buffer(key, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


@known_as("Normalization")
class Normalization(Layer):
    """Minus means, by standard deviations: learnt from data, or told."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return [] if settings.get("mean") is not None else ["mean", "variance", "count"]

    def read(self, settings: Settings) -> None:
        axis = settings.get("axis", -1)
        axes = [] if axis is None else list(settings.axes("axis", -1))
        if len(axes) > 1:
            raise settings.wrong("axis", axis)
        self.axis = axes[0] if axes else -1
        self.back = settings.flag("invert", False)
        for key in ("mean", "variance"):
            if key in self._held:
                self.keep(key, key, tuple(range(self._held[key].value.ndim)))
                settings.get(key)
            else:
                numbers = settings.numbers(key) or [0.0]
                self.register_buffer(key, torch.tensor(numbers), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        mean = self.mean.reshape(shape)
        deviation = self.variance.reshape(shape).sqrt().clamp_min(_EPSILON)
        return mean + x * deviation if self.back else (x - mean) / deviation
