"""The graph of a Keras model, out of its configuration: layers, and which is called with what.

Both generations are read: calls as lists of (layer, call, output), and as arguments with tensors in them.
Weights are in a file by the order of layers, and that order is found as Keras finds it, from the graph and
not from the list in the file: a file must not show other weights here than to Keras.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.formats.keras.layers.base import CLASSES, class_of, kind_of
from backsweep.formats.keras.layers.settings import TF2ONNX, Settings
from backsweep.formats.keras.layers.shapes import OPERATIONS, Operation

MODELS = {"Sequential", "Functional", "Model"}
_MOST_CALLS = 20_000
_DEEPEST = 20  # models in models, lists in lists
_ONLY_TRAINING = "its layer {!r} is called in training mode; save the model without training=True"


@dataclass(frozen=True)
class Ref:
    """An output of a call of a layer."""

    layer: str
    call: int
    output: int


@dataclass(frozen=True)
class Call:
    """A call of a layer: arguments with references in them, in lists too."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def refs(self) -> list[Ref]:
        """What it takes from other calls, in the order in which Keras sees them."""
        return list(_refs([*self.args, *(value for _, value in sorted(self.kwargs.items()))]))


@dataclass
class Node:
    """A layer, with its calls.

    Attributes:
        kind: its class, as the file has it.
        settings: of a layer; None for an input or a model.
        graph: of a model in the model.
        trainable: whether training moves its weights, which decides their order in HDF5 files.
        operation: whether it is no layer but an operation between layers.
    """

    kind: str
    name: str
    settings: Settings | None
    graph: Graph | None
    trainable: bool
    operation: bool = False
    calls: list[Call] = field(default_factory=list)


@dataclass
class Graph:
    """A model.

    Attributes:
        nodes: layers and inputs by their names.
        inputs: names of its inputs.
        outputs: references, in lists if it has several.
        steps: calls (name, number) in an order in which they can be run.
        order: names of layers in the order that Keras gives them.
        sizes, dtype: of one input as its InputLayer says, without the batch; None if unknown.
    """

    nodes: dict[str, Node]
    inputs: list[str]
    outputs: Any
    steps: list[tuple[str, int]]
    order: list[str]
    sizes: list[int | None] | None
    dtype: str


def read(config: Any, version: int, depth: int = 0) -> Graph:
    """The graph in the configuration of a model.

    Raises:
        BadInput: layers that are not run here. Any other error means damage.
    """
    if depth > _DEEPEST:
        raise ValueError("models in models without end")
    kind = kind_of({"module": "keras", **config} if isinstance(config, dict) else config)
    inner = config.get("config")
    if kind not in MODELS:
        raise BadInput(
            f"it is a model of somebody's own class, {kind[:60]}, whose code is not run; {TF2ONNX}"
        )
    if kind == "Sequential":
        return _sequential(inner, version, depth)
    if not isinstance(inner, dict):
        raise ValueError("no configuration")
    return _functional(inner, version, depth)


def _node(said: Any, version: int, depth: int) -> Node:
    """A layer, an input or a model, without its calls."""
    kind = kind_of(said)
    config = said.get("config")
    own = config if isinstance(config, dict) else {}
    name = said.get("name", own.get("name"))
    if not isinstance(name, str):
        raise ValueError("a layer without a name")
    trainable = own.get("trainable", True) is not False
    if kind in MODELS:
        return Node(kind, name, None, read(said, version, depth + 1), trainable)
    if kind == "InputLayer":
        return Node(kind, name, None, None, True)
    unnamed = "module" not in said and kind not in CLASSES  # as in HDF5 files
    if (".ops." in str(said.get("module")) or unnamed) and kind in OPERATIONS:
        return Node(kind, name, Settings(kind, name, own, version), None, True, operation=True)
    if ".ops." in str(said.get("module")) or kind in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
        raise BadInput(f"it has the operation {name[:60]!r} ({kind[:40]}), which is not run here; {TF2ONNX}")
    settings = class_of(said, version)[1]
    settings.precision  # noqa: B018
    return Node(kind, name, settings, None, trainable)


def layers(graph: Graph) -> list[Node]:
    """Layers of a graph and of the models in it, in the order in which they run."""
    found: list[Node] = []
    for name in dict.fromkeys(step[0] for step in graph.steps):
        node = graph.nodes[name]
        found += layers(node.graph) if node.graph is not None else [node]
    return found


def make(node: Node) -> Any:
    """The class of a node that is a layer or an operation."""
    return Operation if node.operation else CLASSES[node.kind]


