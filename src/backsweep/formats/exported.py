"""Exported programs (.pt2): read as data, and run operator by operator.

`torch.export.load` is not safe on a stranger's file, and nothing of it is used here: it unpickles
members of the archive, passes symbolic expressions to an evaluator of Python source, resolves
operators by attribute access on `torch`, writes Python source from the names in the graph, and
runs guards with `exec`. The graph itself is plain JSON. `Program` runs its nodes one after the
other, and only operators of the list below. Sample inputs, guards, symbolic expressions and
module signatures are never looked at.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.archives import WAY_OUT
from backsweep.formats.programs import DTYPES, program_parts

# Numbers that the format gives to memory formats.
_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last,
    3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip

# Operators of aten that make tensors of tensors: none reads a file or writes one, and none but
# dropout, which is refused in training mode, is random. A name covers its in-place form too.
_ATEN = frozenset(
    name
    for line in (
        "__and__ __or__ _adaptive_avg_pool2d _convolution _log_softmax _native_batch_norm_legit",
        "_native_batch_norm_legit_no_training _softmax _to_copy _unsafe_index _unsafe_view abs acos",
        "acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addcdiv addcmul addmm",
        "affine_grid_generator alias all alpha_dropout amax amin any arange argmax argmin argsort",
        "as_strided asin asinh atan atan2 atanh avg_pool1d avg_pool2d baddbmm batch_norm bitwise_and",
        "bitwise_not bitwise_or bitwise_xor bmm broadcast_tensors broadcast_to cat ceil celu chunk",
        "clamp clamp_max clamp_min clone col2im concat constant_pad_nd contiguous conv1d conv2d",
        "conv_transpose2d convolution copy cos cosh cumsum detach diagonal div dropout einsum elu",
        "embedding eq erf exp expand expand_as expm1 eye feature_dropout fill flatten flip floor",
        "floor_divide fmod full full_like gather ge gelu glu grid_sampler grid_sampler_2d group_norm",
        "gt hardsigmoid hardswish hardtanh im2col index index_put index_select instance_norm isfinite",
        "isinf isnan layer_norm le leaky_relu lerp lift_fresh_copy linalg_norm linalg_vector_norm",
        "linear linspace log log10 log1p log2 log_sigmoid log_softmax logical_and logical_not",
        "logical_or logical_xor logsumexp lt masked_fill matmul max max_pool2d maximum mean meshgrid",
        "max_pool2d_with_indices min minimum mish mm movedim mul mv narrow native_batch_norm",
        "native_dropout native_group_norm native_layer_norm ne neg new_full new_ones new_zeros norm",
        "numpy_T one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow prelu prod",
        "reciprocal reflection_pad2d relu relu6 remainder repeat repeat_interleave replication_pad2d",
        "reshape rms_norm roll round rsqrt rsub scalar_tensor scaled_dot_product_attention scatter",
        "scatter_add select select_scatter selu sigmoid sign silu sin sinh slice slice_scatter softmax",
        "softplus sort split split_with_sizes sqrt square squeeze stack std std_mean sub sum swapaxes",
        "sym_numel sym_size t tan tanh threshold tile to topk transpose tril triu trunc type_as unbind",
        "unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var",
        "var_mean view view_as where zero zeros zeros_like",
    )
    for name in line.split()
)
_CHECKS = re.compile(r"torch\.ops\.aten\.(_assert_\w+|sym_constrain_range\w*)\.\w+")  # not run

# Arithmetic on sizes.
_SCALARS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{f.__name__}": f for f in (
        operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
        operator.truediv, operator.neg, operator.pos, operator.eq, operator.ne, operator.lt,
        operator.le, operator.gt, operator.ge, operator.and_, operator.or_,
    )},
    **{f"math.{f.__name__}": f for f in (math.trunc, math.floor, math.ceil)},
    "torch.sym_int": int, "torch.sym_float": float, "torch.sym_not": operator.not_,
    "torch.sym_max": max, "torch.sym_min": min, "torch.sym_sqrt": math.sqrt,
    "torch._sym_sqrt": math.sqrt, "torch.sym_ite": lambda test, yes, no: yes if test else no,
}  # fmt: skip


@dataclass(frozen=True)
class _Ref:
    """A value that exists only when the graph runs; "" is the device of the input."""

    name: str


@dataclass(frozen=True)
class _Step:
    """One node: `op(*args, **kwargs)`, the names of its results, the names it is the last to use."""

    op: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    outputs: list[Any]
    done: tuple[str, ...]

    def __getstate__(self) -> dict[str, Any]:
        """Operators of torch go to other processes by their names."""
        return vars(self) | ({"op": str(self.op)} if isinstance(self.op, torch._ops.OpOverload) else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        op = state["op"]
        if isinstance(op, str):
            _, name, form = op.split(".")
            op = getattr(getattr(torch.ops.aten, name), form)
        vars(self).update(state | {"op": op})


class Program(nn.Module):
    """The graph of an exported program as a module; its state_dict has the names of the original.

    Attributes:
        batch: the batch size that it was exported with; None for any.
        shape: shape of one input.
        free: for each dimension of `shape`, whether it may be another size.
    """

    def __init__(self, program: dict[str, Any], tensors: dict[str, Tensor], saved: set[str]) -> None:
        super().__init__()
        graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
        self._weights: dict[str, str] = {}  # name in the graph -> name in the state_dict
        inputs = []
        for spec in signature["input_specs"]:
            ((kind, value),) = spec.items()
            if kind == "user_input":
                inputs += _refs(_argument(value["arg"]))
            elif kind in ("parameter", "buffer", "tensor_constant"):
                key = value[f"{kind}_name"]
                _attach(self, key, tensors[key], kind == "parameter", key in saved)
                self._weights[value["arg"]["name"]] = key
            elif kind != "constant_input":
                raise BadInput(f"the program holds a {kind} object, which is not read; {WAY_OUT}")
        if len(inputs) != 1:
            raise BadInput(f"the program takes {len(inputs)} inputs; export one that takes images only")
        self._input = inputs[0].name
        meta = graph["tensor_values"][self._input]
        self._dtype = DTYPES[meta["dtype"]]
        sizes = [_size(s) for s in meta["sizes"]]
        self.batch = None if sizes[0][1] else sizes[0][0]
        self.shape = tuple(size for size, _ in sizes[1:])
        self.free = tuple(free for _, free in sizes[1:])
        users = [o["user_output"]["arg"] for o in signature["output_specs"] if "user_output" in o]
        self._output = next(r.name for arg in users for r in _refs(_argument(arg)))
        self._steps = _steps(graph["nodes"], keep=self._output)

    def forward(self, x: Tensor) -> Tensor:
        """First output of the program, as float32, for inputs x (N, *shape)."""
        tensors: dict[str, Tensor] = dict(self.named_parameters(remove_duplicate=False))
        tensors.update(self.named_buffers(remove_duplicate=False))
        env: dict[str, Any] = {name: tensors[key] for name, key in self._weights.items()}
        lent = [x, *env.values()]
        versions = [t._version for t in lent]
        env.update({"": x.device, self._input: x.to(self._dtype)})
        for step in self._steps:
            kwargs = {name: _fill(value, env) for name, value in step.kwargs.items()}
            _bind(step.outputs, step.op(*_fill(step.args, env), **kwargs), env)
            for name in step.done:
                env.pop(name, None)
        if versions != [t._version for t in lent]:
            raise BadInput(f"the program writes to its input or its weights as it runs; {WAY_OUT}")
        out: Tensor = env[self._output]
        return out.float()


def read(blob: bytes, shape: Sequence[int] | None = None) -> Program:
    """The program in the bytes of a .pt2 file, tried to take any batch size.

    Args:
        shape: shape of one input (C, H, W), used where the program leaves it open.

    Raises:
        BadInput: an operator that is not on the list, pickled objects, compiled code, a program in
            training mode, a batch size that cannot be changed. Any other error means damage.
    """
    graph, state, constants = program_parts(blob)
    program = Program(graph, {**constants, **state}, set(state))
    if shape is not None and len(shape) == len(program.shape):
        sizes = zip(shape, program.shape, program.free, strict=True)
        program.shape = tuple(want if free else have for want, have, free in sizes)
    _check_batch(program)
    return program


# ---------------------------------------------------------------------- the graph


def _attach(root: nn.Module, key: str, tensor: Tensor, parameter: bool, saved: bool) -> None:
    """Register a tensor under its dotted name, with empty modules on the way."""
    *path, name = key.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if parameter:
        root.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    else:
        root.register_buffer(name, tensor, persistent=saved)


def _steps(nodes: list[dict[str, Any]], keep: str) -> list[_Step]:
    """The nodes to run, each with the names that no later one needs."""
    steps: list[_Step] = []
    needed = {keep}
    for node in reversed(nodes):
        if _CHECKS.fullmatch(node["target"]):
            continue
        op, args, kwargs = _call(node)
        outputs = [_argument(o) for o in node["outputs"]]
        names = {r.name for r in _refs([args, list(kwargs.values()), outputs]) if r.name}
        steps.append(_Step(op, args, kwargs, outputs, tuple(sorted(names - needed))))
        needed |= names
    return steps[::-1]


def _call(node: dict[str, Any]) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """The operator of a node with its arguments, positional as far as its schema allows."""
    target, given = node["target"], {i["name"]: i["arg"] for i in node["inputs"]}
    if target in _SCALARS:
        return _bounded(_SCALARS[target]), [_argument(i["arg"]) for i in node["inputs"]], {}
    name, op = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target), None
    if name and (name[1] in _ATEN or name[1].removesuffix("_") in _ATEN):
        op = getattr(getattr(torch.ops.aten, name[1], None), name[2], None)
    if not isinstance(op, torch._ops.OpOverload) or any(
        a.kwarg_only and a.alias_info is not None for a in op._schema.arguments
    ):  # unknown, or a form that writes to a given tensor
        raise BadInput(f"the program uses {target[:80]!r}, which is not run here; {WAY_OUT}")
    training = {"as_bool": True} in (given.get("training"), given.get("train"))
    if training and given.get("running_mean") != {"as_none": True} and op._overloadname != "no_stats":
        raise BadInput("the program was exported in training mode; call net.eval(), then export again")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for place, argument in enumerate(op._schema.arguments):
        if argument.name in given:
            value = _argument(given[argument.name])
            if argument.kwarg_only or len(args) < place:
                kwargs[argument.name] = value
            else:
                args.append(value)
    return _CHECKED.get(str(op), op), args, kwargs


def _argument(argument: dict[str, Any]) -> Any:
    """An argument or a result of a node: a plain value, a `_Ref`, or a list of them."""
    ((kind, value),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return _Ref(value["name"])
        case "as_name":
            return _Ref(value)
        case "as_device":
            return _Ref("")
        case "as_int" | "as_bool" | "as_string":
            return value
        case "as_float":
            return float(value)
        case "as_ints" | "as_bools":
            return list(value)
        case "as_floats":
            return [float(v) for v in value]
        case "as_tensors":
            return [_Ref(v["name"]) for v in value]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool" | "as_optional_tensor":
            return _argument(value)
        case "as_sym_ints" | "as_sym_floats" | "as_sym_bools" | "as_optional_tensors":
            return [_argument(v) for v in value]
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return _FORMATS[value]
        case "as_layout" if value == 7:
            return torch.strided
    raise BadInput(f"the program holds {kind[:40]!r} values, which are not run; {WAY_OUT}")


def _refs(value: Any) -> list[_Ref]:
    if isinstance(value, list):
        return [r for v in value for r in _refs(v)]
    return [value] if isinstance(value, _Ref) else []


def _fill(value: Any, env: dict[str, Any]) -> Any:
    """`value` with what its references stand for."""
    if isinstance(value, list):
        return [_fill(v, env) for v in value]
    return env[value.name] if isinstance(value, _Ref) else value


def _bind(outputs: list[Any], result: Any, env: dict[str, Any]) -> None:
    """Give the results of a node their names."""
    if not outputs:
        return
    for output, value in zip(outputs, [result] if len(outputs) == 1 else result, strict=True):
        if isinstance(output, _Ref):
            env[output.name] = value
        elif isinstance(output, list):
            env.update({r.name: v for r, v in zip(output, value, strict=True)})


def _size(size: dict[str, Any]) -> tuple[int, bool]:
    """A declared size, and whether it may be another."""
    if "as_int" in size:
        return int(size["as_int"]), False
    return int((size["as_expr"].get("hint") or {}).get("as_int", 1)), True


def _check_batch(program: Program) -> None:
    """Any number of samples must be answered as they are in batches of the declared size."""
    if (size := program.batch) is None:
        return
    if math.prod((size, *program.shape)) > 2**28:
        raise BadInput(f"its inputs, {(size, *program.shape)}, are too large to be images; export it again")
    x = torch.rand((2 * size, *program.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = torch.cat([program(x[:size]), program(x[size:])])
        try:
            got = [program(x), program(x[:1])]
        except (RuntimeError, ValueError):
            got = []
    if not got or not all(
        g.shape == w.shape and torch.allclose(g, w, atol=1e-4, equal_nan=True)
        for g, w in zip(got, (want, want[:1]), strict=True)
    ):
        raise BadInput(
            f"the program takes batches of {size} and of no other size; export again with an "
            'example of 2 samples and dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)'
        )


# ---------------------------------------------------------------------- what operators do not check


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic on sizes within 64 bits, so that no file can make it endless."""

    def run(*args: Any) -> Any:
        value = function(*args)
        if abs(value) >= 2**63:
            raise OverflowError("a size has more than 64 bits")
        return value

    return run


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Any, ...]:
    """The native forms read past the end of statistics that are too short."""
    out = torch.ops.aten.batch_norm.default(x, weight, bias, mean, var, mean is None, 0.0, rest[-1], True)
    return out, None, None


def _no_stats(x: Tensor, weight: Any, bias: Any, *rest: Any) -> tuple[Any, ...]:
    return _batch_norm(x, weight, bias, None, None, *rest)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The fast kernels read past the end of values that are fewer than the keys."""
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"attention with {tuple(key.shape)} keys and {tuple(value.shape)} values")
    out: Tensor = torch.ops.aten.scaled_dot_product_attention.default(query, key, value, *args, **kwargs)
    return out


_CHECKED: dict[str, Callable[..., Any]] = {
    "aten.native_batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten._native_batch_norm_legit.no_stats": _no_stats,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.view.default": torch.ops.aten.reshape.default,  # a view of a channels_last tensor may not exist
}
