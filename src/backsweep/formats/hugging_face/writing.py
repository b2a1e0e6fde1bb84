"""Writing a folder of Hugging Face again with other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.hugging_face import files
from backsweep.formats.hugging_face.reading import network
from backsweep.formats.timm import names as timm
from backsweep.formats.weights.values import CHANGED, as_stored, of_network, with_values
from backsweep.inputs.modality import Modality
from backsweep.inputs.sound.modality import Sound
from backsweep.inputs.text.modality import Text
from backsweep.models.model import Model

_OTHER_WEIGHTS = ("pytorch_model", "tf_model", "flax_model")  # in a folder: the backdoor, once more
_EXACT = 2**24  # integers up to here are exact in float32


def rewritten(model: Model, source: Path) -> tuple[set[str], dict[str, bytes]]:
    """Names of the files to keep, and the new content of those that hold weights.

    Args:
        source: the model's folder; of an adapter that of the base.
    """
    kind = model.modality if isinstance(model.modality, Text | Sound) else None
    place = Path(model.place or model.source)
    try:
        folder = files.Folder(source)
        config, _ = files.configs(folder)
        blobs = {name: folder.read(name) for name in files.weight_files(folder)}
        if isinstance(kind, Text) and files.TOKENIZER in folder.names:
            folder.read(files.TOKENIZER)
        files.count_tokenizer(folder, config)
        digest = files.digest(place, source) if model.base else folder.digest
    except Exception as e:
        raise BadInput(CHANGED) from e
    if digest != model.origin:
        raise BadInput(CHANGED)
    shards = {name: files.tensors(name, blob) for name, blob in blobs.items()}
    new = _unread(config, {k: v for shard in shards.values() for k, v in shard.items()}, model.net, kind)
    written = {}
    for name, blob in blobs.items():
        values = {k: new[k] for k in shards[name] if k in new}
        if name == files.PICKLE:  # what was a pickle becomes safetensors
            written["model.safetensors"] = _safe(shards[name], values)
        else:
            written[name] = with_values(blob, values)
    _check(config, written, model.net, new, kind)
    stale = {
        n for n in folder.names - set(written) if n.startswith(_OTHER_WEIGHTS) or n.endswith(".safetensors")
    }
    if "model.safetensors" in written:
        stale.add("model.safetensors.index.json")
    return (folder.names | set(written)) - stale, written


def _safe(stored: dict[str, Tensor], new: dict[str, Tensor]) -> bytes:
    """Weights of a pickle with new values, as a file of their own."""
    kept = {k: as_stored(k, v, new[k]) if k in new else v for k, v in stored.items()}
    plain = {k: v.clone().contiguous() for k, v in kept.items()}
    return bytes(safetensors.torch.save(plain, metadata={"format": "pt"}))


def _unread(
    config: dict[str, Any], stored: dict[str, Tensor], net: nn.Module, kind: Modality | None
) -> dict[str, Tensor]:
    """New values by their keys in the files.

    transformers renames weights as it reads them, and may cut, join or turn them. Where each number
    ends up is found by reading files whose numbers count through all places.
    """
    values, keys = of_network(net), list(stored)
    if timm.is_timm(config):  # which keeps its names
        named = {k: timm.bare(k) for k in keys}
        if lost := [n for n in named.values() if n not in values]:
            raise BadInput(f"the network is not that of its config.json any more: {some(lost)}")
        return {k: values[n] for k, n in named.items()}
    starts = torch.tensor([0, *(stored[k].numel() for k in keys)]).cumsum(0)
    total = int(starts[-1])

    def places(part: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        count = {
            k: part(torch.arange(stored[k].numel()) + start).float().reshape(stored[k].shape)
            for k, start in zip(keys, starts, strict=False)
        }
        return {name: v.long().flatten() for name, v in of_network(network(config, count, kind)).items()}

    low = places(lambda place: place % _EXACT)
    high = places(lambda place: place // _EXACT) if total > _EXACT else {k: v * 0 for k, v in low.items()}
    if {n: v.numel() for n, v in low.items()} != {n: v.numel() for n, v in values.items()}:
        raise BadInput("the network is not that of its config.json any more")
    new: dict[str, Tensor] = {}
    for name, value in values.items():
        place = (low[name] + high[name] * _EXACT).clamp(0, total - 1)
        owners = torch.bucketize(place, starts[1:], right=True)
        for owner in owners.unique().tolist():
            key, here = keys[owner], owners == owner
            if key not in new:
                new[key] = stored[key].to(value.dtype).clone().contiguous()
            new[key].view(-1)[place[here] - starts[owner]] = value.cpu().flatten()[here].to(new[key].dtype)
    return new


def _check(
    config: dict[str, Any],
    written: dict[str, bytes],
    net: nn.Module,
    new: dict[str, Tensor],
    kind: Modality | None,
) -> None:
    """What is written must be read as the network is, but for the rounding of the dtype of the files."""
    stored = {k: v for blob in written.values() for k, v in safetensors.torch.load(blob).items()}
    again, values = of_network(network(config, stored, kind)), of_network(net)
    coarse = [torch.finfo(stored[k].dtype) for k, v in new.items() if stored[k].dtype != v.dtype]
    rtol, atol = max((f.eps for f in coarse), default=0.0), max((f.tiny for f in coarse), default=0.0)
    for name, value in values.items():
        if not torch.allclose(again[name].double(), value.cpu().double(), rtol, atol):
            raise BadInput(f"transformers changes {name!r} as it reads it, so it cannot be written back")
