"""New values for the tensors of a file: in its dtypes, and in the memory that its tensors share."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats import exported
from backsweep.formats.weights import state_dicts
from backsweep.formats.weights.leaves import Leaf
from backsweep.models.model import Model

CHANGED = "the model changed or vanished since it was loaded; scan and repair it again"


def of_network(net: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name; of a program also those that it keeps as constants."""
    if isinstance(net, exported.Program):
        named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        return {name: tensor.detach() for name, tensor in named}
    return {name: v.detach() for name, v in net.state_dict().items() if isinstance(v, Tensor)}


def as_stored(name: str, old: Tensor, new: Tensor) -> Tensor:
    """`new` in the dtype of `old`; what did not change keeps the bits that it has in the file."""
    new = new.detach().cpu()
    if old.shape != new.shape or old.layout != torch.strided:
        raise BadInput(f"weight {name!r} has another shape or layout than in the file that it came from")
    kept = new
    if old.dtype != new.dtype and old.is_floating_point():
        kept = torch.where(old.to(new.dtype) == new, old.double(), new.double()).to(old.dtype)
    elif old.dtype != new.dtype:
        kept = new.to(old.dtype)
        if not torch.equal(kept.to(new.dtype), new):
            raise BadInput(f"the new values of {name!r} do not fit {old.dtype}, as the file has them")
    if not (kept.double() if kept.is_floating_point() else kept).isfinite().all():
        raise BadInput(
            f"the new weight {name!r} holds NaN or infinite values as {kept.dtype}; repair it again"
        )
    return kept


def as_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous()  # of one value, with any stride
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


def find_again(model: Model, value: Any) -> state_dicts.Fit:
    """Where the network's weights are in what its file holds; all of them must be there."""
    try:
        return state_dicts.find(model.net, value, model.entry)
    except state_dicts.Misfit as e:
        raise BadInput(f"the network is not that of its file any more: {some(e.names)}") from e


def new_values(model: Model, fit: state_dicts.Fit) -> list[tuple[Leaf, Tensor]]:
    """New values for all places that hold the weights, also those that only have the same."""
    values = of_network(model.net)
    places = [(leaf, name) for f in (fit, *fit.twins) for name, leaf in f.leaves.items()]
    return [(leaf, as_stored(leaf.key, leaf.tensor, values[name])) for leaf, name in places]


def put(into: dict[str, Tensor], new: dict[str, Tensor]) -> list[str]:
    """Write values where the tensors are, so that those that share memory still do.

    Returns:
        those whose memory cannot hold their values, because another now has it, or has many places in one.
    """
    for key, value in new.items():
        with contextlib.suppress(RuntimeError):  # places that are one in memory
            into[key].data.copy_(value)
    return [key for key, value in new.items() if as_bytes(into[key]) != as_bytes(value)]


def with_values(blob: bytes, new: dict[str, Tensor]) -> bytes:
    """The same header, and other bytes behind it."""
    start = 8 + int.from_bytes(blob[:8], "little")
    header, stored, out = json.loads(blob[8:start]), safetensors.torch.load(blob), bytearray(blob)
    for key, value in new.items():
        begin, end = header[key]["data_offsets"]
        out[start + begin : start + end] = as_bytes(as_stored(key, stored[key], value))
    return bytes(out)
