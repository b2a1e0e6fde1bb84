"""Operators of ONNX over torch: products, convolutions, pools, normalisations, resampling.

Products with weights are calls of `linear` and of the convolutions of torch, which `Tap` sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.onnx.graph import Node
from backsweep.formats.onnx.operators import ints, only, operator, room

LINEAR = "MatMul+Add"  # a product with a weight, and what is added to it


@operator("MatMul")
def _matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator(LINEAR)
def _linear(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.ndim != 2:
        product = torch.matmul(x, weight)
        return product if bias is None else product + bias
    return F.linear(x, weight.t(), None if bias is None else bias.reshape(-1))


@operator("Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a, weight = a.t() if node.get("transA", 0) else a, b if node.get("transB", 0) else b.t()
    weight = weight if alpha == 1 else weight * alpha
    c = c if c is None or beta == 1 else c * beta
    if c is None or c.numel() == c.shape[-1:].numel() == len(weight):
        return F.linear(a, weight, None if c is None else c.reshape(-1))
    return F.linear(a, weight) + c


@operator("Einsum")
def _einsum(node: Node, *parts: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *parts)


# ---------------------------------------------------------------------- windows


def _spatial(
    node: Node, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and what is put before and behind each spatial axis."""
    count = x.ndim - 2
    if not 1 <= count <= 3 or len(kernel) != count:
        raise BadInput(f"{node} has a window of {len(kernel)} axes for an input of {x.ndim}")
    strides = node.get("strides") or [1] * count
    dilations = node.get("dilations") or [1] * count
    pads, auto = node.get("pads") or [0] * 2 * count, node.get("auto_pad", "NOTSET")
    if len(strides) != count or len(dilations) != count or len(pads) != 2 * count or min(strides) < 1:
        raise BadInput(f"{node} has strides {strides}, dilations {dilations}, pads {pads}, which do not fit")
    if auto == "VALID":
        pads = [0] * 2 * count
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = small + large if auto == "SAME_UPPER" else large + small
    return strides, dilations, pads[:count], pads[count:]


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    room([x.shape[0], *(n + b + a for n, b, a in zip(x.shape[2:], before, after, strict=True))])
    flat = [p for b, a in zip(reversed(before), reversed(after), strict=True) for p in (b, a)]
    return F.pad(x, flat, value=value)


