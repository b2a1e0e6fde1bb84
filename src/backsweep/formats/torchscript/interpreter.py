"""TorchScript, traced, scripted or frozen, run by walking the parsed source.

Only what is named here is run: a few statements, arithmetic on sizes, and the operators of aten that an
exported program may use, which neither touch files nor draw at random. A choice that hangs on the values of
a tensor is refused, as is everything else, by its name.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.archives import WAY_OUT
from backsweep.formats.exported import _ATEN
from backsweep.formats.pickles.machine import Placeholder
from backsweep.formats.torchscript.archive import Code

_MOST_STEPS = 200_000  # statements in one run
_DEEPEST = 60  # calls in calls
_DTYPES = {0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16,
           6: torch.float32, 7: torch.float64, 11: torch.bool, 15: torch.bfloat16}  # fmt: skip
_UNCHECKED = {  # kernels that read past the end of statistics that are too short
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "native_batch_norm", "native_dropout",
}  # fmt: skip
_DEVICE = object()  # where the input is
_PLAIN: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "div": operator.truediv, "remainder": operator.mod, "neg": operator.neg, "eq": operator.eq,
    "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "len": len, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt, "abs": abs,
    "pow": operator.pow, "floor_divide": operator.floordiv, "slice": lambda x, a=None, b=None, c=1: x[a:b:c],
    "__range_length": lambda a, b, c: len(range(a, b, c)), "__derive_index": lambda i, a, c: a + i * c,
    "append": list.append, "extend": list.extend, "list": list, "__contains__": lambda a, b: b in a,
}  # fmt: skip
_ANY: dict[str, Callable[..., Any]] = {
    "__is__": operator.is_, "__isnot__": operator.is_not, "__not__": operator.not_, "dim": lambda x: x.dim(),
    "size": lambda x, *d: x.size(*d) if d else list(x.size()), "numel": lambda x: x.numel(),
    "len": len, "is_floating_point": lambda x: x.is_floating_point(), "__getitem__": lambda x, i: x[i],
}  # fmt: skip
_PRIM: dict[str, Callable[..., Any]] = {
    "NumToTensor": lambda v: v, "unchecked_cast": lambda v: v, "dtype": lambda x: x.dtype,
    "device": lambda x: _DEVICE, "min": min, "max": max, "is_cuda": lambda x: x.is_cuda,
    "is_nested": lambda x: False,
}  # fmt: skip


class _Returned(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True)
class Weight:
    """In the place of a tensor of the file: its name among the tensors of the module."""

    name: str


class Run:
    """One run of a module.

    Args:
        code: classes and functions by their full names.
        constants: what the source calls CONSTANTS.c0, c1, ….
        tensors: what the tensors of the file are now, by their names.
        device: where the input is.
    """

    def __init__(
        self,
        code: dict[str, Code],
        constants: list[Any],
        tensors: dict[str, Tensor],
        device: torch.device,
    ) -> None:
        self.code, self.constants, self.device = code, constants, device
        self.tensors = tensors
        self.steps, self.depth = 0, 0

    def method(self, obj: Placeholder, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        kind = self.code.get(obj.name)
        for part in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(part, ast.FunctionDef) and part.name == name:
                return self.call(part, [obj, *args], kwargs)
        raise BadInput(f"it calls {name[:60]!r} of {obj.name[:80]!r}, which it has no code for; {WAY_OUT}")

    def call(self, function: ast.FunctionDef, args: list[Any], kwargs: dict[str, Any]) -> Any:
        names = [a.arg for a in function.args.args]
        defaults = dict(zip(names[::-1], function.args.defaults[::-1], strict=False))
        frame = dict(zip(names, args, strict=False)) | kwargs
        for name in names:
            if name not in frame:
                frame[name] = self.value(defaults[name], {})
        if len(args) > len(names) or self.depth > _DEEPEST:
            raise BadInput(
                f"its function {function.name[:60]!r} calls itself, or is called wrongly; {WAY_OUT}"
            )
        self.depth += 1
        try:
            self.block(function.body, frame)
        except _Returned as e:
            return e.value
        finally:
            self.depth -= 1
        return None

    # ------------------------------------------------------------------ statements

    def block(self, body: Sequence[ast.stmt], frame: dict[str, Any]) -> None:
        for node in body:
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise BadInput(f"it runs more than {_MOST_STEPS:,} statements for one input; {WAY_OUT}")
            match node:
                case ast.Assign(targets=[target]):
                    self.bind(target, self.value(node.value, frame), frame)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self.bind(target, self.value(value, frame), frame)
                case ast.Return():
                    raise _Returned(None if node.value is None else self.value(node.value, frame))
                case ast.If():
                    self.block(node.body if self.choice(node.test, frame) else node.orelse, frame)
                case ast.For(target=ast.Name(), iter=ast.Call(func=ast.Name(id="range"), args=[count])):
                    for index in range(int(self.value(count, frame))):
                        self.steps += 1
                        if self.steps > _MOST_STEPS:
                            raise BadInput(f"it runs more than {_MOST_STEPS:,} statements; {WAY_OUT}")
                        self.bind(node.target, index, frame)
                        self.block(node.body, frame)
                case ast.Expr():
                    self.value(node.value, frame)
                case ast.Pass() | ast.AnnAssign():
                    pass
                case _:
                    raise BadInput(
                        f"it has a {type(node).__name__} statement, which is not run here; {WAY_OUT}"
                    )

    def bind(self, target: ast.expr, value: Any, frame: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            frame[target.id] = value
        elif isinstance(target, ast.Tuple):
            for part, one in zip(target.elts, value, strict=True):
                self.bind(part, one, frame)
        else:
            raise BadInput(f"it writes to parts of its objects as it runs; {WAY_OUT}")

    def choice(self, test: ast.expr, frame: dict[str, Any]) -> bool:
        value = self.value(test, frame)
        if isinstance(value, Tensor):
            raise BadInput(f"it chooses what to run by the values of a tensor; {WAY_OUT}")
        return bool(value)

    # ------------------------------------------------------------------ expressions

    def value(self, node: ast.expr, frame: dict[str, Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return frame[node.id] if node.id in frame else {"inf": math.inf, "nan": math.nan}[node.id]
            case ast.List() | ast.Tuple():
                parts = [self.value(e, frame) for e in node.elts]
                return parts if isinstance(node, ast.List) else tuple(parts)
            case ast.Dict():
                keys = [self.value(k, frame) for k in node.keys if k is not None]
                return dict(zip(keys, (self.value(v, frame) for v in node.values), strict=True))
            case ast.UnaryOp(op=ast.USub()):
                return -self.value(node.operand, frame)
            case ast.UnaryOp(op=ast.Not()):
                return not self.choice(node.operand, frame)
            case ast.BoolOp():
                tests = (self.choice(v, frame) for v in node.values)
                return all(tests) if isinstance(node.op, ast.And) else any(tests)
            case ast.IfExp():
                return self.value(node.body if self.choice(node.test, frame) else node.orelse, frame)
            case ast.Subscript():
                return self.value(node.value, frame)[self.value(node.slice, frame)]
            case ast.Attribute():
                return self.attribute(node, frame)
            case ast.Call():
                return self.called(node, frame)
        raise BadInput(f"it has a {type(node).__name__} expression, which is not run here; {WAY_OUT}")

    def attribute(self, node: ast.Attribute, frame: dict[str, Any]) -> Any:
        path = _dotted(node)
        if path.startswith("__torch__."):
            return self.code[path]
        if path.startswith("CONSTANTS.c"):
            return self.held(self.constants[int(path.removeprefix("CONSTANTS.c"))])
        return self.member(self.value(node.value, frame), node.attr)

    def member(self, obj: Any, name: str) -> Any:
        if not isinstance(obj, Placeholder):
            raise BadInput(
                f"it asks for {name[:60]!r} of a {type(obj).__name__}, which is not run here; {WAY_OUT}"
            )
        if isinstance(obj.state, dict) and name in obj.state:
            return self.held(obj.state[name])
        kind = self.code.get(obj.name)
        for part in kind.body if isinstance(kind, ast.ClassDef) else ():
            if (
                isinstance(part, ast.AnnAssign)
                and isinstance(part.target, ast.Name)
                and part.target.id == name
            ):
                return None if part.value is None else self.value(part.value, {})
        raise KeyError(name)

    def held(self, value: Any) -> Any:
        """A value of the file; of a tensor, what it is now."""
        if isinstance(value, Weight):
            return self.tensors[value.name]
        return list(value) if isinstance(value, list) else value

    def called(self, node: ast.Call, frame: dict[str, Any]) -> Any:
        function = node.func
        if isinstance(function, ast.Name) and function.id in ("annotate", "unchecked_cast"):
            return self.value(node.args[1], frame)
        if isinstance(function, ast.Name) and function.id == "uninitialized":
            return None
        args = [self.value(a, frame) for a in node.args]
        kwargs = {k.arg: self.value(k.value, frame) for k in node.keywords if k.arg is not None}
        if isinstance(function, ast.Name):
            if function.id in frame and isinstance(frame[function.id], ast.FunctionDef):
                return self.call(frame[function.id], args, kwargs)
            if function.id == "getattr":
                return self.member(*args)
            if function.id in ("int", "float", "bool", "str") and len(args) == 1:
                return self.number(function.id, args[0])
            raise BadInput(f"it calls {function.id[:80]!r}, which is not run here; {WAY_OUT}")
        path = _dotted(function)
        if path == "torch.device":
            return _DEVICE
        if path.startswith("ops.prim."):
            return self.primitive(path.removeprefix("ops.prim."), args)
        if path.startswith(("torch.", "ops.aten.")):
            return self.operator(path.split(".", path.count("."))[-1], args, kwargs, path)
        if path.startswith("ops."):
            raise BadInput(f"it uses the operator {path[:80]!r}, which is not run here; {WAY_OUT}")
        if isinstance(function, ast.Attribute) and not path.startswith("__torch__."):
            obj = self.value(function.value, frame)
            if isinstance(obj, Placeholder):
                return self.method(obj, function.attr, args, kwargs)
        found = self.value(function, frame)
        if isinstance(found, ast.FunctionDef):
            return self.call(found, args, kwargs)
        raise BadInput(f"it calls {path[:80]!r}, which is not run here; {WAY_OUT}")

    def number(self, kind: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            raise BadInput(f"it makes a number out of the values of a tensor; {WAY_OUT}")
        return {"int": int, "float": float, "bool": bool, "str": str}[kind](value)

    def primitive(self, name: str, args: list[Any]) -> Any:
        if name == "RaiseException":
            raise ValueError(f"the module says: {str(args[0])[:120] if args else ''}")
        if name not in _PRIM:
            raise BadInput(f"it uses the operator {'prim.' + name[:60]!r}, which is not run here; {WAY_OUT}")
        return _PRIM[name](*args)

    def operator(self, name: str, args: list[Any], kwargs: dict[str, Any], path: str) -> Any:
        if name in _ANY:
            return _ANY[name](*args)
        if name in _PLAIN and not any(isinstance(a, Tensor) for a in args):
            value = _PLAIN[name](*args)
            if isinstance(value, int | float) and abs(value) >= 2**63 and not math.isinf(value):
                raise OverflowError("a size has more than 64 bits")
            return value
        allowed = name in _ATEN or name.removesuffix("_") in _ATEN
        if (
            path.count(".") != 1 + path.startswith("ops.")
            or not allowed
            or name in _UNCHECKED
            or "out" in kwargs
        ):
            raise BadInput(f"it uses the operator {path[:80]!r}, which is not run here; {WAY_OUT}")
        _refuse_training(name, args)
        args = [self.device if a is _DEVICE else a for a in args]
        if args and isinstance(args[0], int | float) and any(isinstance(a, Tensor) for a in args[1:]):
            args[0] = torch.tensor(args[0], device=self.device)  # a number that the file holds as a tensor
        for key in ("layout", "pin_memory", "non_blocking"):
            kwargs.pop(key, None)
        kwargs = {k: self.device if v is _DEVICE else v for k, v in kwargs.items()}
        if type(kwargs.get("dtype")) is int:
            kwargs["dtype"] = _DTYPES[kwargs["dtype"]]
        if name == "_convolution":
            return _convolution(*args)
        if name == "linear":
            return F.linear(*args, **kwargs)
        if name == "view":
            return torch.reshape(args[0], args[1])  # a view of a channels_last tensor may not exist
        if name == "scaled_dot_product_attention" and args[1].shape[:-1] != args[2].shape[:-1]:
            raise ValueError("attention with fewer values than keys")  # fast kernels read past the end
        return getattr(torch.ops.aten, name)(*args, **kwargs)


def _dotted(node: ast.expr) -> str:
    """A chain of names as text, "" if it is none."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ""


_TRAINING = {"batch_norm": 5, **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), 2)}


def _refuse_training(name: str, args: list[Any]) -> None:
    at = _TRAINING.get(name.removesuffix("_"), 99)
    if len(args) > at and args[at]:
        raise BadInput("it was saved in training mode; call net.eval(), then save it again")


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    extra: Any,
    groups: int,
    *_: Any,
) -> Tensor:
    """The convolution of a trace, by the name under which layers are looked for."""
    if not transposed and weight.ndim == 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, transposed, extra, groups)
