"""Operators of ONNX over torch: element by element, reductions, types, quantised values.

An operator is a function of its node and its inputs, None for one that is left out. All of them make
tensors of tensors: none reads a file or writes one, is random, or changes its inputs. Floats of any
size are float32 here, and quantised values are floats too, so that gradients pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.onnx.graph import Node
from backsweep.formats.onnx.tensors import DTYPES

OPERATORS: dict[str, Callable[..., Any]] = {}
HOST: dict[str, tuple[int, ...]] = {}  # inputs that are sizes or axes: they are read as numbers
_MOST_VALUES = 2**28  # that one node may make out of sizes
_INTEGERS = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767),
             torch.int64: (0, 65535)}  # fmt: skip


def operator(*names: str, host: tuple[int, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the operator of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS[name] = function
            HOST[name] = host
        return function

    return register


def working(number: int) -> torch.dtype:
    """The dtype in which values of an ONNX type are computed here."""
    dtype = DTYPES.get(number)
    if dtype is None:
        raise BadInput(
            f"it computes with the ONNX type {number}, which torch does not have; export with floats"
        )
    if dtype.is_floating_point:
        return torch.float32
    return torch.int64 if dtype in (torch.uint16, torch.uint32, torch.uint64) else dtype


def worked(tensor: Tensor) -> Tensor:
    """A stored tensor as it is computed with; what is finite stays so."""
    if tensor.dtype == torch.float64:
        largest = torch.finfo(torch.float32).max
        return torch.where(tensor.isfinite(), tensor.clamp(-largest, largest), tensor).float()
    if tensor.is_floating_point():
        return tensor.float()
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def ints(tensor: Tensor) -> list[int]:
    """The numbers in a tensor of sizes or axes."""
    return [int(v) for v in tensor.reshape(-1).tolist()]


def room(sizes: Sequence[int]) -> Sequence[int]:
    """The sizes, if a tensor of them is no absurdity."""
    if math.prod(sizes) > _MOST_VALUES:
        raise BadInput(
            f"it makes a tensor of shape {list(sizes)}, which is too large for an image classifier"
        )
    return sizes


def only(node: Node, outputs: int = 1) -> None:
    """Refuse a node of which more outputs are used than are computed here."""
    if any(node.outputs[outputs:]):
        raise BadInput(
            f"it uses the further outputs of {node}, which are not computed; export it for inference"
        )


# ---------------------------------------------------------------------- one tensor

for _name, _function in {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Relu": torch.relu,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh, "BitwiseNot": torch.bitwise_not, "Identity": lambda x: x,
}.items():  # fmt: skip
    operator(_name)(lambda node, x, f=_function: f(x))

_WITH_SETTINGS: dict[str, Callable[..., Any]] = {
    "Elu": lambda n, x: F.elu(x, n.get("alpha", 1.0)),
    "Celu": lambda n, x: F.celu(x, n.get("alpha", 1.0)),
    "LeakyRelu": lambda n, x: F.leaky_relu(x, n.get("alpha", 0.01)),
    "ThresholdedRelu": lambda n, x: F.threshold(x, n.get("alpha", 1.0), 0.0),
    "HardSigmoid": lambda n, x: (n.get("alpha", 0.2) * x + n.get("beta", 0.5)).clamp(0, 1),
    "Gelu": lambda n, x: F.gelu(x, approximate=n.get("approximate", "none")),
    "Swish": lambda n, x: x * torch.sigmoid(n.get("alpha", 1.0) * x),
    "PRelu": lambda n, x, slope: torch.where(x < 0, slope * x, x),
}
for _name, _function in _WITH_SETTINGS.items():
    operator(_name)(_function)


@operator("Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.050701)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


@operator("Shrink")
def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, edge = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))


@operator("Clip")
def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("IsInf")
def _is_inf(node: Node, x: Tensor) -> Tensor:
    up, down = bool(node.get("detect_positive", 1)), bool(node.get("detect_negative", 1))
    return (torch.isposinf(x) & up) | (torch.isneginf(x) & down)


@operator("Dropout")
def _dropout(node: Node, x: Tensor, ratio: Any = None, training: Tensor | None = None) -> Tensor:
    only(node)
    if training is not None and bool(training):
        raise BadInput("it was exported in training mode; call net.eval(), then export again")
    return x


@operator("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    shape, axis = x.shape, node.get("axis", 1 if node.opset < 13 else -1)
    if node.opset < 13:  # over all axes from this one on
        axis = axis % x.ndim
        x, axis = x.reshape(math.prod(shape[:axis]), -1), 1
    if node.op == "Softmax":
        x = x.softmax(axis)
    elif node.op == "LogSoftmax":
        x = x.log_softmax(axis)
    else:
        x = torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
    return x.reshape(shape)


# ---------------------------------------------------------------------- two tensors or more


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


for _name, _function in {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divided, "Equal": torch.eq,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "Pow": lambda a, b: torch.pow(a, b).to(a.dtype),
}.items():  # fmt: skip
    operator(_name)(lambda node, a, b, f=_function: f(a, b))


@operator("Sum", "Mean", "Max", "Min")
def _several(node: Node, *xs: Tensor) -> Tensor:
    pair = {"Max": torch.maximum, "Min": torch.minimum}.get(node.op, torch.add)
    out = functools.reduce(pair, xs)
    return out / len(xs) if node.op == "Mean" else out


@operator("Mod")
def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@operator("BitShift")
def _bit_shift(node: Node, a: Tensor, b: Tensor) -> Tensor:
    shift = torch.bitwise_left_shift if node.get("direction") == "LEFT" else torch.bitwise_right_shift
    return shift(a, b)


@operator("Where")
def _where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


# ---------------------------------------------------------------------- reductions

_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceSum": lambda x, d, k: x.sum(d, k, dtype=x.dtype),
    "ReduceMean": lambda x, d, k: (
        x.mean(d, k) if x.is_floating_point() else x.double().mean(d, k).to(x.dtype)
    ),
    "ReduceMax": lambda x, d, k: x.amax(d, k),
    "ReduceMin": lambda x, d, k: x.amin(d, k),
    "ReduceL1": lambda x, d, k: x.abs().sum(d, k, dtype=x.dtype),
    "ReduceL2": lambda x, d, k: torch.linalg.vector_norm(x.float(), 2, d, k).to(x.dtype),
    "ReduceLogSum": lambda x, d, k: x.sum(d, k).log(),
    "ReduceLogSumExp": lambda x, d, k: x.logsumexp(d, k),
    "ReduceSumSquare": lambda x, d, k: x.square().sum(d, k, dtype=x.dtype),
}


@operator(*_REDUCTIONS, "ReduceProd", host=(1,))
def _reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = ints(axes) if axes is not None else list(node.get("axes", []))
    if not dims and node.get("noop_with_empty_axes", 0):
        return x
    dims = sorted({range(x.ndim)[d] for d in dims}) or list(range(x.ndim))
    keep = bool(node.get("keepdims", 1))
    if not x.ndim:
        dims, keep = [0], False
        x = x.reshape(1)
    if node.op != "ReduceProd":
        return _REDUCTIONS[node.op](x, dims, keep)
    for dim in reversed(dims):
        x = x.prod(dim, keep, dtype=x.dtype)
    return x


@operator("ArgMax", "ArgMin")
def _arg(node: Node, x: Tensor) -> Tensor:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    pick = torch.argmax if node.op == "ArgMax" else torch.argmin
    if node.get("select_last_index", 0):
        return x.shape[axis] - 1 - pick(x.flip(axis), axis, keep)
    return pick(x, axis, keep)


@operator("TopK", host=(1,))
def _top_k(node: Node, x: Tensor, k: Tensor) -> Any:
    return torch.topk(x, ints(k)[0], node.get("axis", -1), bool(node.get("largest", 1)), True)


@operator("CumSum", host=(1,))
def _cum_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    dim = ints(axis)[0]
    turned = x.flip(dim) if node.get("reverse", 0) else x
    out = turned.cumsum(dim, dtype=x.dtype)
    if node.get("exclusive", 0):
        out = out - turned
    return out.flip(dim) if node.get("reverse", 0) else out


@operator("LpNormalization")
def _lp_normalization(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, node.get("p", 2), node.get("axis", -1))


# ---------------------------------------------------------------------- types, quantised values


@operator("Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    return _to(x, working(node.get("to")))


@operator("CastLike")
def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    return _to(x, like.dtype)


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x != 0 if dtype == torch.bool else x.to(dtype)


def _along(node: Node, x: Tensor, part: Tensor) -> Tensor:
    """A scale of one value, or of one value for each place on an axis, shaped to multiply x with."""
    if node.get("block_size", 0):
        raise BadInput("it is quantised in blocks, which is not read; export the model with float weights")
    if part.numel() == 1:
        return part.reshape(())
    shape = [1] * x.ndim
    shape[node.get("axis", 1)] = -1
    return part.reshape(shape)


@operator("QuantizeLinear")
def _quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = zero.dtype if zero is not None else working(node.get("output_dtype") or 2)
    if kind not in _INTEGERS:
        raise BadInput(f"it quantises to {kind}, which is not run here; export the model with float weights")
    x = x / _along(node, x, scale)
    x = x + (x.round() - x).detach()  # the gradient goes straight through
    if zero is not None:
        x = x + _along(node, x, zero.float())
    return x.clamp(*_INTEGERS[kind])


@operator("DequantizeLinear")
def dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """The floats that quantised values stand for."""
    x = x.float()
    if zero is not None:
        x = x - _along(node, x, zero.float())
    return x * _along(node, x, scale)


# ---------------------------------------------------------------------- scikit-learn


@operator("ai.onnx.ml.Scaler")
def _scaler(node: Node, x: Tensor) -> Tensor:
    offset, scale = (
        torch.tensor(node.get(n, d), device=x.device) for n, d in (("offset", [0.0]), ("scale", [1.0]))
    )
    return (x.float() - offset) * scale


@operator("ai.onnx.ml.Normalizer")
def _normalizer(node: Node, x: Tensor) -> Tensor:
    order = {"MAX": math.inf, "L1": 1.0, "L2": 2.0}[node.get("norm", "MAX")]
    return F.normalize(x.float(), order, 1)
