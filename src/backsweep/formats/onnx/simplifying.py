"""An ONNX graph made simple: constants computed, products with weights and their bias in one node."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from backsweep.formats.onnx.graph import Graph, Node
from backsweep.formats.onnx.layers import LINEAR
from backsweep.formats.onnx.operators import OPERATORS, dequantize

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "DequantizeLinear", "QuantizeLinear", "Pad"}
_TO_CHANNELS_FIRST = [0, 3, 1, 2]
_FLOATS = (1, 10, 11, 16)


def simplified(graph: Graph, constants: dict[str, Tensor]) -> tuple[list[Node], dict[str, str]]:
    """Fewer nodes: what is constant is computed, and a product with a weight takes its bias along.

    Returns:
        the nodes, and the weights of which a node uses the transpose: its name -> that of the weight.
    """
    turned: dict[str, str] = {}
    same: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = dataclasses.replace(node, inputs=[same.get(i, i) for i in node.inputs])
        source = node.inputs[0] if node.inputs else ""
        out = node.outputs[0]
        weights = [i for i in node.inputs if i in constants and _weighty(i, constants, graph.stored)]
        if out == graph.output:
            nodes.append(node)
        elif node.op == "Identity" or (node.op == "Cast" and source in weights and node.get("to") in _FLOATS):
            same[out] = source
        elif (
            node.op == "Transpose"
            and source in weights
            and node.get("perm", [1, 0]) == [1, 0]
            and (constants[source].ndim == 2 and source not in turned)
        ):
            constants[out], turned[out] = constants[source].t(), source
        elif node.op == "DequantizeLinear" and all(i in constants for i in node.inputs if i):
            constants[out] = dequantize(node, *(constants.get(i) for i in node.inputs))
            if source in graph.stored:
                graph.stored.add(out)
        elif not weights and all(i in constants for i in node.inputs if i):
            result = OPERATORS[node.op](node, *(constants.get(i) for i in node.inputs))
            constants.update(
                zip(node.outputs, result if isinstance(result, (tuple, list)) else [result], strict=False)
            )
        else:
            nodes.append(node)
    return _fused(nodes, constants, graph.output), turned


def _weighty(name: str, constants: dict[str, Tensor], stored: set[str]) -> bool:
    return name in stored and constants[name].is_floating_point() and constants[name].numel() > 1


def _fused(nodes: list[Node], constants: dict[str, Tensor], output: str) -> list[Node]:
    """`LINEAR` for products with weights; an Add behind one, or behind a Conv, becomes its bias."""
    uses = Counter(i for n in nodes for i in n.inputs)
    makers: dict[str, int] = {}
    found: list[Node | None] = []
    live = {i for n in nodes for i in n.inputs} - {o for n in nodes for o in n.outputs} - constants.keys()
    for node in nodes:
        if node.op == "MatMul" and node.inputs[1] not in live:
            node = dataclasses.replace(node, op=LINEAR)
        if node.op == "Add":
            for product, bias in (node.inputs, node.inputs[::-1]):
                at = makers.get(product)
                before = found[at] if at is not None else None
                if (
                    at is None
                    or before is None
                    or uses[product] != 1
                    or bias not in constants
                    or product == output
                ):
                    continue
                if _is_bias(before, constants, constants[bias]) and uses[bias] == 1:
                    node = dataclasses.replace(
                        before, inputs=[*before.inputs[:2], bias], outputs=node.outputs
                    )
                    found[at] = None
                    break
        if any(i in live for i in node.inputs):
            live.update(node.outputs)
        makers.update({o: len(found) for o in node.outputs if o})
        found.append(node)
    return [n for n in found if n is not None]


def _is_bias(node: Node, constants: dict[str, Tensor], bias: Tensor) -> bool:
    """Whether adding a constant to what a node yields is the same as giving it that bias."""
    if len([i for i in node.inputs if i]) != 2 or (weight := constants.get(node.inputs[1])) is None:
        return False
    if node.op == LINEAR:
        return weight.ndim == 2 and bias.ndim >= 1 and bias.numel() == bias.shape[-1] == weight.shape[1]
    if node.op != "Conv" or weight.ndim < 3:
        return False
    shape = (weight.shape[0], *[1] * (weight.ndim - 2))
    return tuple(bias.shape) in (shape, (1, *shape))


def preamble(nodes: list[Node], name: str, constants: Collection[str]) -> tuple[set[str], set[str]]:
    """What is done to the input value by value, before anything else.

    Returns:
        names of the values, and of the constants that are used there: a normalisation, mostly.
    """
    values, used = {name}, set()
    for node in nodes:
        others = {i for i in node.inputs if i and i not in values}
        if node.op in _ELEMENTWISE and len(others) < len(node.inputs) and others <= set(constants):
            values.add(node.outputs[0])
            used |= others
    return values, used


def channels_last(sizes: Sequence[int | None], nodes: list[Node], values: set[str]) -> bool:
    """Whether the input is (height, width, channels), as in TensorFlow."""
    if len(sizes) != 3 or sizes[2] not in (1, 3, 4):
        return False
    users = [n for n in nodes if values.intersection(n.inputs) and not values.intersection(n.outputs)]
    if any(n.op == "Transpose" and n.get("perm") == _TO_CHANNELS_FIRST for n in users):
        return True
    return sizes[0] not in (1, 3, 4) and None not in sizes and not any(n.op == "Conv" for n in users)
