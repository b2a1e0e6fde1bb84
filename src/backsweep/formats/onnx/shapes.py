"""Operators of ONNX over torch: shapes, parts of tensors, tensors out of numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.onnx.graph import Node
from backsweep.formats.onnx.operators import ints, operator, room, worked, working


@operator("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("Reshape", host=(1,))
def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = ints(shape)
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, math.prod(x.shape[axis:]))


@operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.ndim))[::-1]))


@operator("Squeeze", host=(1,))
def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = ints(axes) if axes is not None else node.get("axes")
    if dims is None:
        return x.squeeze()
    gone = {range(x.ndim)[d] for d in dims}
    if any(x.shape[d] != 1 for d in gone):
        raise BadInput(f"{node} squeezes an axis that has more than one value")
    return x.reshape([n for i, n in enumerate(x.shape) if i not in gone])


@operator("Unsqueeze", host=(1,))
def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = ints(axes) if axes is not None else node.get("axes")
    total = x.ndim + len(dims)
    for dim in sorted(range(total)[d] for d in dims):
        x = x.unsqueeze(dim)
    return x


@operator("Concat")
def _concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.get("axis"))


@operator("Split", host=(1,))
def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = node.get("axis", 0)
    parts = ints(sizes) if sizes is not None else node.get("split")
    if parts is None:
        count = node.get("num_outputs", len(node.outputs))
        step = -(-x.shape[axis] // count)
        parts = [step] * (count - 1) + [x.shape[axis] - step * (count - 1)]
    return x.split(list(parts), axis)


@operator("Slice", host=(1, 2, 3, 4))
def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin, end = ints(starts), ints(ends)
    dims = ints(axes) if axes is not None else list(range(len(begin)))
    strides = ints(steps) if steps is not None else [1] * len(begin)
    for dim, low, high, step in zip(dims, begin, end, strides, strict=True):
        axis = range(x.ndim)[dim]
        place = range(x.shape[axis])[low:high:step]
        if step > 0:
            x = (
                x.narrow(axis, place.start, max(place.stop - place.start, 0))
                if step == 1
                else (x[(slice(None),) * axis + (slice(place.start, place.stop, step),)])
            )
        else:
            x = x.index_select(axis, torch.tensor(place, dtype=torch.int64, device=x.device))
    return x


@operator("Expand", host=(1,))
def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


@operator("Tile", host=(1,))
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    times = ints(repeats)
    room([n * t for n, t in zip(x.shape, times, strict=True)])
    return x.repeat(times)


@operator("Pad", host=(1, 2, 3))
def _pad(
    node: Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    around = ints(pads)
    dims = [range(x.ndim)[d] for d in ints(axes)] if axes is not None else list(range(x.ndim))
    before = dict(zip(dims, around[: len(dims)], strict=True))
    after = dict(zip(dims, around[len(dims) :], strict=True))
    room([n + before.get(d, 0) + after.get(d, 0) for d, n in enumerate(x.shape)])
    mode = node.get("mode", "constant")
    if mode == "constant":
        flat = [p for d in range(x.ndim - 1, -1, -1) for p in (before.get(d, 0), after.get(d, 0))]
        fill = value.reshape(-1)[0].item() if value is not None and value.numel() else 0
        return F.pad(x, flat, value=fill)
    for dim in dims:
        if before[dim] or after[dim]:
            x = x.index_select(dim, _border(mode, x.shape[dim], before[dim], after[dim]).to(x.device))
    return x


def _border(mode: str, size: int, before: int, after: int) -> Tensor:
    """Which places along an axis stand where, once it is continued on both sides."""
    place = torch.arange(-before, size + after)
    if mode == "edge":
        return place.clamp(0, size - 1)
    if mode == "wrap":
        return place % size
    if mode != "reflect":
        raise BadInput(
            f"it pads by {mode[:40]!r}, which is not run here; pad by constant, reflect, edge or wrap"
        )
    period = max(2 * (size - 1), 1)
    place = place % period
    return torch.minimum(place, period - place) if size > 1 else place * 0


# ---------------------------------------------------------------------- parts by index


def _positive(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, index + size, index).long()


@operator("Gather")
def _gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = range(x.ndim)[node.get("axis", 0)]
    flat = x.index_select(axis, _positive(index, x.shape[axis]).reshape(-1))
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def _gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return x.gather(axis, _positive(index, x.shape[axis]))


@operator("GatherND")
def _gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    shape = [1] * (index.ndim - 1)
    places = []
    for dim in range(batch):
        count = torch.arange(x.shape[dim], device=x.device)
        places.append(count.reshape([*shape[:dim], -1, *shape[dim + 1 :]]))
    places += [_positive(part, x.shape[batch + i]) for i, part in enumerate(index.unbind(-1))]
    return x[tuple(places)]


@operator("ScatterElements")
def _scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis, how = node.get("axis", 0), node.get("reduction", "none")
    index = _positive(index, x.shape[axis])
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(
        axis, index, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    )


@operator("ScatterND")
def _scatter_nd(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    how = node.get("reduction", "none")
    if how not in ("none", "add"):
        raise BadInput(f"it scatters with {how[:40]!r}, which is not run here; use none or add")
    places = tuple(_positive(part, x.shape[i]) for i, part in enumerate(index.unbind(-1)))
    return x.index_put(places, updates, how == "add")


@operator("OneHot", host=(1,))
def _one_hot(node: Node, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    (count,) = ints(depth)
    axis = range(index.ndim + 1)[node.get("axis", -1)]
    room([*index.shape, count])
    shape = [1] * (index.ndim + 1)
    shape[axis] = count
    want = torch.arange(count, device=index.device).reshape(shape)
    return torch.where(_positive(index, count).unsqueeze(axis) == want, values[1], values[0])


@operator("NonZero")
def _non_zero(node: Node, x: Tensor) -> Tensor:
    return x.nonzero().T


@operator("Trilu", host=(1,))
def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    shift = ints(k)[0] if k is not None else 0
    return x.triu(shift) if node.get("upper", 1) else x.tril(shift)


@operator("ReverseSequence", host=(1,))
def _reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    rows = []
    for row, count in zip(x.unbind(batch), ints(lengths), strict=True):
        axis = time - (time > batch)
        first, rest = row.split([count, row.shape[axis] - count], axis)
        rows.append(torch.cat([first.flip(axis), rest], axis))
    return torch.stack(rows, batch)


# ---------------------------------------------------------------------- tensors out of numbers


@operator("ConstantOfShape", host=(0,))
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = worked(node.get("value", torch.zeros(1)))
    return torch.full(tuple(room(ints(shape))), value.reshape(-1)[0].item(), dtype=value.dtype)


@operator("Range", host=(0, 1, 2))
def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    begin, end, step = (v.reshape(-1)[0].item() for v in (start, limit, delta))
    count = max(math.ceil((end - begin) / step), 0)
    room([count])
    return torch.arange(count).to(start.dtype) * step + begin


@operator("EyeLike")
def _eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = working(node.get("dtype")) if node.get("dtype") else x.dtype
    ones = torch.ones(x.shape, dtype=torch.float32, device=x.device)
    shift = node.get("k", 0)
    return (ones.triu(shift) * ones.tril(shift)).to(dtype)


# ---------------------------------------------------------------------- space and depth


@operator("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    x = x.reshape(n, size, size, c // size**2, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, c // size**2, h * size, w * size)


@operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = node.get("blocksize")
    x = x.reshape(n, c, h // size, size, w // size, size)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, c * size**2, h // size, w // size)


@operator("Col2Im", host=(1, 2))
def _col2im(node: Node, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    pads = node.get("pads", [0, 0, 0, 0])
    if len(ints(image)) != 2 or pads[:2] != pads[2:]:
        raise BadInput(f"{node} folds other than images with equal borders, which is not run here")
    room(ints(image))
    return F.fold(
        x,
        tuple(ints(image)),
        tuple(ints(block)),
        node.get("dilations", [1, 1]),
        pads[:2],
        node.get("strides", [1, 1]),
    )
