"""Writing a repaired ONNX model: the old file with other values of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.onnx import graph, reading, tensors
from backsweep.models.model import Model


def rewritten(
    blob: bytes, folder: Path, model: Model, as_stored: Callable[[str, Tensor, Tensor], Tensor]
) -> bytes:
    """The file with other weights, read again to see that it is what the network is.

    Args:
        as_stored: gives a new value the dtype of the old one, by the weight's name.

    Raises:
        BadInput: the network is not that of the file, or its weights do not fit into it.
    """
    if not isinstance(model.net, reading.Network):
        raise BadInput("the network is not that of its file any more")
    old = reading.read(blob, folder, model.shape).values()
    stored = graph.read(blob, folder, reading.OPERATORS).constants
    new = {name: value.cpu() for name, value in model.net.values().items()}
    if wrong := old.keys() ^ new.keys():
        raise BadInput(f"the network is not that of its file any more: {some(wrong)}")
    changed = {
        name: as_stored(name, stored.get(name, old[name]), value)
        for name, value in new.items()
        if not torch.equal(value, old[name])
    }
    written = tensors.rewritten(blob, folder, changed)
    again = reading.read(written, None, model.shape).values()
    for name, value in new.items():
        if not torch.equal(again[name], changed.get(name, value).float()):
            raise BadInput(f"weight {name!r} comes out otherwise when the file is read again")
    return written
