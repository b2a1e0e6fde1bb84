"""Operators of ONNX, one by one: they answer as onnxruntime does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from backsweep.formats.onnx.graph import read
from backsweep.formats.onnx.network import Network
from backsweep.formats.onnx.operators import OPERATORS

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)
IMAGE, ROWS = (2, 3, 6, 6), (2, 8)


def f(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


def i(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def w(*shape: int) -> Any:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def model(
    op: str,
    others: Sequence[Any] = (),
    shape: Sequence[int] = IMAGE,
    opset: int = 17,
    outputs: int = 1,
    used: int = 0,
    cast: bool = False,
    domain: str = "",
    before: int = 0,
    **attributes: Any,
) -> bytes:
    """One node that takes the input "x" and constants (None: left out), `before` of them ahead of the input.

    Args:
        used: which output is looked at.
        cast: whether it is not of floats, and becomes so.
    """
    names = [f"c{n}" if c is not None else "" for n, c in enumerate(others)]
    names.insert(before, "x")
    outs = [f"y{n}" for n in range(outputs)]
    nodes = [onnx.helper.make_node(op, names, outs, domain=domain, **attributes)]
    if cast:
        nodes.append(onnx.helper.make_node("Cast", [outs[used]], ["z"], to=1))
    held = [onnx.numpy_helper.from_array(c, f"c{n}") for n, c in enumerate(others) if c is not None]
    last = "z" if cast else outs[used]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, shape)],
        [onnx.helper.make_tensor_value_info(last, 1, None)],
        held,
    )
    imports = [onnx.helper.make_opsetid("", opset)] + (
        [onnx.helper.make_opsetid(domain, 1)] if domain else []
    )
    made = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    blob: bytes = made.SerializeToString()
    return blob


def ran_by_onnxruntime(blob: bytes, x: Any) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = runtime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def network(blob: bytes) -> Network:
    return Network(read(blob, None, OPERATORS))


SIGNED, POSITIVE, UNIT = "signed", "positive", "unit"
UNARY: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        op: (SIGNED, {})
        for op in (
            "Abs",
            "Asinh",
            "Atan",
            "Ceil",
            "Cos",
            "Cosh",
            "Erf",
            "Exp",
            "Floor",
            "HardSwish",
            "Identity",
            "Mish",
            "Neg",
            "Reciprocal",
            "Relu",
            "Round",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
            "Softplus",
            "Softsign",
            "Tan",
            "Tanh",
            "Elu",
            "Celu",
            "Selu",
            "LeakyRelu",
            "ThresholdedRelu",
            "HardSigmoid",
            "Shrink",
            "Softmax",
            "LogSoftmax",
            "Hardmax",
            "Flatten",
            "Dropout",
            "LpNormalization",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "GlobalLpPool",
            "ReduceMean",
            "ReduceMax",
            "ReduceL2",
            "ReduceProd",
            "Transpose",
        )
    },
    **{op: (POSITIVE, {}) for op in ("Acosh", "Log", "Sqrt", "ReduceLogSum")},
    **{op: (UNIT, {}) for op in ("Acos", "Asin", "Atanh")},
}

CASES: dict[str, dict[str, Any]] = {
    "Elu alpha": {"op": "Elu", "alpha": 0.3},
    "Celu alpha": {"op": "Celu", "alpha": 0.3},
    "Selu": {"op": "Selu", "alpha": 1.2, "gamma": 0.7},
    "LeakyRelu alpha": {"op": "LeakyRelu", "alpha": 0.3},
    "ThresholdedRelu alpha": {"op": "ThresholdedRelu", "alpha": 0.3},
    "HardSigmoid": {"op": "HardSigmoid", "alpha": 0.4, "beta": 0.3},
    "Shrink": {"op": "Shrink", "bias": 0.2, "lambd": 0.4},
    "Gelu": {"op": "Gelu", "opset": 20},
    "Gelu tanh": {"op": "Gelu", "opset": 20, "approximate": "tanh"},
    "PRelu": {"op": "PRelu", "others": [f(0.1, 0.2, 0.3).reshape(3, 1, 1)]},
    "Clip": {"op": "Clip", "others": [np.float32(-0.5), np.float32(0.5)]},
    "Clip below": {"op": "Clip", "others": [None, np.float32(0.5)]},
    "IsNaN": {"op": "IsNaN", "cast": True},
    "IsInf": {"op": "IsInf", "cast": True},
    **{
        op: {"op": op, "others": [w(3, 1, 6)]}
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
    },
    **{
        op: {"op": op, "others": [w(3, 1, 6)], "cast": True}
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    "Pow": {"op": "Pow", "others": [f(2)]},
    "Pow int": {"op": "Pow", "others": [i(3)]},
    "Mod": {"op": "Mod", "others": [f(0.7)], "fmod": 1},
    "Max of three": {"op": "Max", "others": [w(6), w(3, 1, 1)]},
    "Where": {"op": "Where", "others": [np.array([True, False] * 3), w(6)], "before": 1},
    "Softmax axis": {"op": "Softmax", "axis": 1},
    "Softmax 11": {"op": "Softmax", "opset": 11},
    "LogSoftmax 11": {"op": "LogSoftmax", "opset": 12, "axis": 2},
    "Hardmax 11": {"op": "Hardmax", "opset": 11, "axis": 2},
    **{
        f"{op} axes": {"op": op, "axes": [1, -1], "keepdims": 0}
        for op in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSumExp",
            "ReduceSumSquare",
            "ReduceProd",
        )
    },
    "ReduceSum": {"op": "ReduceSum", "others": [i(1, 2)]},
    "ReduceSum 11": {"op": "ReduceSum", "opset": 11, "axes": [2]},
    "ReduceSum none": {"op": "ReduceSum", "noop_with_empty_axes": 1},
    "ReduceMean 18": {"op": "ReduceMean", "opset": 18, "others": [i(-1)]},
    "ReduceMax 20": {"op": "ReduceMax", "opset": 20, "others": [i(-1, 1)], "keepdims": 0},
    "ArgMax": {"op": "ArgMax", "axis": 1, "cast": True},
    "ArgMin last": {"op": "ArgMin", "axis": -1, "keepdims": 0, "select_last_index": 1, "cast": True},
    "TopK": {"op": "TopK", "others": [i(2)], "outputs": 2},
    "TopK places": {
        "op": "TopK",
        "others": [i(2)],
        "outputs": 2,
        "used": 1,
        "cast": True,
        "axis": 1,
        "largest": 0,
    },
    "CumSum": {"op": "CumSum", "others": [i(2)[0]]},
    "CumSum turned": {"op": "CumSum", "others": [i(-1)[0]], "exclusive": 1, "reverse": 1},
    "LpNormalization": {"op": "LpNormalization", "axis": 1, "p": 1},
    "Cast": {"op": "Cast", "to": 7, "cast": True},
    "Cast half": {"op": "Cast", "to": 1},
    "CastLike": {"op": "CastLike", "others": [i(1)], "cast": True},
    "Reshape": {"op": "Reshape", "others": [i(0, -1, 6)]},
    "Reshape allowzero": {"op": "Reshape", "others": [i(2, 3, 36)], "allowzero": 1},
    "Flatten": {"op": "Flatten", "axis": 2},
    "Flatten back": {"op": "Flatten", "axis": -1},
    "Transpose": {"op": "Transpose", "perm": [0, 2, 3, 1]},
    "Squeeze": {"op": "Squeeze", "others": [i(1)], "shape": (2, 1, 4)},
    "Squeeze 11": {"op": "Squeeze", "opset": 11, "axes": [-2], "shape": (2, 1, 4)},
    "Squeeze all": {"op": "Squeeze", "shape": (2, 1, 4, 1)},
    "Unsqueeze": {"op": "Unsqueeze", "others": [i(1, -1)]},
    "Unsqueeze 11": {"op": "Unsqueeze", "opset": 11, "axes": [0, 3]},
    "Concat": {"op": "Concat", "others": [w(2, 1, 6, 6)], "axis": 1},
    "Split": {"op": "Split", "others": [i(1, 2)], "axis": 1, "outputs": 2, "used": 1},
    "Split 11": {"op": "Split", "opset": 11, "axis": -1, "split": [2, 4], "outputs": 2},
    "Split even": {"op": "Split", "axis": 2, "outputs": 3, "used": 2},
    "Split 18": {
        "op": "Split",
        "opset": 18,
        "axis": 2,
        "outputs": 4,
        "used": 3,
        "num_outputs": 4,
        "shape": (2, 3, 7),
    },
    "Slice": {"op": "Slice", "others": [i(1, 0), i(9, -1), i(2, 3), i(2, 1)]},
    "Slice back": {"op": "Slice", "others": [i(-1), i(-(2**62)), i(3), i(-2)]},
    "Slice plain": {"op": "Slice", "others": [i(0, 1), i(2, 2**62)]},
    "Slice none": {"op": "Slice", "others": [i(4), i(2), i(3)]},
    "Expand": {"op": "Expand", "others": [i(5, 1, 1, 4, 6)], "shape": (3, 1, 6)},
    "Tile": {"op": "Tile", "others": [i(1, 2, 1, 3)]},
    "Pad": {"op": "Pad", "others": [i(0, 0, 1, 2, 0, 0, 0, 3), np.float32(0.5)]},
    "Pad less": {"op": "Pad", "others": [i(0, 0, -1, 2, 0, 0, 0, -1)]},
    "Pad axes": {"op": "Pad", "opset": 18, "others": [i(1, 2), None, i(-1)]},
    "Pad reflect": {"op": "Pad", "others": [i(0, 0, 3, 2, 0, 0, 5, 1)], "mode": "reflect"},
    "Pad edge": {"op": "Pad", "others": [i(0, 0, 3, 2, 0, 0, 9, 1)], "mode": "edge"},
    "Pad wrap": {"op": "Pad", "opset": 19, "others": [i(0, 0, 3, 2, 0, 0, 1, 1)], "mode": "wrap"},
    "Gather": {"op": "Gather", "others": [i(-1, 0, 2, 2).reshape(2, 2)], "axis": 2},
    "Gather one": {"op": "Gather", "others": [i(1)[0]], "axis": 1},
    "GatherElements": {
        "op": "GatherElements",
        "others": [i(0, -1, 1, 0).reshape(2, 2)],
        "shape": (2, 3),
        "axis": 1,
    },
    "GatherND": {"op": "GatherND", "others": [i(0, 1, 1, -1).reshape(2, 2)]},
    "GatherND batch": {"op": "GatherND", "others": [i(1, 2).reshape(2, 1)], "batch_dims": 1},
    "ScatterElements": {
        "op": "ScatterElements",
        "others": [i(0, -1, 1, 0).reshape(2, 2), w(2, 2)],
        "shape": (2, 3),
        "axis": 1,
    },
    "ScatterElements add": {
        "op": "ScatterElements",
        "others": [i(0, 0, 1, 1).reshape(2, 2), w(2, 2)],
        "shape": (2, 3),
        "axis": 1,
        "reduction": "add",
    },
    "ScatterND": {"op": "ScatterND", "others": [i(0, 1, 1, -1).reshape(2, 2), w(2, 6, 6)]},
    "ScatterND add": {
        "op": "ScatterND",
        "others": [i(0, 0, 0, 0).reshape(2, 2), w(2, 6, 6)],
        "reduction": "add",
    },
    "Trilu": {"op": "Trilu"},
    "Trilu low": {"op": "Trilu", "others": [i(1)[0]], "upper": 0},
    "ReverseSequence": {"op": "ReverseSequence", "others": [i(2, 3)], "batch_axis": 0, "time_axis": 1},
    "EyeLike": {"op": "EyeLike", "k": 1, "shape": (4, 5)},
    "DepthToSpace": {"op": "DepthToSpace", "blocksize": 2, "shape": (2, 8, 3, 3)},
    "DepthToSpace CRD": {"op": "DepthToSpace", "blocksize": 2, "mode": "CRD", "shape": (2, 8, 3, 3)},
    "SpaceToDepth": {"op": "SpaceToDepth", "blocksize": 2},
    "Col2Im": {"op": "Col2Im", "opset": 18, "others": [i(5, 5), i(2, 2)], "shape": (1, 12, 16)},
    "MeanVarianceNormalization": {"op": "MeanVarianceNormalization", "axes": [2, 3]},
    "Shape": {"op": "Shape", "opset": 15, "start": 1, "cast": True},
    "Size": {"op": "Size", "cast": True},
    "MatMul": {"op": "MatMul", "others": [w(6, 4)]},
    "MatMul left": {"op": "MatMul", "others": [w(4, 6)], "before": 1},
    "MatMul rows": {"op": "MatMul", "others": [w(8, 4)], "shape": ROWS},
    "MatMul stack": {"op": "MatMul", "others": [w(3, 6, 4)]},
    "Gemm": {"op": "Gemm", "others": [w(8, 4), w(4)], "shape": ROWS},
    "Gemm scaled": {
        "op": "Gemm",
        "others": [w(4, 8), w(1)],
        "shape": ROWS,
        "transB": 1,
        "alpha": 0.5,
        "beta": 2.0,
    },
    "Gemm turned": {"op": "Gemm", "others": [w(2, 4), w(8, 1)], "shape": ROWS, "transA": 1},
    "Einsum": {"op": "Einsum", "others": [w(6, 4)], "equation": "nchw,wk->nkhc"},
    "Conv": {"op": "Conv", "others": [w(4, 3, 3, 3), w(4)], "pads": [1, 1, 1, 1], "strides": [2, 2]},
    "Conv uneven": {"op": "Conv", "others": [w(4, 3, 3, 3)], "pads": [0, 1, 2, 1], "dilations": [2, 1]},
    "Conv same": {"op": "Conv", "others": [w(4, 3, 3, 2)], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "Conv same low": {"op": "Conv", "others": [w(4, 3, 3, 2)], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "Conv valid": {"op": "Conv", "others": [w(3, 1, 3, 3)], "auto_pad": "VALID", "group": 3},
    "Conv 1d": {"op": "Conv", "others": [w(4, 3, 3), w(4)], "shape": (2, 3, 9), "strides": [2]},
    "Conv 3d": {"op": "Conv", "others": [w(4, 3, 2, 2, 2)], "shape": (2, 3, 4, 4, 4)},
    "ConvTranspose": {
        "op": "ConvTranspose",
        "others": [w(3, 2, 3, 3), w(2)],
        "strides": [2, 2],
        "pads": [1, 0, 1, 1],
        "output_padding": [1, 1],
    },
    "ConvTranspose same": {
        "op": "ConvTranspose",
        "others": [w(3, 2, 3, 3)],
        "strides": [2, 2],
        "auto_pad": "SAME_UPPER",
    },
    "ConvTranspose shape": {
        "op": "ConvTranspose",
        "others": [w(3, 2, 3, 3)],
        "strides": [2, 2],
        "output_shape": [12, 12],
    },
    "ConvTranspose groups": {
        "op": "ConvTranspose",
        "others": [w(3, 2, 3, 3)],
        "group": 3,
        "dilations": [2, 1],
    },
    "MaxPool": {"op": "MaxPool", "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "MaxPool uneven": {"op": "MaxPool", "kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 1, 2, 0]},
    "MaxPool ceil": {
        "op": "MaxPool",
        "kernel_shape": [2, 3],
        "strides": [2, 2],
        "ceil_mode": 1,
        "shape": (2, 3, 7, 7),
    },
    "MaxPool wide": {"op": "MaxPool", "kernel_shape": [2, 2], "dilations": [2, 2]},
    "MaxPool same": {"op": "MaxPool", "kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "AveragePool": {"op": "AveragePool", "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "AveragePool all": {
        "op": "AveragePool",
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [1, 0, 1, 2],
        "count_include_pad": 1,
    },
    "AveragePool ceil": {
        "op": "AveragePool",
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "ceil_mode": 1,
    },
    "AveragePool ceil all": {
        "op": "AveragePool",
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "ceil_mode": 1,
        "count_include_pad": 1,
        "opset": 19,
    },
    "AveragePool same": {"op": "AveragePool", "kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
    "LpPool": {"op": "LpPool", "kernel_shape": [3, 3], "p": 3},
    "GlobalLpPool": {"op": "GlobalLpPool", "p": 3},
    "BatchNormalization": {
        "op": "BatchNormalization",
        "others": [w(3), w(3), w(3), abs(w(3))],
        "epsilon": 0.01,
    },
    "LayerNormalization": {"op": "LayerNormalization", "others": [w(6), w(6)], "epsilon": 0.01},
    "LayerNormalization axis": {"op": "LayerNormalization", "others": [w(6, 6)], "axis": 2},
    "LayerNormalization wide": {"op": "LayerNormalization", "others": [w(6, 1), w(1, 6)], "axis": -2},
    "InstanceNormalization": {"op": "InstanceNormalization", "others": [w(3), w(3)]},
    "GroupNormalization": {
        "op": "GroupNormalization",
        "opset": 21,
        "others": [w(6), w(6)],
        "num_groups": 2,
        "shape": (2, 6, 4, 4),
    },
    "LRN": {"op": "LRN", "size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.2, "shape": (2, 7, 3, 3)},
    "GridSample": {"op": "GridSample", "others": [np.tanh(w(2, 4, 5, 2))], "opset": 16},
    "GridSample corners": {
        "op": "GridSample",
        "others": [np.tanh(w(2, 4, 5, 2))],
        "opset": 20,
        "align_corners": 1,
        "mode": "cubic",
        "padding_mode": "border",
    },
    "QuantizeLinear": {"op": "QuantizeLinear", "others": [np.float32(0.02), np.uint8(100)], "cast": True},
    "QuantizeLinear axis": {
        "op": "QuantizeLinear",
        "others": [f(0.02, 0.1, 0.01), np.array([3, -4, 0], np.int8)],
        "cast": True,
    },
    "QuantizeLinear plain": {"op": "QuantizeLinear", "others": [np.float32(0.02)], "cast": True},
    "Scaler": {
        "op": "Scaler",
        "domain": "ai.onnx.ml",
        "shape": ROWS,
        "offset": [0.5] * 8,
        "scale": [float(n) for n in range(8)],
    },
    "Normalizer": {"op": "Normalizer", "domain": "ai.onnx.ml", "shape": ROWS, "norm": "L2"},
}
for _mode in ("nearest", "linear", "cubic"):
    for _where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        _how = {"op": "Resize", "mode": _mode, "coordinate_transformation_mode": _where}
        CASES[f"Resize {_mode} {_where} up"] = {**_how, "others": [f(), f(1, 1, 1.5, 2)]}
        CASES[f"Resize {_mode} {_where} down"] = {**_how, "others": [f(), f(), i(2, 3, 4, 1)]}
for _rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    CASES[f"Resize {_rounding}"] = {
        "op": "Resize",
        "others": [f(), f(1, 1, 0.7, 2.5)],
        "nearest_mode": _rounding,
        "opset": 13,
    }
CASES |= {
    "Resize 11": {"op": "Resize", "opset": 11, "others": [f(), f(1, 1, 2, 2)], "mode": "linear"},
    "Resize symmetric": {
        "op": "Resize",
        "opset": 19,
        "others": [None, f(1, 1, 1.3, 0.6)],
        "mode": "linear",
        "coordinate_transformation_mode": "half_pixel_symmetric",
    },
    "Resize antialias": {
        "op": "Resize",
        "opset": 18,
        "others": [None, f(1, 1, 0.5, 0.4)],
        "mode": "linear",
        "antialias": 1,
    },
    "Resize antialias cubic": {
        "op": "Resize",
        "opset": 18,
        "others": [None, f(1, 1, 0.5, 0.4)],
        "mode": "cubic",
        "antialias": 1,
    },
    "Resize axes": {
        "op": "Resize",
        "opset": 18,
        "others": [None, None, i(4, 9)],
        "axes": [3, 2],
        "mode": "linear",
    },
    "Resize larger": {
        "op": "Resize",
        "opset": 18,
        "others": [None, None, i(9, 12)],
        "axes": [2, 3],
        "mode": "linear",
        "keep_aspect_ratio_policy": "not_larger",
    },
    "Resize outside": {
        "op": "Resize",
        "others": [f(), f(1, 1, 1.5, 0.5)],
        "mode": "cubic",
        "exclude_outside": 1,
    },
}


def values(shape: Sequence[int], kind: str = SIGNED) -> Any:
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return {SIGNED: x, POSITIVE: abs(x) + 1.01, UNIT: np.tanh(x) * 0.9}[kind]


def check(blob: bytes, x: Any) -> None:
    want = ran_by_onnxruntime(blob, x)
    net = network(blob)
    net.last = False  # the inputs here are no images
    with torch.no_grad():
        got = net.run(torch.from_numpy(x)).numpy()
    assert (*got.shape, 1, 1)[: want.ndim] == want.shape
    np.testing.assert_allclose(got.reshape(want.shape), want.astype(np.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", UNARY)
def test_one_tensor(op: str) -> None:
    kind, attributes = UNARY[op]
    opset = {"HardSwish": 14, "Mish": 18}.get(op, 13)
    check(model(op, opset=opset, **attributes), values(IMAGE, kind))


@pytest.mark.parametrize("case", CASES)
def test_operator(case: str) -> None:
    made = dict(CASES[case])
    check(model(**made), values(made.get("shape", IMAGE)))
