"""An ONNX graph as an ordinary module, run node by node: differentiable, for any number of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.onnx import shapes  # noqa: F401  (it fills the table of operators)
from backsweep.formats.onnx.graph import Graph, Node
from backsweep.formats.onnx.layers import LINEAR
from backsweep.formats.onnx.operators import HOST, OPERATORS, worked
from backsweep.formats.onnx.simplifying import channels_last, preamble, simplified
from backsweep.formats.onnx.tensors import DTYPES

# What the inputs of layers are called in PyTorch, from the second on.
_AFFINE, _NORM = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
_SLOTS = {
    "Conv": _AFFINE, "ConvTranspose": _AFFINE, "Gemm": _AFFINE, LINEAR: _AFFINE, "BatchNormalization": _NORM,
    "LayerNormalization": _AFFINE, "InstanceNormalization": _AFFINE, "GroupNormalization": _AFFINE,
    "PRelu": ("weight",), "RMSNormalization": ("weight",),
}  # fmt: skip
SIZES = {"Reshape": 1, "Expand": 1, "Resize": 3}  # the input that tells the new shape
_SMALL = 64  # integers up to here are sizes and stay on the CPU
_DEEPEST = 20  # modules in modules


@dataclass(frozen=True)
class Weight:
    """Where a weight of the file is in the network.

    Attributes:
        key: name of the parameter or buffer.
        turned: whether it is kept as (outputs, inputs) and stands in the file the other way round.
        shape: in the file.
    """

    key: str
    turned: bool
    shape: tuple[int, ...]

    def of(self, tensors: dict[str, Tensor]) -> Tensor:
        """The weight as the file has it."""
        value = tensors[self.key]
        return value.t() if self.turned else value.reshape(self.shape)


class Network(nn.Module):
    """The graph of an ONNX model as a module.

    Parameters have the names of the file where these are those of PyTorch, else names made after them,
    so that a bias is found beside its weight; `weights` tells which is which.

    Attributes:
        batch: the batch size that it was exported with; None for any.
        shape: shape of one input as (channels, height, width); None where the file leaves it open.
        labels: names of the classes, where the file has them.
        weights: weights of the file by their names in it.
        dims: sizes of one input, None for one that is open.
        last: whether the file wants (height, width, channels).
        flat: number of values in one input, where the network takes rows of values.
        steps, host: the nodes, and the numbers that they use.
        piecewise: the batch size that it cannot do without, 0 if there is none.
        fixed: of a step, the axis of its shape that holds images, and how many places each has there.
        late: of a step, those inputs that were made for one batch size.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.labels = graph.labels
        self.weights: dict[str, Weight] = {}
        self._input, self._output = graph.input, graph.output
        constants = {name: worked(t) for name, t in graph.constants.items()}
        nodes, turned = simplified(graph, constants)
        values, first = preamble(nodes, graph.input, constants)
        self.batch, *sizes = graph.dims or [None]
        self.last = channels_last(sizes, nodes, values)
        self.dims: list[int | None] = [sizes[2], sizes[0], sizes[1]] if self.last else list(sizes)
        self._bytes = DTYPES.get(graph.dtype) == torch.uint8  # pixels as they are stored
        if graph.dtype not in DTYPES or not (self._bytes or DTYPES[graph.dtype].is_floating_point):
            raise BadInput("its input is no tensor of floats or bytes; export one that takes images")
        self.shape: tuple[int, ...] | None = None
        self.flat: int | None = None
        self.piecewise = 0  # the batch size that it cannot do without
        self.fixed: dict[int, tuple[int, int]] = {}  # of a step: the axis that holds images, places each
        self.late: dict[int, list[int]] = {}  # of a step: inputs that were made for one batch size
        self._register(nodes, constants, graph.stored, turned, first)
        self.steps = nodes
        last = {name: i for i, n in enumerate(nodes) for name in (*n.inputs, *n.outputs) if name}
        self._done = [
            [m for m, at in last.items() if at == i and m != self._output] for i in range(len(nodes))
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes) as float32, for inputs x (N, *shape) in [0, 1]."""
        size = self.piecewise
        if not size:
            return self.run(x)
        with torch._C.DisableTorchFunction():  # what `Tap` saw of pieces would be taken for the whole
            missing = -len(x) % size
            whole = torch.cat([x, x[:1].expand(missing, *x.shape[1:])])
            return torch.cat([self.run(part) for part in whole.split(size)])[: len(x)]

    def values(self) -> dict[str, Tensor]:
        """The weights by their names in the file, as it has them."""
        tensors = self._tensors()
        return {name: weight.of(tensors).detach() for name, weight in self.weights.items()}

    # ------------------------------------------------------------------ running

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(self.named_parameters(remove_duplicate=False))
        tensors.update(self.named_buffers(remove_duplicate=False))
        return tensors

    def run(self, x: Tensor, watch: Callable[[int, list[Any]], None] | None = None) -> Tensor:
        count, tensors = len(x), self._tensors()
        env: dict[str, Any] = {"": None, **self.host}
        env.update({name: weight.of(tensors) for name, weight in self._held.items()})
        x = x.float() * 255 if self._bytes else x.float()
        x = x.permute(0, 2, 3, 1) if self.last else x
        env[self._input] = x.reshape(count, self.flat) if self.flat else x
        away = x.device.type != "cpu"
        for index, node in enumerate(self.steps):
            inputs = [env[name] for name in node.inputs]
            if watch is not None:
                watch(index, inputs)
            if index in self.fixed:
                axis, places = self.fixed[index]
                sizes = inputs[SIZES[node.op]].clone()
                sizes[axis] = places * count
                inputs[SIZES[node.op]] = sizes
            for part in self.late.get(index, ()):
                inputs[part] = inputs[part][:1].expand(count, *inputs[part].shape[1:])
            if away:
                inputs = _together(inputs, HOST[node.op])
            result = OPERATORS[node.op](node, *inputs)
            results = result if isinstance(result, (tuple, list)) else [result]
            env.update(zip(node.outputs, results, strict=False))
            env[""] = None
            for name in self._done[index]:
                env.pop(name, None)
        out: Tensor = env[self._output]
        if out.ndim > 2 and out.shape[1] == math.prod(out.shape[1:]):
            out = out.flatten(1)
        return out.float()

    # ------------------------------------------------------------------ weights

    def _register(
        self,
        nodes: list[Node],
        constants: dict[str, Tensor],
        stored: set[str],
        turned: dict[str, str],
        first: set[str],
    ) -> None:
        """Weights become parameters, statistics buffers, and numbers stay beside them."""
        self.host: dict[str, Tensor] = {}
        self._held: dict[str, Weight] = {}
        roots: dict[str, Weight] = {}
        for node in nodes:
            for place, name in enumerate(node.inputs):
                if name not in constants or name in self._held or name in self.host:
                    continue
                value, root = constants[name], turned.get(name, name)
                slots = _SLOTS.get(node.op, ()) if place else ()
                slot = slots[place - 1] if 0 < place <= len(slots) else ""
                if place in HOST[node.op] or not (value.is_floating_point() or value.numel() > _SMALL):
                    self.host[name] = value
                elif root not in stored or name in first or not (slot or _trainable(value)):
                    key = _attach(self, f"constants.{name.replace('.', '_')}", value, "constant")
                    self._held[name] = Weight(key, False, tuple(value.shape))
                elif root not in roots:
                    outputs_first = node.op == LINEAR or (node.op == "Gemm" and not node.get("transB", 0))
                    flip = outputs_first and place == 1 and value.ndim == 2
                    kept = value.t().contiguous() if flip else value
                    kept = kept.reshape(-1) if slot == "bias" else kept
                    key = _attach(self, _key(node, slots, slot, turned, root), kept, slot)
                    roots[root] = Weight(key, flip != (name in turned), tuple(constants[root].shape))
                    self._held[name] = Weight(key, flip, tuple(value.shape))
                else:
                    whole = roots[root]
                    self._held[name] = Weight(whole.key, whole.turned != (name in turned), tuple(value.shape))
        self.weights = roots


def _key(node: Node, slots: Sequence[str], slot: str, turned: dict[str, str], root: str) -> str:
    """What a weight is called: as in the file, where the file calls it as PyTorch would."""
    if not slot:
        return root
    for name, part in zip(node.inputs[1:], slots, strict=False):
        name = turned.get(name, name)
        if name.endswith(f".{part}"):
            return f"{name.removesuffix(part)}{slot}"
    return f"{turned.get(node.inputs[1], node.inputs[1])}.{slot}"


def _trainable(value: Tensor) -> bool:
    """A constant of no layer counts as a weight unless it is one number or, as masks are, infinite."""
    return value.is_floating_point() and value.numel() > 1 and bool(value.isfinite().all())


def _attach(root: nn.Module, key: str, tensor: Tensor, slot: str) -> str:
    """Register a tensor under a dotted name, or one much like it that is free, and say which."""
    *path, name = key[:200].split(".") if key.count(".") < _DEEPEST else [key[:200].replace(".", "_")]
    names = []
    for part in path:
        part = part or "_"
        while part not in root._modules and hasattr(root, part):
            part += "_"
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
        names.append(part)
    name = name or "_"
    while hasattr(root, name):
        name += "_"
    if slot.startswith("running") or slot == "constant":
        root.register_buffer(name, tensor.clone(), persistent=slot != "constant")
    else:
        root.register_parameter(name, nn.Parameter(tensor.clone()))
    return ".".join([*names, name])


def _together(inputs: list[Any], host: tuple[int, ...]) -> list[Any]:
    """Inputs on one device: that of the floats, or the CPU, where sizes are computed."""
    tensors = [t for i, t in enumerate(inputs) if isinstance(t, Tensor) and i not in host]
    if len({t.device for t in tensors}) < 2:
        return inputs
    floats = [t.device for t in tensors if t.is_floating_point() and t.device.type != "cpu"]
    device = floats[0] if floats else torch.device("cpu")
    return [t.to(device) if isinstance(t, Tensor) and i not in host else t for i, t in enumerate(inputs)]