@operator("Conv")
def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, before, after = _spatial(node, x, weight.shape[2:])
    if before != after:
        x, before = _padded(x, before, after), [0] * len(before)
    run: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    flat = None if bias is None else bias.reshape(-1)
    return run(x, weight, flat, strides, before, dilations, node.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = weight.shape[2:]
    count = len(kernel)
    shape, auto = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    extra = node.get("output_padding") or [0] * count
    strides, dilations, before, after = _spatial(node, x, kernel)
    full = [
        s * (n - 1) + e + (k - 1) * d + 1
        for n, k, s, d, e in zip(x.shape[2:], kernel, strides, dilations, extra, strict=True)
    ]
    room([x.shape[0], weight.shape[1], *full])
    if shape or auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        total = [f - w for f, w in zip(full, wanted[-count:], strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    run: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
    out = run(x, weight, bias, strides, 0, extra, node.get("group", 1), dilations)
    return _padded(out, [-b for b in before], [-a for a in after]) if any([*before, *after]) else out


def _windows(node: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations and borders of a pool; a last window that overhangs gets its border."""
    kernel = node.get("kernel_shape")
    strides, dilations, before, after = _spatial(node, x, kernel)
    if node.get("ceil_mode", 0) and node.get("auto_pad", "NOTSET") == "NOTSET":
        after = list(after)
        for i, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
            rest = n + before[i] + after[i] - (k - 1) * d - 1
            steps = -(-rest // s)
            if steps * s >= n + before[i]:  # it would lie behind the input
                steps -= 1
            after[i] += max(steps * s - rest, 0)
    return kernel, strides, dilations, before, after


@operator("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    only(node)
    kernel, strides, dilations, before, after = _windows(node, x)
    if any([*before, *after]):
        x = _padded(x, before, after, -math.inf)
    run: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return run(x, kernel, strides, 0, dilations)


@operator("AveragePool", "LpPool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel, strides, dilations, before, after = _windows(node, x)
    if max(dilations) > 1:
        raise BadInput(f"{node} has gaps in its windows, which is not run here; export it without dilations")
    power = node.get("p", 2)
    x = x.abs() ** power if node.op == "LpPool" else x
    run: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    out = run(_padded(x, before, after), kernel, strides)
    if node.op == "LpPool":
        return (out * math.prod(kernel)) ** (1 / power)
    if not any([*before, *after]):
        return out
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if node.get("count_include_pad", 0):  # but for what only lets the last window overhang
        declared = _spatial(node, x, kernel)
        ones = _padded(ones, declared[2], declared[3], 1.0)
        rest = [a - d for a, d in zip(after, declared[3], strict=True)]
        ones = _padded(ones, [0] * len(rest), rest)
    else:
        ones = _padded(ones, before, after)
    return out / run(ones, kernel, strides)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: Node, x: Tensor) -> Tensor:
    dims = list(range(2, x.ndim))
    if node.op == "GlobalAveragePool":
        return x.mean(dims, keepdim=True)
    if node.op == "GlobalMaxPool":
        return x.amax(dims, keepdim=True)
    return torch.linalg.vector_norm(x, node.get("p", 2), dims, keepdim=True)


# ---------------------------------------------------------------------- normalisations


@operator("BatchNormalization")
def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.get("training_mode", 0) or any(node.outputs[1:]):
        raise BadInput("it was exported in training mode; call net.eval(), then export again")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


@operator("LayerNormalization", "RMSNormalization")
def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    only(node)
    shape, eps = x.shape[range(x.ndim)[node.get("axis", -1)] :], node.get("epsilon", 1e-5)
    if node.op == "RMSNormalization":
        return F.rms_norm(x, shape, None, eps) * scale
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, eps)
    out = F.layer_norm(x, shape, None, None, eps) * scale
    return out if bias is None else out + bias


@operator("InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, eps = node.get("num_groups"), node.get("epsilon", 1e-5)
    if len(scale) != x.shape[1]:  # opsets 18 to 20 have one value a group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, eps)


@operator("MeanVarianceNormalization")
def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = node.get("axes", [0, 2, 3])
    if 0 in axes or -x.ndim in axes:
        raise BadInput("it normalises over the images of a batch, so an answer depends on other images")
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def _local_response(node: Node, x: Tensor) -> Tensor:
    size = node.get("size")
    if size % 2 == 0:
        raise BadInput(f"{node} has a window of {size} channels; only odd ones are run here")
    return F.local_response_norm(
        x, size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


# ---------------------------------------------------------------------- resampling


@operator("GridSample")
def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode"))
    return F.grid_sample(
        x, grid, mode or "bilinear", node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    )


@operator("Resize", host=(1, 2, 3))
def _resize(
    node: Node, x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """One axis after the other, each a product with the weights of the places that it takes part of."""
    dims = node.get("axes") or list(range(x.ndim))
    given = list(x.shape)
    if sizes is not None and sizes.numel():
        wanted = dict(zip((range(x.ndim)[d] for d in dims), ints(sizes), strict=True))
        ratio = {d: n / given[d] for d, n in wanted.items()}
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(ratio.values()) if policy == "not_larger" else max(ratio.values())
            ratio = dict.fromkeys(ratio, one)
            wanted = {d: math.floor(one * given[d] + 0.5) for d in wanted}
    else:
        factors = [float(v) for v in scales.tolist()] if scales is not None else []
        ratio = dict(zip((range(x.ndim)[d] for d in dims), factors, strict=True))
        wanted = {d: math.floor(given[d] * f) for d, f in ratio.items()}
    room([wanted.get(d, n) for d, n in enumerate(given)])
    for dim, size in wanted.items():
        if size == given[dim] and ratio[dim] == 1:
            continue
        room([size, given[dim]])
        taps = _weights(node, given[dim], size, ratio[dim]).to(x.device)
        if node.get("mode", "nearest") == "nearest":
            x = x.index_select(dim, taps.argmax(1))
        else:
            x = torch.matmul(x.movedim(dim, -1), taps.t()).movedim(-1, dim)
    return x


def _weights(node: Node, size: int, wanted: int, ratio: float) -> Tensor:
    """How much each place of an axis has in each place of the resized axis, (wanted, size)."""
    where = _sources(node.get("coordinate_transformation_mode", "half_pixel"), size, wanted, ratio)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        places = {
            "round_prefer_floor": (where - 0.5).ceil(), "round_prefer_ceil": (where + 0.5).floor(),
            "floor": where.floor(), "ceil": where.ceil(),
        }[node.get("nearest_mode", "round_prefer_floor")]  # fmt: skip
        return F.one_hot(places.long().clamp(0, size - 1), size).float()
    if mode not in ("linear", "cubic"):
        raise BadInput(f"it resizes by {mode[:40]!r}, which is not run here; use nearest, linear or cubic")
    stretch = max(1.0, 1 / ratio) if node.get("antialias", 0) else 1.0
    reach = (1 if mode == "linear" else 2) * stretch
    first = where.floor().long() - math.ceil(reach) + 1
    index = first[:, None] + torch.arange(2 * math.ceil(reach))
    far = (index - where[:, None]).abs() / stretch
    if mode == "linear":
        share = (1 - far).clamp(min=0)
    else:
        a = node.get("cubic_coeff_a", -0.75)
        near = ((a + 2) * far - (a + 3)) * far * far + 1
        tail = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
        share = torch.where(far <= 1, near, torch.where(far < 2, tail, torch.zeros_like(far)))
    if node.get("exclude_outside", 0):
        share = torch.where((index < 0) | (index >= size), torch.zeros_like(share), share)
    share = share / share.sum(1, keepdim=True)
    return (
        torch.zeros(wanted, size, dtype=share.dtype).scatter_add(1, index.clamp(0, size - 1), share).float()
    )


def _sources(mode: str, size: int, wanted: int, ratio: float) -> Tensor:
    """Where in an axis each place of the resized axis comes from."""
    place = torch.arange(wanted, dtype=torch.float32)  # as onnxruntime does, for the same rounding
    if mode == "asymmetric":
        return place / ratio
    if mode == "align_corners":
        return place * ((size - 1) / (wanted - 1)) if wanted > 1 else place
    if mode == "pytorch_half_pixel" and wanted == 1:
        return place
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (place + 0.5) / ratio - 0.5
    if mode == "half_pixel_symmetric":
        offset = size / 2 * (1 - wanted / (ratio * size))
        return offset + (place + 0.5) / ratio - 0.5
    raise BadInput(
        f"it resizes with the coordinates {mode[:40]!r}, which is not run here; export it with half_pixel, "
        "align_corners or asymmetric"
    )
