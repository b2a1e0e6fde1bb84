"""A Keras model as an ordinary module: differentiable, for any number of images, channels first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.keras.graph import Graph, Node, Ref, checked, layers, make
from backsweep.formats.keras.layers import convolutions, dense, sequences  # noqa: F401  (they fill the table)
from backsweep.formats.keras.layers.base import Held, Kept, Layer
from backsweep.formats.keras.layers.shapes import Normalization, Rescaling

Weights = dict[tuple[str, ...], dict[str, Held]]  # by the names of models and layer, then by slot
_RAW = 100.0  # a first layer that divides by more than this takes pixels of 0 to 255


class Layers(nn.Module):
    """The layers of a graph, which run call by call."""

    def __init__(self, graph: Graph, weights: Weights, path: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._keys: dict[str, str] = {}
        self._outputs, self._inputs = graph.outputs, graph.inputs
        self._steps: list[tuple[tuple[str, int], tuple[Any, ...], dict[str, Any]]] = []
        for name, number in graph.steps:
            node = graph.nodes[name]
            if name not in self._keys:
                inner = _module(node, weights, (*path, name))
                self._keys[name] = _free(self, name)
                self.add_module(self._keys[name], inner)
            layer = self.get_submodule(self._keys[name])
            passes = layer.passes if isinstance(layer, Layer) else ()
            self._steps.append(((name, number), *checked(node.calls[number], name, passes)))
        users = [(step[0], ref) for step in self._steps for ref in _refs([*step[1], *step[2].values()])]
        self._last = {(ref.layer, ref.call): key for key, ref in users}
        kept = {(r.layer, r.call) for r in _refs([self._outputs])}
        self._done: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for made, key in self._last.items():
            if made not in kept:
                self._done.setdefault(key, []).append(made)

    def forward(self, *inputs: Any) -> Any:
        """Outputs of the model, as the graph structures them."""
        return self._run(inputs, False)

    def scores(self, *inputs: Any) -> Any:
        """Outputs of the model before a softmax at its end, if it has one."""
        return self._run(inputs, True)

    def _run(self, inputs: tuple[Any, ...], bare: bool) -> Any:
        given = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list | tuple) else inputs
        env: dict[tuple[str, int], Any] = {(n, 0): x for n, x in zip(self._inputs, given, strict=True)}
        last = self._outputs if isinstance(self._outputs, Ref) else None
        for key, args, kwargs in self._steps:
            layer: Any = self.get_submodule(self._keys[key[0]])
            ends = bare and last is not None and key == (last.layer, last.call) and last.output == 0
            call = layer.scores if ends else layer
            env[key] = call(
                *(_filled(a, env) for a in args), **{k: _filled(v, env) for k, v in kwargs.items()}
            )
            for name in self._done.get(key, ()):
                env.pop(name, None)
        return _filled(self._outputs, env)


def _module(node: Node, weights: Weights, path: tuple[str, ...]) -> nn.Module:
    if node.graph is not None:
        return Layers(node.graph, weights, path)
    assert node.settings is not None  # noqa: S101  (of every node that is neither a model nor an input)
    made: nn.Module = make(node)(node.settings, weights.get(path, {}))
    return made


def _free(module: nn.Module, name: str) -> str:
    """A name for a part of a module, made after an untrusted one."""
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in name[:100]) or "_"
    while hasattr(module, name):
        name += "_"
    return name


def _refs(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    return [ref for part in value for ref in _refs(part)] if isinstance(value, list | tuple) else []


def _filled(value: Any, env: dict[tuple[str, int], Any]) -> Any:
    """An argument with tensors where references are."""
    if isinstance(value, Ref):
        out = env[value.layer, value.call]
        if isinstance(out, list | tuple):
            return out[value.output]
        if value.output:
            raise ValueError("an output that is not there")
        return out
    return [_filled(part, env) for part in value] if isinstance(value, list) else value


class Network(nn.Module):
    """A Keras model of one image input, taking (N, C, H, W) whatever place it gives to channels.

    Args:
        graph: of the model.
        weights: of its layers.

    Attributes:
        sizes: of one input as the file has them, None for one that is open; None if it says nothing.
        shape: of one input, channels first; None where the file leaves it open.
        last: whether the file wants channels last.
        raw: whether its first layers take pixels of 0 to 255.
        flat: whether it takes rows of values.
    """

    def __init__(self, graph: Graph, weights: Weights) -> None:
        super().__init__()
        if len(graph.inputs) != 1:
            raise BadInput(
                f"it has {len(graph.inputs)} inputs ({some(graph.inputs)}); give a model of one image input"
            )
        self.model = Layers(graph, weights)
        self.sizes = graph.sizes
        self.last = _channels_last(graph)
        self._bytes = graph.dtype.startswith("uint") or graph.dtype.startswith("int")
        self.raw = not self._bytes and _takes_raw(self.model)
        self.flat = False
        self.shape: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes) as float32, before a softmax at the end; for x (N, *shape)."""
        return self._first(self.model.scores(self.turned(x)))

    def answers(self, x: Tensor) -> Tensor:
        """What the model itself answers for x (N, *shape)."""
        return self._first(self.model(self.turned(x)))

    def kept(self) -> dict[str, Kept]:
        """Where each weight of the network lies in the file, by its name in the network."""
        return {
            f"{name}.{key}" if name else key: kept
            for name, module in self.named_modules()
            if isinstance(module, Layer)
            for key, kept in module.kept.items()
        }

    def turned(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) as the model of the file takes them."""
        x = x.float() * 255 if self._bytes else x.float()
        rank = 1 if self.flat else len(self.sizes or (0, 0, 0))
        if x.ndim == 4 and rank == 2:
            return x[:, 0]
        x = x.movedim(1, -1) if self.last and x.ndim == 4 else x
        return x.flatten(1) if rank == 1 else x

    @staticmethod
    def _first(out: Any) -> Tensor:
        while isinstance(out, list | tuple) and out:
            out = out[0]
        if not isinstance(out, torch.Tensor):
            raise ValueError("no tensor comes out")
        if (out.ndim > 2 and out.shape[1] in (1, math.prod(out.shape[1:]))) or (
            out.ndim > 2 and out.shape[-1] == math.prod(out.shape[1:])
        ):
            out = out.flatten(1)
        return out.float()


def _channels_last(graph: Graph) -> bool:
    """Where the channels of an image stand: as layers say, else where their number is found."""
    for node in layers(graph):
        if node.settings is not None and isinstance(node.settings.get("data_format"), str):
            return not node.settings.first
    sizes = graph.sizes or []
    return len(sizes) != 3 or sizes[2] in (1, 3, 4) or sizes[0] not in (1, 3, 4)


def _takes_raw(model: Layers) -> bool:
    """Whether the first layer that changes values brings pixels of 0 to 255 down to small numbers."""
    for module in model.modules():
        if isinstance(module, Rescaling):
            return float(module.scale.abs().max()) * _RAW < 1
        if isinstance(module, Normalization):
            return float(module.mean.abs().max()) > 2 or float(module.variance.max()) > 4
        if isinstance(module, Layer) and (module.kept or list(module.parameters())):
            return False
    return False
