"""Activations by the names that Keras gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.keras.layers.settings import TF2ONNX, Settings

_PLACES = {"builtins", "keras.activations", "keras.src.activations.activations"}  # modules of functions

Function = Callable[[Tensor], Tensor]


def linear(x: Tensor) -> Tensor:
    return x


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def hard_sigmoid_of_keras_2(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


def squareplus(x: Tensor) -> Tensor:
    return (x + (x * x + 4).sqrt()) / 2


def log_softmax(x: Tensor) -> Tensor:
    return x.log_softmax(-1)


FUNCTIONS: dict[str, Function] = {
    "linear": linear, "relu": F.relu, "relu6": F.relu6, "leaky_relu": leaky, "elu": F.elu, "celu": F.celu,
    "selu": F.selu, "gelu": F.gelu, "silu": F.silu, "swish": F.silu, "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish, "hard_swish": F.hardswish, "softplus": F.softplus, "softsign": F.softsign,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softmax": softmax, "log_softmax": log_softmax,
    "exponential": torch.exp, "mish": F.mish, "log_sigmoid": F.logsigmoid, "hard_tanh": F.hardtanh,
    "tanh_shrink": F.tanhshrink, "soft_shrink": F.softshrink, "hard_shrink": F.hardshrink,
    "squareplus": squareplus,
}  # fmt: skip


def named(settings: Settings, key: str, default: str = "linear") -> Function:
    """The function that a setting names; activations may be layers of their own, with settings.

    Raises:
        BadInput: there is none of this name.
    """
    said = settings.get(key, default)
    version = settings.version
    if isinstance(said, dict):
        kind, inner = said.get("class_name"), said.get("config")
        if kind == "function" and said.get("module") in _PLACES:
            said = inner
        elif isinstance(kind, str) and kind in LAYERS and isinstance(inner, dict) and _own(said):
            own = Settings(kind, settings.name, inner, version)
            function = LAYERS[kind](own)
            own.precision  # noqa: B018
            own.check_all_read()
            return function
    if not isinstance(said, str) or said not in FUNCTIONS:
        what = said if isinstance(said, str) else said.get("class_name") if isinstance(said, dict) else said
        raise BadInput(
            f"its layer {settings.name[:60]!r} has an activation of its own ({str(what)[:60]}), whose code "
            f"is not run; {TF2ONNX}"
        )
    if version == 2 and said == "hard_sigmoid":
        return hard_sigmoid_of_keras_2
    return FUNCTIONS[said]


def _own(said: dict[str, Any]) -> bool:
    """Whether an object is one of Keras itself."""
    module = said.get("module", "keras")
    return isinstance(module, str) and module.split(".")[0] in ("keras", "tf_keras")


# ---------------------------------------------------------------------- activations that are layers


class Bent:
    """ReLU with all that it can be told; `limit` may be missing."""

    def __init__(self, slope: float, limit: float | None, threshold: float) -> None:
        self.slope, self.limit, self.threshold = slope, limit, threshold

    def __call__(self, x: Tensor) -> Tensor:
        above = x if self.limit is None else x.clamp(max=self.limit)
        return torch.where(x >= self.threshold, above, self.slope * (x - self.threshold))


class Elu:
    """ELU with a scale of the negative part."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)


class Softmax:
    """Softmax along an axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(self, x: Tensor) -> Tensor:
        return x.softmax(self.axis)


def _relu(s: Settings) -> Function:
    slope, threshold = s.number("negative_slope", 0.0), s.number("threshold", 0.0)
    limit = s.get("max_value")
    if limit is not None:
        limit = s.number("max_value", 0.0)
    if not slope and not threshold:  # the same, with the gradient of a plain ReLU at 0
        return F.relu if limit is None else F.relu6 if limit == 6 else Bent(0.0, limit, 0.0)
    return Bent(slope, limit, threshold)


def _leaky(s: Settings) -> Function:
    return Bent(s.number("negative_slope", s.number("alpha", 0.3)), None, 0.0)


def _softmax(s: Settings) -> Function:
    (axis,) = s.axes("axis", -1)
    return Softmax(axis)


LAYERS: dict[str, Callable[[Settings], Function]] = {
    "Activation": lambda s: named(s, "activation"),
    "ReLU": _relu, "LeakyReLU": _leaky, "ELU": lambda s: Elu(s.number("alpha", 1.0)), "Softmax": _softmax,
    "ThresholdedReLU": lambda s: Bent(0.0, None, s.number("theta", 1.0)),
}  # fmt: skip
