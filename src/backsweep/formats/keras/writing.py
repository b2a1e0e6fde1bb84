"""Writing a repaired Keras model: the old file with other numbers where its weights are."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.keras import reading
from backsweep.formats.keras.hdf5 import BFLOAT16, Dataset
from backsweep.formats.keras.network import Network

AsStored = Callable[[str, Tensor, Tensor], Tensor]
Zipped = Callable[[zipfile.ZipFile, dict[str, bytes]], bytes]


def rewritten(blob: bytes, net: object, as_stored: AsStored, zipped: Zipped) -> bytes:
    """The file with the weights of a network, read again to see that it holds them.

    Args:
        as_stored: gives a new value the dtype of the old one, by the weight's name.
        zipped: gives an archive other content of some members.

    Raises:
        BadInput: the network is not that of the file, or a weight comes out otherwise.
    """
    old, _ = reading.network(blob)
    places = old.kept()
    if not isinstance(net, Network):
        raise BadInput("the network is not that of its file any more")
    if wrong := places.keys() ^ net.kept().keys():
        raise BadInput(f"the network is not that of its file any more: {some(wrong)}")
    _, _, file = reading.open_file(blob)
    values = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    new = {
        name: as_stored(name, file.tensor(kept.dataset), kept.as_stored(values[name].detach().cpu().float()))
        for name, kept in places.items()
    }
    out = bytearray(file.blob)
    for name, kept in places.items():
        data = kept.dataset
        out[data.start : data.start + data.length] = _bytes(new[name], data)
    written = bytes(out)
    if blob[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            written = zipped(archive, {reading.WEIGHTS: written})
    again = reading.network(written)[0]
    found = {**dict(again.named_parameters()), **dict(again.named_buffers())}
    for name, kept in places.items():
        if not torch.equal(kept.as_stored(found[name].detach()), new[name].float()):
            raise BadInput(f"weight {name!r} comes out otherwise when the file is read again")
    return written


def _bytes(value: Tensor, data: Dataset) -> bytes:
    """Numbers in the kind and the order of bytes of a dataset."""
    value = value.contiguous()
    if data.kind == BFLOAT16:
        return value.flatten().view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(value.numpy()).astype(data.kind).tobytes()