# ---------------------------------------------------------------------- Sequential


def _sequential(inner: Any, version: int, depth: int) -> Graph:
    said = inner if isinstance(inner, list) else inner["layers"]  # a list before Keras 2.2.3
    read = [(_node(layer, version, depth), layer) for layer in said]
    head, first = read[0]
    about = first["config"] if isinstance(first["config"], dict) else {}
    shape = about.get("batch_shape", about.get("batch_input_shape"))
    if shape is None and isinstance(inner, dict):
        shape = inner.get("build_input_shape")
    dtype = str(about.get("dtype")) if head.kind == "InputLayer" else "float32"
    sizes = _sizes(shape)
    if head.graph is not None and sizes is None:
        sizes, dtype = head.graph.sizes, head.graph.dtype
    nodes = {"": Node("InputLayer", "", None, None, True)}
    last = Ref("", 0, 0)
    for node, _ in read:
        if node.name in nodes:
            raise ValueError("two layers of one name")
        if node.kind != "InputLayer":
            node.calls = [Call((last,), {})]
            nodes[node.name] = node
            last = Ref(node.name, 0, 0)
    names = [name for name in nodes if name]
    return Graph(nodes, [""], last, [(name, 0) for name in names], names, sizes, dtype)


def _sizes(shape: Any) -> list[int | None] | None:
    """Sizes of one input, of a shape with the batch."""
    if shape is None:
        return None
    if not isinstance(shape, list) or not 2 <= len(shape) <= 4:
        raise BadInput(f"its inputs have the shape {str(shape)[:60]}, which is not that of images")
    if not all(n is None or (isinstance(n, int) and 0 < n < 2**20) for n in shape[1:]):
        raise ValueError("a shape without sizes")
    return list(shape[1:])


# ---------------------------------------------------------------------- Functional


def _functional(inner: dict[str, Any], version: int, depth: int) -> Graph:
    nodes: dict[str, Node] = {}
    waiting: dict[str, Any] = {}
    first: dict[str, Any] = {}
    for layer in inner["layers"]:
        node = _node(layer, version, depth)
        if node.name in nodes:
            raise ValueError("two layers of one name")
        nodes[node.name] = node
        waiting[node.name] = layer.get("inbound_nodes", [])
        if node.kind == "InputLayer":
            first[node.name] = layer.get("config", {})
    for name, calls in waiting.items():
        nodes[name].calls = [_call(call, nodes, version) for call in calls]
    inputs = [ref.layer for ref in _refs(_structure(inner["input_layers"], nodes, version))]
    outputs = _structure(inner["output_layers"], nodes, version)
    if not inputs or any(nodes[name].kind != "InputLayer" for name in inputs):
        raise ValueError("no inputs")
    steps, order = _ordered(nodes, list(_refs(outputs)))
    about = first[inputs[0]]
    sizes = _sizes(about.get("batch_shape", about.get("batch_input_shape"))) if len(inputs) == 1 else None
    return Graph(nodes, inputs, outputs, steps, order, sizes, str(about.get("dtype", "float32")))


def _structure(said: Any, nodes: dict[str, Node], version: int, depth: int = 0) -> Any:
    """References as [layer, call, output], in lists or dictionaries."""
    if depth > _DEEPEST:
        raise ValueError("lists in lists without end")
    if isinstance(said, list) and len(said) == 3 and isinstance(said[0], str):
        return _ref(said, nodes, version)
    parts = said.values() if isinstance(said, dict) else said
    return [_structure(part, nodes, version, depth + 1) for part in parts]


def _ref(said: list[Any], nodes: dict[str, Node], version: int, bare: bool = False) -> Ref:
    """A reference. Models count what made them as their first call, unless calls are counted `bare`."""
    name, call, output = said[:3]
    if type(call) is not int or type(output) is not int or name not in nodes:
        raise ValueError("a reference to nothing")
    node = nodes[name]
    if node.graph is not None and not bare:
        made = version == 2 and node.graph.sizes is not None if node.kind == "Sequential" else True
        call -= int(made)
    return Ref(name, call, output)


