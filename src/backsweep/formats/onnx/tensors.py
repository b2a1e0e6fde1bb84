"""Tensors of ONNX files: read as data, and written into the same file with other values.

The `onnx` package parses the bytes; it is never given a path, so it opens no file that a model names.
External data are read here, from the model's own folder alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput

STANDARD = ("", "ai.onnx")
# Numbers that the format gives to dtypes; torch has none of the 4-bit and 8-bit floats that follow.
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32,
    13: torch.uint64, 16: torch.bfloat16,
}  # fmt: skip
# Where values stand that are not raw bytes, and the dtype in which protobuf holds them.
_FIELDS = {
    "float_data": (1,), "double_data": (11,), "int64_data": (7,), "uint64_data": (12, 13),
    "int32_data": (2, 3, 4, 5, 6, 9, 10, 16),
}  # fmt: skip


def parse(blob: bytes) -> Any:
    """The ModelProto in the bytes.

    Raises:
        BadInput: `onnx` is not installed, or the bytes are no model.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as e:
        raise BadInput("this is an ONNX file; to read it: pip install 'backsweep[onnx]'") from e
    try:
        return onnx.ModelProto.FromString(blob)
    except (DecodeError, RecursionError) as e:
        raise BadInput("it cannot be read as ONNX; it is damaged or cut short; get it again") from e


class Files:
    """Files beside a model that hold its tensors, each read once, and none outside its folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.read: dict[str, bytes] = {}

    def bytes_of(self, tensor: Any) -> bytes:
        """The raw bytes of an external tensor."""
        said = {e.key: e.value for e in tensor.external_data}
        content = self.content(said.get("location", ""))
        offset = int(said.get("offset") or 0)
        length = int(said.get("length") or len(content) - offset)
        if offset < 0 or length < 0 or offset + length > len(content):
            raise BadInput(
                f"tensor {tensor.name[:80]!r} lies outside the file {said.get('location', '')[:80]!r} that "
                "should hold it; get both files again"
            )
        return content[offset : offset + length]

    def content(self, location: str) -> bytes:
        """A file that the model names."""
        if location in self.read:
            return self.read[location]
        shown = repr(location[:80])
        if self.folder is None:
            raise BadInput(f"its weights are in another file, {shown}; give the model as a path")
        parts = re.split(r"[/\\]", location)
        if not all(parts) or ".." in parts or ":" in location or "\0" in location:
            raise BadInput(f"it wants the file {shown}, which is not in its folder; do not use it")
        try:
            path = self.folder.joinpath(*parts).resolve(strict=True)
            inside = path.is_relative_to(self.folder.resolve())
            if inside and path.is_file():
                self.read[location] = path.read_bytes()
                return self.read[location]
        except (OSError, RuntimeError) as e:
            raise BadInput(
                f"its weights are in the file {shown}, which cannot be opened; put it into the model's folder"
            ) from e
        problem = "is no file" if inside else "is a link out of its folder"
        raise BadInput(f"its weights are in {shown}, which {problem}; put the file itself there")


def digest(blob: bytes, folder: Path) -> str:
    """SHA-256 of a model file; together with the files that hold its tensors, where there are any."""
    whole = hashlib.sha256(blob)
    try:
        tensors = stored(parse(blob)).values()
    except BadInput:  # `read` says what is wrong
        return whole.hexdigest()
    files = Files(folder)
    places = {
        e.value for t in tensors if t.data_location == 1 for e in t.external_data if e.key == "location"
    }
    for place in sorted(places):
        whole.update(place.encode() + hashlib.sha256(files.content(place)).digest())
    return whole.hexdigest()


def tensor(proto: Any, files: Files) -> Tensor:
    """The values of a TensorProto in their own dtype.

    Raises:
        BadInput: a dtype that torch does not have, or too few or too many bytes.
    """
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        raise BadInput(
            f"tensor {proto.name[:80]!r} has the ONNX type {proto.data_type}, which is not read here; "
            "export the model with float weights"
        )
    dims = list(proto.dims)
    count = math.prod(dims)
    if min(dims, default=0) < 0 or count >= 2**40:
        raise BadInput(f"tensor {proto.name[:80]!r} has the impossible shape {dims}; get the file again")
    raw = files.bytes_of(proto) if proto.data_location == 1 else proto.raw_data
    if raw or not count:
        flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    else:
        name = next(n for n, types in _FIELDS.items() if proto.data_type in types)
        values = getattr(proto, name)
        if dtype in (torch.float16, torch.bfloat16):  # the bits, as numbers
            flat = torch.tensor([v & 0xFFFF for v in values], dtype=torch.int32).to(torch.int16).view(dtype)
        else:
            flat = torch.tensor(list(values), dtype=dtype)
    if len(flat) != count:
        raise BadInput(f"tensor {proto.name[:80]!r} holds {len(flat)} values for {dims}; get the file again")
    return flat.reshape(dims)


def stored(model: Any) -> dict[str, Any]:
    """The tensors of the main graph by name: initialisers, and what Constant nodes hold."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD and len(node.output) == 1:
            held = [a.t for a in node.attribute if a.name == "value" and a.type == 4]
            found.update(zip(node.output, held, strict=False))
    return found


def rewritten(blob: bytes, folder: Path, values: Mapping[str, Tensor]) -> bytes:
    """The same model with other values of some weights, by the names that they have in the file.

    Weights from other files come into this one. Where the file has a quantised weight, a value of
    floats takes the place of what its DequantizeLinear made, under that name.

    Raises:
        BadInput: it is too large for one file, or holds no such weight.
    """
    model = parse(blob)
    files, protos = Files(folder), stored(model)
    for proto in protos.values():
        if proto.data_location == 1:
            raw = files.bytes_of(proto)
            proto.ClearField("external_data")
            proto.ClearField("data_location")
            proto.raw_data = raw
    made = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output}
    for name, value in values.items():
        if name in made:
            _drop(model.graph, made[name])
            proto = model.graph.initializer.add(name=name, data_type=1)
        elif name in protos:
            proto = protos[name]
        else:
            raise BadInput(f"the network is not that of its file any more: {name!r}")
        kinds = [n for n, dtype in DTYPES.items() if dtype == value.dtype]
        for part in _FIELDS:
            proto.ClearField(part)
        proto.data_type, proto.dims[:] = kinds[0], list(value.shape)
        proto.raw_data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    try:
        whole: bytes = model.SerializeToString()
    except Exception as e:
        raise BadInput("with all its weights it is too large for one ONNX file") from e
    return whole


def _drop(graph: Any, node: Any) -> None:
    """Take a node out, and the tensors that nothing else uses: they would still hold the old weight."""
    graph.node.remove(node)
    used = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
    for proto in [t for t in graph.initializer if t.name in set(node.input) - used]:
        graph.initializer.remove(proto)
