"""ONNX files: nodes, constants and weights, opened as data and checked.

Nothing is run here. Functions of the model are inlined with a bound, as they may call each other very
often, and the checker of `onnx` sees the graph without its tensors, which may name files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.onnx.tensors import STANDARD, Files, parse, stored, tensor

OPSETS = range(11, 24)
_MOST_NODES = 100_000
_DEEPEST = 40  # functions that call functions
_CONVERT = "convert it with onnx.version_converter.convert_version(model, 17)"
_REBUILD = (
    "rebuild the network in PyTorch, save its weights as safetensors and name its code with "
    'arch="package.module:factory" (--arch)'
)
_WHY = {
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "chooses what to run from its data"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "is a recurrent layer and not run here"),
    **dict.fromkeys(
        (
            "RandomNormal",
            "RandomUniform",
            "RandomNormalLike",
            "RandomUniformLike",
            "Bernoulli",
            "Multinomial",
        ),
        "draws at random",
    ),
}


@dataclass
class Node:
    """One operation. Of its inputs and outputs, "" is one that is left out."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    opset: int
    name: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what stands for it where it is not given."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        return f"{self.op} {self.name or next(iter(self.outputs), '')!r}"


@dataclass
class Graph:
    """What a file holds: nodes in order, tensors by name, its one input, the scores among its outputs.

    Attributes:
        stored: names of the constants that are weights of the file and can be given other values.
        dims: sizes of the input with its batch dimension; None for one that is open.
        labels: names of the classes, where a classifier of scikit-learn holds them.
    """

    nodes: list[Node]
    constants: dict[str, Tensor]
    stored: set[str]
    input: str
    dtype: int
    dims: list[int | None]
    output: str
    labels: list[str] = field(default_factory=list)


def read(blob: bytes, folder: Path | None, known: Collection[str]) -> Graph:
    """Nodes and tensors of a model, checked.

    Args:
        folder: where the model lies, for tensors that are kept in files of their own.
        known: names of the operators that can be run.

    Raises:
        BadInput: damaged, against the standard, or with parts that are not read. Any other error
            means damage.
    """
    model = parse(blob)
    opset = _opset(model.opset_import)
    if opset not in OPSETS:
        raise BadInput(f"it uses opset {opset} of ONNX, read are {OPSETS[0]} to {OPSETS[-1]}; {_CONVERT}")
    if model.graph.sparse_initializer:
        raise BadInput("it holds sparse weights, which are not read; export it with dense weights")
    protos = _inlined(model, opset)
    weights = {t.name for t in model.graph.initializer}
    if len(weights) < len(model.graph.initializer):
        raise BadInput("two of its weights have the same name; export it again")
    inputs = [i for i in model.graph.input if i.name not in weights]
    _in_order(protos, {*weights, *(i.name for i in inputs)})
    output, labels = _scores(model.graph.output, protos)
    protos = _needed(protos, output)
    used = {i for p in protos for i in p.input}
    inputs = [i for i in inputs if i.name in used]
    if len(inputs) != 1:
        raise BadInput(
            f"its scores need {len(inputs)} inputs ({some(i.name for i in inputs)}); "
            "export one that takes images only"
        )
    _check(model, inputs[0], protos, output, known)
    files = Files(folder)
    nodes = [_node(p, opset, files) for p in protos]
    constants = {t.name: tensor(t, files) for t in model.graph.initializer if t.name in used}
    constants.update({n.outputs[0]: _constant(n) for n in nodes if n.op == "Constant"})
    kind = inputs[0].type.tensor_type
    return Graph(
        nodes=[n for n in nodes if n.op != "Constant"],
        constants=constants,
        stored=constants.keys() & stored(model).keys(),
        input=inputs[0].name,
        dtype=kind.elem_type,
        dims=[d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim],
        output=output,
        labels=labels,
    )


def _opset(imports: Iterable[Any]) -> int:
    return next((o.version for o in imports if o.domain in STANDARD), 0)


