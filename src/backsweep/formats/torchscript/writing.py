"""Writing a repaired TorchScript module: the members of its archive that hold other values."""

from __future__ import annotations

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.torchscript.archive import open_archive
from backsweep.formats.torchscript.module import Script
from backsweep.formats.weights.values import as_stored, put
from backsweep.models.model import Model


def changed_members(blob: bytes, model: Model) -> dict[str, bytes]:
    """New content of the members that hold tensors, by their names.

    Raises:
        BadInput: the network is not that of the file, or weights that share memory are not the same any more.
    """
    archive = open_archive(blob)
    old = Script(archive)._stored
    if not isinstance(model.net, Script) or model.net._stored.keys() != old.keys():
        raise BadInput("the network is not that of its file any more")
    values: dict[str, Tensor] = dict(model.net.named_parameters(remove_duplicate=False))
    values.update(model.net.named_buffers(remove_duplicate=False))
    new = {key: as_stored(key, tensor, values[key].detach()) for key, tensor in old.items()}
    if apart := put(old, new):
        raise BadInput(
            f"{some(apart)} share memory with other weights in the file, and cannot be written back"
        )
    changed = {}
    for tensor in old.values():
        memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        if memory.numel():
            changed[archive.places[memory.data_ptr()]] = memory.numpy().tobytes()
    return changed
