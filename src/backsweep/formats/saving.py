"""Writing a repaired model in the format that it came in: the old file with other tensor values.

The source is read again through the readers of `load`, so nothing of it is run. Everything but the
values of weights and buffers stays: names, prefixes, dtypes, headers, nesting, other entries. What a
file keeps in the same memory (tied weights, or an entry that is a second name of one) stays together.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder, write_bytes
from backsweep.core.text import one_line, some
from backsweep.formats import exported, programs, saving_folders
from backsweep.formats.hugging_face import writing as hugging_face_writing
from backsweep.formats.keras import writing as keras_writing
from backsweep.formats.onnx import tensors as onnx_tensors
from backsweep.formats.onnx import writing as onnx_writing
from backsweep.formats.opening import kind_of
from backsweep.formats.pickles.checkpoints import PLAIN, ZIP, open_checkpoint, tensors_only
from backsweep.formats.torchscript import writing as torchscript_writing
from backsweep.formats.weights import sharded
from backsweep.formats.weights.leaves import Leaf
from backsweep.formats.weights.values import (
    CHANGED,
    as_bytes,
    as_stored,
    find_again,
    new_values,
    of_network,
    put,
    with_values,
)
from backsweep.models.model import Model

_ALIGNED = 64  # bytes, as torch aligns the members of its archives
Pick = Callable[[Iterable[str]], dict[str, Tensor]]


def save(model: Model, path: Path) -> Path:
    """Write a model whose network holds new values; a folder, or weights with an index, become a new folder.

    A model that came as a live module becomes safetensors, with what `load` needs in the header. So does,
    when the path ends in .safetensors, a checkpoint with objects that are never written back. Of a folder,
    subfolders and weights in formats that are not read stay behind: they would hold the old values.

    Raises:
        BadInput: the path is the source itself, something else is in the way there, or it cannot be
            written; the source changed since it was loaded, or holds other weights than the
            network; a weight is not finite in the dtype of the file.
    """
    path, source = Path(path), Path(model.place or model.source)
    check(model, path)
    with _named(path):
        if not model.origin or _weights_alone(model, path):
            write_bytes(path, _live(model))
        elif (index := _index(source)) is not None:
            saving_folders.write_folder(path, index.parent, *saving_folders.shards(model, index))
        elif source.is_dir():
            whole = Path(model.base) if model.base else source  # a repaired adapter is in the base's weights
            saving_folders.write_folder(path, whole, *hugging_face_writing.rewritten(model, whole))
        else:
            write_bytes(path, _file(model, source))
    return path


def _index(source: Path) -> Path | None:
    """The index of the source's shards, if it has one."""
    try:
        return sharded.index_at(source)
    except (OSError, BadInput) as e:
        raise BadInput(CHANGED) from e


def _weights_alone(model: Model, path: Path) -> bool:
    """Whether what is written is the weights without what their file holds beside them.

    Raises:
        BadInput: it would have to be, and nobody asked for it.
    """
    if not model.unknown:
        return False
    if path.suffix.lower() != ".safetensors":
        raise BadInput(
            f"its file holds objects that are never written back ({some(model.unknown)}); give a path "
            "that ends in .safetensors (--out) to write the weights alone"
        )
    return True