def _inlined(model: Any, opset: int) -> list[Any]:
    """The nodes of the graph, with those of the model's own functions in the place of their calls."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    if any(_opset(f.opset_import) not in (0, opset) for f in model.functions):
        raise BadInput(f"its functions use another opset than its graph; {_CONVERT}")
    found: list[Any] = []
    visits = 0

    def add(node: Any, names: Mapping[str, str], given: Mapping[str, Any], prefix: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        if visits > _MOST_NODES or depth > _DEEPEST:
            raise BadInput(f"it has more than {_MOST_NODES:,} nodes, or functions that call themselves")
        copy = type(node)()
        copy.CopyFrom(node)
        if prefix:
            copy.name = prefix + node.name
            copy.input[:] = [names.get(n, prefix + n) if n else "" for n in node.input]
            copy.output[:] = [names.get(n, prefix + n) if n else "" for n in node.output]
            del copy.attribute[:]
            for attribute in node.attribute:
                if not attribute.ref_attr_name:
                    copy.attribute.append(attribute)
                elif attribute.ref_attr_name in given:
                    copy.attribute.append(given[attribute.ref_attr_name])
                    copy.attribute[-1].name = attribute.name
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            found.append(copy)
            return
        inputs = [*copy.input, *[""] * len(function.input)]
        inner = dict(zip(function.input, inputs, strict=False))
        inner.update(zip(function.output, copy.output, strict=False))
        attributes = {a.name: a for a in [*function.attribute_proto, *copy.attribute]}
        inside = f"{prefix}{visits}/"
        for part in function.node:
            add(part, inner, attributes, inside, depth + 1)

    for node in model.graph.node:
        add(node, {}, {}, "", 0)
    return found


def _check(model: Any, given: Any, nodes: list[Any], output: str, known: Collection[str]) -> None:
    """Operators by name, then the checker of `onnx` without tensors: it would look for their files."""
    import onnx

    for name in map(_operator, nodes):
        if name not in known and name != "Constant":
            raise BadInput(f"it uses {name[:80]!r}, which {_WHY.get(name, 'is not run here')}; {_REBUILD}")
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(o for o in model.opset_import if o.domain in (*STANDARD, "ai.onnx.ml"))
    bare.graph.name = "graph"
    bare.graph.input.append(given)
    bare.graph.output.add(name=output).type.tensor_type.elem_type = 1
    bare.graph.output[0].type.tensor_type.shape.SetInParent()
    bare.graph.node.extend(nodes)
    for t in model.graph.initializer:
        bare.graph.initializer.add(name=t.name, data_type=t.data_type, dims=[0])
    for node in bare.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(onnx.TensorProto(name=attribute.t.name, data_type=1, dims=[0]))
    try:
        onnx.checker.check_model(bare)
    except Exception as e:
        line = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise BadInput(f"it does not keep to the standard of ONNX ({line[:160]}); export it again") from e


def _operator(proto: Any) -> str:
    return proto.op_type if proto.domain in STANDARD else f"{proto.domain}.{proto.op_type}"


def _node(proto: Any, opset: int, files: Files) -> Node:
    attributes = {a.name: _attribute(a, files) for a in proto.attribute}
    return Node(_operator(proto), list(proto.input), list(proto.output), attributes, opset, proto.name)


def _attribute(proto: Any, files: Files) -> Any:
    match proto.type:
        case 1:
            return float(proto.f)
        case 2:
            return int(proto.i)
        case 3:
            return proto.s.decode("utf-8", "replace")
        case 4:
            return tensor(proto.t, files)
        case 6:
            return [float(v) for v in proto.floats]
        case 7:
            return [int(v) for v in proto.ints]
        case 8:
            return [v.decode("utf-8", "replace") for v in proto.strings]
    raise BadInput(f"it holds an attribute {proto.name[:80]!r} of a kind that is not read; {_REBUILD}")


def _constant(node: Node) -> Tensor:
    """What a Constant node stands for."""
    for name, value in node.attributes.items():
        if name == "value":
            return value
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise BadInput(f"it holds a constant of a kind that is not read ({some(node.attributes)}); {_REBUILD}")


def _in_order(nodes: list[Any], known: set[str]) -> None:
    """Every value must be made once, and before it is used."""
    for node in nodes:
        if missing := [i for i in node.input if i and i not in known]:
            raise BadInput(
                f"its node {node.op_type[:40]} {node.name[:80]!r} needs {some(missing)}, which nothing "
                "before it makes (its nodes run in a circle, or a part is missing); export it again"
            )
        for output in filter(None, node.output):
            if output in known:
                raise BadInput(f"two of its values have the name {output[:80]!r}; export it again")
            known.add(output)


def _scores(outputs: Any, nodes: list[Any]) -> tuple[str, list[str]]:
    """Name of the output with the scores of classes, and the classes' names where it tells them.

    A classifier of scikit-learn gives the label first, and its probabilities as a map.
    """
    makers = {o: n for n in nodes for o in n.output}
    for output in outputs:
        maker = makers.get(output.name)
        if maker is not None and maker.op_type == "ZipMap" and maker.input:
            labels: list[str] = []
            for a in maker.attribute:
                labels += [v.decode("utf-8", "replace") for v in a.strings]
                labels += map(str, a.ints if list(a.ints) != list(range(len(a.ints))) else ())
            return maker.input[0], labels
        if output.type.tensor_type.elem_type in (1, 10, 11, 16):
            return output.name, []
    raise BadInput("none of its outputs is a tensor of scores; export one that yields the scores of classes")


def _needed(nodes: list[Any], output: str) -> list[Any]:
    """The nodes that an output needs."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(filter(None, node.output)):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
