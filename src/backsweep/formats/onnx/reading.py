"""ONNX models: read as data, run by an interpreter, and tried to take any number of images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.onnx.graph import read as read_file
from backsweep.formats.onnx.layers import LINEAR
from backsweep.formats.onnx.network import SIZES, Network
from backsweep.formats.onnx.operators import OPERATORS, ints

__all__ = ["OPERATORS", "Network", "read"]


def read(blob: bytes, folder: Path | None = None, shape: Sequence[int] | None = None) -> Network:
    """The network in the bytes of an ONNX file, tried to take any batch size.

    Args:
        folder: where the file lies, for weights that are kept in files beside it.
        shape: shape of one input (C, H, W), used where the file leaves it open.

    Raises:
        BadInput: damaged; an operator that is not run here; several inputs; training mode; answers
            that depend on the other images of a batch. Any other error means damage.
    """
    network = Network(read_file(blob, folder, OPERATORS.keys() - {LINEAR}))
    network.shape = _shape(network, shape)
    if network.shape is not None:
        _check_batch(network, network.shape)
    return network


def _shape(network: Network, wanted: Sequence[int] | None) -> tuple[int, ...] | None:
    """Shape of one input: as the file says, and where it says nothing, as wanted."""
    dims = network.dims
    if not dims and wanted is not None:
        return tuple(wanted)
    if (
        wanted is not None
        and len(wanted) == len(dims)
        and all(d in (None, w) for d, w in zip(dims, wanted, strict=True))
    ):
        return tuple(wanted)
    if (
        wanted is not None
        and len(dims) == 1
        and len(wanted) > 1
        and dims[0] == math.prod(wanted)
        and (wanted[0] == 1 or len(wanted) == 2)
    ):  # images of one channel for a network that takes rows of values
        network.flat = dims[0]
        return tuple(wanted)
    sizes = tuple(d for d in dims if d is not None)
    return sizes if sizes and len(sizes) == len(dims) else None


def _check_batch(network: Network, shape: tuple[int, ...]) -> None:
    """Any number of images must be answered as each is alone; a fixed batch size is freed if it can be."""
    size = network.batch or 1
    if math.prod((size, *shape)) > 2**26:
        raise BadInput(f"its inputs, {(size, *shape)}, are too large to be images; export it again")
    x = torch.rand((3 * size, *shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = torch.cat([_tried(network, part) for part in x.split(size)])
        if len(want) != len(x) or want.ndim != 2:
            raise BadInput(
                f"it yields {tuple(network.run(x[:size]).shape)} for {size} inputs, not (batch, classes); "
                "export the part of it that yields the scores of classes"
            )
        if network.batch is not None:
            _free_batch(network, x[: 2 * size], size)
        if _agrees(network, x, want):
            return
        if network.batch is None:
            raise BadInput(
                "its answer for an image depends on the other images of the batch; export it in eval mode"
            )
        network.piecewise = size
        if not _agrees(network, x, want):
            raise BadInput(
                f"it takes batches of {size} and of no other size, and its answer for an image depends on "
                "the others; export it with a dynamic batch size"
            )


def _tried(network: Network, x: Tensor) -> Tensor:
    """The answers to one batch, or which node fails and why."""
    begun: list[int] = []
    try:
        return network.run(x, lambda index, _: begun.append(index))
    except BadInput:
        raise
    except Exception as e:
        line = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise BadInput(
            f"its node {str(network.steps[begun[-1]])[:120]} cannot be run for inputs of shape "
            f"{tuple(x.shape)} ({line[:160]}); check the shape (--shape), or export it again"
        ) from e


def _agrees(network: Network, x: Tensor, want: Tensor) -> bool:
    try:
        got = [network(x), network(x[:1])]
    except (RuntimeError, ValueError, IndexError, BadInput):
        return False
    near = 1e-4 * max(1.0, float(want.abs().max()))
    return all(
        g.shape == w.shape and torch.allclose(g, w, rtol=1e-3, atol=near, equal_nan=True)
        for g, w in zip(got, (want, want[:1]), strict=True)
    )


def _free_batch(network: Network, x: Tensor, size: int) -> None:
    """Find what was computed for the exported batch size, by running one batch and then two.

    Where two batches make an input twice as long on one axis, the shape that it is given is made to
    grow where that axis goes. Parts to be joined that did not grow were made for one batch.
    """
    small: list[list[tuple[int, ...]]] = []
    outer: dict[str, int] = {}  # how many places stand before the images on the axis that holds them

    def record(_: int, inputs: list[Any]) -> None:
        small.append([tuple(t.shape) if isinstance(t, Tensor) else () for t in inputs])

    def compare(index: int, inputs: list[Any]) -> None:
        node = network.steps[index]
        within = max((outer.get(name, 1) for name in node.inputs), default=1)
        if node.op == "Concat" and node.get("axis") != 0:
            rows = [len(t) if t.ndim > 1 else 0 for t in inputs]
            if 2 * size in rows and (late := [i for i, n in enumerate(rows) if n == size]):
                network.late[index] = late
        place = SIZES.get(node.op, 0)
        if place and len(node.inputs) > place and node.inputs[place] in network.host:
            before, now = small[index][0], tuple(inputs[0].shape)
            grown = [i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
            if len(grown) == 1 and now[grown[0]] == 2 * before[grown[0]]:
                given = ints(inputs[place])
                if node.op == "Reshape":
                    after = tuple(
                        OPERATORS["Reshape"](node, torch.empty(before, device="meta"), inputs[1]).shape
                    )
                    axis, within = _goes_to(before, grown[0], within, after, size)
                else:  # sizes of axes, counted from the last
                    after, axis = tuple(given), grown[0] + len(given) - len(before)
                    axis = axis if after[axis] == before[grown[0]] else -1
                if axis >= 0 and given[axis] > 0:
                    network.fixed[index] = (axis, after[axis] // size)
        outer.update(dict.fromkeys(node.outputs, within))

    network.run(x[:size], record)
    with contextlib.suppress(RuntimeError, ValueError, IndexError):  # the check that follows tells
        network.run(x, compare)


def _goes_to(
    before: Sequence[int], axis: int, within: int, after: Sequence[int], size: int
) -> tuple[int, int]:
    """The axis of a new shape that holds the images, -1 if there is none, and the places before them on it.

    Before the images on an axis of the old shape stand `within` places, and so many they are in all
    axes together. For batches of one, several axes may do: one that holds nothing else is the best,
    then the same axis as before, then one where the images are merged into what stands before them.
    """
    start = math.prod(before[:axis]) * within
    found = []
    for place, count in enumerate(after):
        ahead = math.prod(after[:place])
        if start % ahead == 0 and (ahead * count) % (start * size) == 0:
            inner = ahead * count // (start * size)
            rank = (count != size, len(after) != len(before) or place != axis, inner != 1, place)
            found.append((rank, place, start // ahead))
    return min(found)[1:] if found else (-1, within)