def check(model: Model, path: Path) -> None:
    """Whether `save` can write there, to be asked before a long repair is made.

    Raises:
        BadInput: the path is the source itself, something else is in the way there, or it cannot be written.
    """
    path, source = Path(path), Path(model.place or model.source)
    with _named(path):
        with contextlib.suppress(OSError, RuntimeError):  # neither need exist; links may go round
            place, old = path.resolve(), source.resolve()
            inside = model.origin and old.is_dir() and old in place.parents
            if place == old or inside or path.samefile(source):
                raise BadInput("this is the model that was repaired; choose another path")
        alone = _weights_alone(model, path) or not model.origin
        if path.is_dir() and (alone or not (source.is_dir() or _index(source) is not None)):
            raise BadInput("there is a folder of this name; choose another path")
        writable_folder(path.parent)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Every reason why a path cannot be written begins with the path, in one line."""
    try:
        yield
    except BadInput as e:
        raise BadInput(one_line(f"{path}: {e}")) from e
    except OSError as e:
        raise BadInput(one_line(f"{path}: cannot be written ({e.strerror}); choose another path")) from e


# ---------------------------------------------------------------------- files


def _live(model: Model) -> bytes:
    said: dict[str, Any] = {"shape": model.shape, "classes": model.classes, "layer": model.layer}
    said |= {"mean": model.mean, "std": model.std, "labels": model.labels}
    said |= {"pixel_range": model.reading.get("pixel_range"), "layout": model.reading.get("input_layout")}
    said |= model.modality.described()
    for name in ("mean", "std"):
        said[name] = None if said[name] is None else [float(v) for v in said[name]]
    header = json.dumps({k: v for k, v in said.items() if v is not None})
    tensors = {k: as_stored(k, v.cpu(), v).contiguous().clone() for k, v in of_network(model.net).items()}
    blob: bytes = safetensors.torch.save(tensors, metadata={"backsweep.model": header})
    return blob


def _file(model: Model, source: Path) -> bytes:
    try:
        blob = source.read_bytes()
    except OSError as e:
        raise BadInput(CHANGED) from e
    kind = kind_of(blob)
    if kind == "ONNX" and onnx_tensors.digest(blob, source.parent) == model.origin:
        return onnx_writing.rewritten(blob, source.parent, model, as_stored)
    if hashlib.sha256(blob).hexdigest() != model.origin:
        raise BadInput(CHANGED)
    if kind == "Keras":
        return keras_writing.rewritten(blob, model.net, as_stored, _zipped)
    if kind == "TorchScript":
        with zipfile.ZipFile(io.BytesIO(blob)) as old:
            return _zipped(old, torchscript_writing.changed_members(blob, model))
    if kind == "program":
        return _program(blob, model.net)
    if kind == "safetensors":
        fit = find_again(model, safetensors.torch.load(blob))
        return with_values(blob, {leaf.key: value for leaf, value in new_values(model, fit)})
    return _checkpoint(blob, model)


def _checkpoint(blob: bytes, model: Model) -> bytes:
    """A checkpoint in the form (archive, older, plain pickle) that it has."""
    found = open_checkpoint(blob)
    if unknown := found.unknown():
        raise BadInput(f"its file holds objects that are never written back ({some(unknown)})")
    put_back(new_values(model, find_again(model, found.value)))
    buffer = io.BytesIO()
    try:
        if found.form == PLAIN:
            pickle.dump(found.value, buffer, blob[1])
        else:
            torch.save(found.value, buffer, _use_new_zipfile_serialization=found.form == ZIP)
    except Exception as e:  # what can be read may still be nested too deep to be written
        reason = f"{type(e).__name__}: {e}"[:100]
        raise BadInput(f"its file cannot be written again ({reason}); give one with the weights alone") from e
    return buffer.getvalue()


def put_back(new: list[tuple[Leaf, Tensor]]) -> None:
    """Give the tensors of a checkpoint their values, in their own memory wherever that can hold them.

    Raises:
        BadInput: one is in something that cannot be written back.
    """
    into = {str(i): leaf.tensor for i, (leaf, _) in enumerate(new)}
    for i in map(int, put(into, {str(i): value for i, (_, value) in enumerate(new)})):
        leaf, own = new[i][0], new[i][1].clone().requires_grad_(new[i][0].tensor.requires_grad)
        if not isinstance(leaf.holder, dict):
            raise BadInput(f"weight {leaf.key!r} shares its memory with another, and cannot be written back")
        if isinstance(leaf.holder[leaf.slot], nn.Parameter):
            own = nn.Parameter(own, own.requires_grad)
        leaf.holder[leaf.slot] = own if isinstance(leaf.holder[leaf.slot], Tensor) else own.numpy()


def _pickled(blob: bytes, pick: Pick) -> bytes:
    """A member with pickled tensors by name."""
    weights = tensors_only(blob)
    held = {k: v for k, v in weights.items() if isinstance(v, Tensor) and isinstance(k, str)}
    new = {k: as_stored(k, held[k], value) for k, value in pick(held).items()}
    put_back([(Leaf("", k, held[k], weights, k), value) for k, value in new.items()])
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=blob[:2] == b"PK")
    return buffer.getvalue()


# ---------------------------------------------------------------------- exported programs


def _program(blob: bytes, net: nn.Module) -> bytes:
    """The archive with other weights, in the layouts that `programs.program_parts` reads."""
    if not isinstance(net, exported.Program):
        raise BadInput("the network is not the program of its file any more")
    left = of_network(net)

    def pick(keys: Iterable[str]) -> dict[str, Tensor]:
        return {k: left.pop(k) for k in keys if k in left}

    changed: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(blob)) as old:
        names = old.namelist()
        root = names[0].split("/")[0] + "/"
        if single := "serialized_exported_program.json" in names:  # torch 2.7 and before
            stores = [(programs.one(names, f"serialized_{p}."), "", "") for p in ("state_dict", "constants")]
        else:
            name = programs.one(names, f"{root}models/").removeprefix(f"{root}models/").removesuffix(".json")
            folders = [(f"{root}data/{kind}/", kind) for kind in ("weights", "constants")]
            stores = [(f"{f}{name}.pt", f, f"{f}{name}_{kind}_config.json") for f, kind in folders]
        for pickle, folder, config in stores:  # weights first: they stand above constants of the same name
            if single or pickle in names:
                if content := old.read(pickle):
                    changed[pickle] = _pickled(content, pick)
            else:
                changed |= _raw(old, folder, config, pick)
        if left:
            raise BadInput(f"the network is not that of its file any more: {some(left)}")
        return _zipped(old, changed)


def _raw(old: zipfile.ZipFile, folder: str, config: str, pick: Pick) -> dict[str, bytes]:
    """Members with the raw bytes of tensors; a tensor that cannot share one any more gets its own."""
    text = old.read(config)
    table = json.loads(text)
    entries = table["config"]
    tensors = programs.raw_tensors(old, folder, entries)
    new = {k: as_stored(k, tensors[k], value) for k, value in pick(tensors).items()}
    apart = put(tensors, new)
    changed = {}
    for key, tensor in tensors.items():
        memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        changed[folder + entries[key]["path_name"]] = memory.numpy().tobytes()
    for key in apart:
        stem = entries[key]["path_name"].rpartition("_")[0] or "tensor"
        own = next(
            n for i in range(2**31) if folder + (n := f"{stem}_{i}") not in {*old.namelist(), *changed}
        )
        changed[folder + own] = as_bytes(new[key])
        entries[key]["path_name"] = own
        meta = entries[key]["tensor_meta"]
        meta["strides"] = [{"as_int": n} for n in torch.empty(new[key].shape, device="meta").stride()]
        meta["storage_offset"] = {"as_int": 0}
    return {**changed, config: json.dumps(table).encode() if apart else text}


def _zipped(old: zipfile.ZipFile, changed: dict[str, bytes]) -> bytes:
    """The archive with some members changed or added at its end, the others as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        new.comment = old.comment
        added = [zipfile.ZipInfo(name) for name in changed if name not in old.namelist()]
        for info in [*old.infolist(), *added]:
            member = zipfile.ZipInfo(info.filename, info.date_time)
            member.compress_type, member.external_attr = info.compress_type, info.external_attr
            start = buffer.tell() + 30 + len(info.filename.encode()) + 4
            padding = -start % _ALIGNED
            member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            content = changed.get(info.filename)
            new.writestr(member, old.read(info) if content is None else content)
    return buffer.getvalue()