def _call(said: Any, nodes: dict[str, Node], version: int) -> Call:
    """A call in either form."""
    if isinstance(said, dict):
        kwargs = {str(k): _value(v, nodes) for k, v in said["kwargs"].items()}
        kwargs.pop("training", None)  # Keras 3 puts the mode of the model in its place
        return Call(tuple(_value(a, nodes) for a in said["args"]), kwargs)
    refs, kwargs = [], {}
    for part in said:
        if not isinstance(part, list) or len(part) not in (3, 4):
            raise ValueError("a call of no known form")
        refs.append(_ref(part, nodes, version))
        for key, value in (part[3] if len(part) == 4 else {}).items():
            is_ref = isinstance(value, list) and len(value) == 3 and value[0] in nodes
            kwargs[str(key)] = _ref(value, nodes, version) if is_ref else value
    return Call((refs[0] if len(refs) == 1 else refs,), kwargs)


def _value(said: Any, nodes: dict[str, Node], depth: int = 0) -> Any:
    """An argument of a call: tensors become references, slices slices, the rest plain values."""
    if depth > _DEEPEST:
        raise ValueError("lists in lists without end")
    if isinstance(said, list):
        return [_value(part, nodes, depth + 1) for part in said]
    if isinstance(said, dict):
        config = said.get("config")
        if said.get("class_name") == "__keras_tensor__" and isinstance(config, dict):
            return _ref(list(config["keras_history"]), nodes, 3, bare=True)
        if said.get("class_name") == "__slice__" and isinstance(config, dict):
            parts = [config.get(k) for k in ("start", "stop", "step")]
            if all(p is None or isinstance(p, int) for p in parts):
                return slice(*parts)
        if said.get("class_name") == "__tuple__" and isinstance(config, dict):
            return _value(config.get("items"), nodes, depth + 1)
        raise BadInput(
            f"a layer is called with {str(said.get('class_name'))[:60]!r}, which is not run here; {TF2ONNX}"
        )
    return said


def _refs(value: Any) -> Iterator[Ref]:
    """References in nested lists."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _refs(part)


def _ordered(nodes: dict[str, Node], outputs: list[Ref]) -> tuple[list[tuple[str, int]], list[str]]:
    """Calls in an order in which they can be run, and layers in the order of Keras.

    Keras walks from the outputs to the inputs, numbers layers as it meets them, and sorts them by how
    many calls stand between a layer and the outputs, then by these numbers.
    """
    done: dict[tuple[str, int], int] = {}  # of a call, 1 once begun and 2 once all it needs is done
    met: dict[str, int] = {}
    steps: list[tuple[str, int]] = []
    for output in outputs:
        stack = [(output.layer, output.call)]
        while stack:
            key = stack[-1]
            name, number = key
            node = nodes[name]
            calls = node.calls if node.kind != "InputLayer" else [Call((), {})]
            if not 0 <= number < len(calls):
                raise ValueError("a call that is not there")
            if key not in done:
                done[key] = 1
                met.setdefault(name, len(met))
            needs = [(ref.layer, ref.call) for ref in calls[number].refs()]
            left = next((n for n in needs if done.get(n) != 2), None)
            if left is None:
                stack.pop()
                if done[key] == 1:
                    steps.append(key)
                done[key] = 2
            elif left in done:
                raise ValueError("a graph with a circle")
            else:
                stack.append(left)
            if len(steps) > _MOST_CALLS:
                raise ValueError("a graph without end")
    depths: dict[tuple[str, int], int] = {}
    deepest: dict[str, int] = {}
    for key in reversed(steps):
        depth = max(depths.get(key, 0), deepest.get(key[0], 0))
        depths[key] = deepest[key[0]] = depth
        calls = nodes[key[0]].calls
        for ref in calls[key[1]].refs() if calls else []:
            before = (ref.layer, ref.call)
            depths[before] = max(depth + 1, depths.get(before, 0))
    order = sorted(met, key=lambda name: (-deepest[name], met[name]))
    return [key for key in steps if nodes[key[0]].kind != "InputLayer"], order


def checked(call: Call, name: str, passes: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call as they are given to a layer; what only concerns training is left out.

    Raises:
        BadInput: it is run in training mode, or with something that is not run here.
    """
    if call.kwargs.get("training") is True:
        raise BadInput(_ONLY_TRAINING.format(name[:60]))
    given = {k: v for k, v in call.kwargs.items() if v is not None and v is not False}
    args = call.args
    while args and (args[-1] is None or args[-1] is False):
        args = args[:-1]
    if not args and "inputs" in given:
        args = (given.pop("inputs"),)
    if wrong := [k for k in given if k not in passes]:
        raise BadInput(
            f"its layer {name[:60]!r} is called with {wrong[0][:40]}, which is not run here; {TF2ONNX}"
        )
    return args, given
