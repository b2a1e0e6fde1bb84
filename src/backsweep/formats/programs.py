"""What torch.export.save writes, opened without running anything in it."""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.archives import WAY_OUT
from backsweep.formats.pickles.checkpoints import tensors_only

# Numbers that exported programs give to dtypes.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


def program_parts(blob: bytes) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Graph, weights and constants of an exported program, in any layout that torch has written.

    Raises:
        BadInput: it holds pickled objects or compiled code. Any other error means damage.
    """
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return _parts(archive)


def _parts(archive: zipfile.ZipFile) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    names = archive.namelist()
    if "serialized_exported_program.json" in names:  # torch 2.7 and before
        parts = ("exported_program", "state_dict", "constants")
        graph, state, constants = (archive.read(one(names, f"serialized_{p}.")) for p in parts)
        return json.loads(graph), _pickled(state), _pickled(constants)
    root = names[0].split("/")[0] + "/"
    if any(n.startswith(f"{root}data/aotinductor/") for n in names):
        raise BadInput(f"it holds compiled machine code (AOTInductor), which is never run; {WAY_OUT}")
    member = one(names, f"{root}models/")
    model = member.removeprefix(f"{root}models/").removesuffix(".json")
    stores = []
    for kind in ("weights", "constants"):
        folder = f"{root}data/{kind}/"
        if f"{folder}{model}.pt" in names:  # torch 2.8
            stores.append(_pickled(archive.read(f"{folder}{model}.pt")))
        else:
            config = json.loads(archive.read(f"{folder}{model}_{kind}_config.json"))["config"]
            stores.append(raw_tensors(archive, folder, config))
    return json.loads(archive.read(member)), stores[0], stores[1]


def one(names: list[str], prefix: str) -> str:
    found = [n for n in names if n.startswith(prefix)]
    if len(found) != 1:
        raise BadInput(f"it holds {len(found)} members {prefix}*, not one; export one program to a file")
    return found[0]


def _pickled(blob: bytes) -> dict[str, Tensor]:
    found = tensors_only(blob) if blob else {}
    return {k: v.detach() for k, v in found.items() if isinstance(v, Tensor)}


def raw_tensors(archive: zipfile.ZipFile, folder: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of raw bytes; those that share a member share their memory, as in the original."""
    flat: dict[str, Tensor] = {}
    tensors = {}
    for key, entry in config.items():
        member, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or meta is None:
            raise BadInput(f"it holds {key!r} pickled, and unpickling would run its code; {WAY_OUT}")
        sizes, strides = ([s["as_int"] for s in meta[part]] for part in ("sizes", "strides"))
        if member not in flat:
            data, dtype = bytearray(archive.read(folder + member)), DTYPES[meta["dtype"]]
            flat[member] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if math.prod(sizes) > len(flat[member]):
            raise BadInput(f"it holds too few bytes for {key!r}; export it again, with its weights")
        tensors[key] = flat[member].as_strided(sizes, strides, meta["storage_offset"]["as_int"])
    return tensors
