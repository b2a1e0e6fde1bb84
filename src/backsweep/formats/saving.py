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
import os
import shutil
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
from backsweep.formats import archives, exported, huggingface
from backsweep.formats.opening import _WRAPPERS, _bare, _kind
from backsweep.models.model import Model

_OTHER_WEIGHTS = ("pytorch_model", "tf_model", "flax_model")  # in a folder: the backdoor, once more
_CHANGED = "the model changed or vanished since it was loaded; scan and repair it again"
_ALIGNED = 64  # bytes, as torch aligns the members of its archives
_EXACT = 2**24  # integers up to here are exact in float32
Pick = Callable[[Iterable[str]], dict[str, Tensor]]


def save(model: Model, path: Path) -> Path:
    """Write a model whose network holds new values; a Hugging Face folder becomes a new folder.

    A model that came as a live module becomes safetensors, with what `load` needs in the header. Of
    a Hugging Face folder, subfolders and weights in formats that are not read stay behind: they
    would hold the old values.

    Raises:
        BadInput: the path is the source itself, something else is in the way there, or it cannot be
            written; the source changed since it was loaded, or holds other weights than the
            network; a weight is not finite in the dtype of the file.
    """
    path, source = Path(path), Path(model.source)
    check(model, path)
    with _named(path):
        if model.origin and source.is_dir():
            _write_folder(path, source, *_folder(model, source))
        else:
            write_bytes(path, _file(model, source) if model.origin else _live(model))
    return path


def check(model: Model, path: Path) -> None:
    """Whether `save` can write there, to be asked before a long repair is made.

    Raises:
        BadInput: the path is the source itself, something else is in the way there, or it cannot be written.
    """
    path, source = Path(path), Path(model.source)
    with _named(path):
        with contextlib.suppress(OSError, RuntimeError):  # neither need exist; links may go round
            place, old = path.resolve(), source.resolve()
            inside = model.origin and source.is_dir() and old in place.parents
            if place == old or inside or path.samefile(source):
                raise BadInput("this is the model that was repaired; choose another path")
        if path.is_dir() and not (model.origin and source.is_dir()):
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


# ---------------------------------------------------------------------- values


def _values(net: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name; of a program also those that it keeps as constants."""
    if isinstance(net, exported.Program):
        named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        return {name: tensor.detach() for name, tensor in named}
    return {name: v.detach() for name, v in net.state_dict().items() if isinstance(v, Tensor)}


def _as_stored(name: str, old: Tensor, new: Tensor) -> Tensor:
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


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous()  # of one value, with any stride
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


def _matched(net: nn.Module) -> Pick:
    """Gives the keys of a file, whose prefixes `load` takes off, their values; all of them must match."""
    have = _values(net)

    def pick(keys: Iterable[str]) -> dict[str, Tensor]:
        names = {k: k if k in have else _bare(k) for k in keys}
        held = {have[n].data_ptr() for n in names.values() if n in have}  # tied weights are saved once
        wrong = [k for k, n in names.items() if n not in have] + [
            n for n, v in have.items()
            if n not in names.values() and v.data_ptr() not in held and not n.endswith("num_batches_tracked")
        ]  # fmt: skip
        if wrong:
            raise BadInput(f"the network is not that of its file any more: {some(wrong)}")
        return {k: have[n] for k, n in names.items()}

    return pick


def _put(into: dict[str, Tensor], new: dict[str, Tensor]) -> list[str]:
    """Write values where the tensors are, so that those that share memory still do.

    Returns:
        those whose memory cannot hold their values, because another now has it, or has many places in one.
    """
    for key, value in new.items():
        with contextlib.suppress(RuntimeError):  # places that are one in memory
            into[key].data.copy_(value)
    return [key for key, value in new.items() if _bytes(into[key]) != _bytes(value)]


# ---------------------------------------------------------------------- files


def _live(model: Model) -> bytes:
    said: dict[str, Any] = {"shape": model.shape, "classes": model.classes, "layer": model.layer}
    said |= {"mean": model.mean, "std": model.std, "labels": model.labels}
    for name in ("mean", "std"):
        said[name] = None if said[name] is None else [float(v) for v in said[name]]
    header = json.dumps({k: v for k, v in said.items() if v is not None})
    tensors = {k: _as_stored(k, v.cpu(), v).contiguous().clone() for k, v in _values(model.net).items()}
    blob: bytes = safetensors.torch.save(tensors, metadata={"backsweep.model": header})
    return blob


def _file(model: Model, source: Path) -> bytes:
    try:
        blob = source.read_bytes()
    except OSError as e:
        raise BadInput(_CHANGED) from e
    if hashlib.sha256(blob).hexdigest() != model.origin:
        raise BadInput(_CHANGED)
    kind = _kind(blob)
    if kind == "program":
        return _program(blob, model.net)
    pick = _matched(model.net)
    if kind == "safetensors":
        return _safetensors(blob, pick(safetensors.torch.load(blob)))
    return _pickled(blob, pick, wrapped=True)


def _safetensors(blob: bytes, new: dict[str, Tensor]) -> bytes:
    """The same header, and other bytes behind it."""
    start = 8 + int.from_bytes(blob[:8], "little")
    header, stored, out = json.loads(blob[8:start]), safetensors.torch.load(blob), bytearray(blob)
    for key, value in new.items():
        begin, end = header[key]["data_offsets"]
        out[start + begin : start + end] = _bytes(_as_stored(key, stored[key], value))
    return bytes(out)


def _pickled(blob: bytes, pick: Pick, wrapped: bool) -> bytes:
    """A checkpoint of torch.save, in the container (zip or older) that it has."""
    found = archives.unpickle(blob)
    weights = found
    for _ in _WRAPPERS if wrapped else ():  # as load._state_dict finds them
        inner = (weights[k] for k in _WRAPPERS if isinstance(weights.get(k), dict))
        weights = next(inner, weights)
    held = {k: v for k, v in weights.items() if isinstance(v, Tensor) and isinstance(k, str)}
    new = {k: _as_stored(k, held[k], value) for k, value in pick(held).items()}
    for key in _put(held, new):
        own: Tensor = new[key].clone().requires_grad_(held[key].requires_grad)
        weights[key] = nn.Parameter(own, own.requires_grad) if isinstance(held[key], nn.Parameter) else own
    buffer = io.BytesIO()
    torch.save(found, buffer, _use_new_zipfile_serialization=blob[:2] == b"PK")
    return buffer.getvalue()


# ---------------------------------------------------------------------- exported programs


def _program(blob: bytes, net: nn.Module) -> bytes:
    """The archive with other weights, in the layouts that `archives.program_parts` reads."""
    if not isinstance(net, exported.Program):
        raise BadInput("the network is not the program of its file any more")
    left = _values(net)

    def pick(keys: Iterable[str]) -> dict[str, Tensor]:
        return {k: left.pop(k) for k in keys if k in left}

    changed: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(blob)) as old:
        names = old.namelist()
        root = names[0].split("/")[0] + "/"
        if single := "serialized_exported_program.json" in names:  # torch 2.7 and before
            stores = [(archives._one(names, f"serialized_{p}."), "", "") for p in ("state_dict", "constants")]
        else:
            name = archives._one(names, f"{root}models/").removeprefix(f"{root}models/").removesuffix(".json")
            folders = [(f"{root}data/{kind}/", kind) for kind in ("weights", "constants")]
            stores = [(f"{f}{name}.pt", f, f"{f}{name}_{kind}_config.json") for f, kind in folders]
        for pickle, folder, config in stores:  # weights first: they stand above constants of the same name
            if single or pickle in names:
                if content := old.read(pickle):
                    changed[pickle] = _pickled(content, pick, wrapped=False)
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
    tensors = archives._raw(old, folder, entries)
    new = {k: _as_stored(k, tensors[k], value) for k, value in pick(tensors).items()}
    apart = _put(tensors, new)
    changed = {}
    for key, tensor in tensors.items():
        memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        changed[folder + entries[key]["path_name"]] = memory.numpy().tobytes()
    for key in apart:
        stem = entries[key]["path_name"].rpartition("_")[0] or "tensor"
        own = next(
            n for i in range(2**31) if folder + (n := f"{stem}_{i}") not in {*old.namelist(), *changed}
        )
        changed[folder + own] = _bytes(new[key])
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


# ---------------------------------------------------------------------- Hugging Face folders


def _folder(model: Model, source: Path) -> tuple[set[str], dict[str, bytes]]:
    """Names of the files to keep, and the new content of those that hold weights."""
    try:
        folder = huggingface.Folder(source)
        config = json.loads(folder.read("config.json"))
        if "preprocessor_config.json" in folder.names:
            folder.read("preprocessor_config.json")
        blobs = {name: folder.read(name) for name in huggingface._weight_files(folder)}
    except Exception as e:
        raise BadInput(_CHANGED) from e
    if folder.digest != model.origin:
        raise BadInput(_CHANGED)
    huggingface._check_config(config)
    shards = {name: safetensors.torch.load(blob) for name, blob in blobs.items()}
    new = _unread(config, {k: v for shard in shards.values() for k, v in shard.items()}, model.net)
    written = {
        name: _safetensors(blob, {k: new[k] for k in shards[name] if k in new})
        for name, blob in blobs.items()
    }
    _check(config, written, model.net, new)
    stale = {
        n for n in folder.names - set(blobs) if n.startswith(_OTHER_WEIGHTS) or n.endswith(".safetensors")
    }
    if "model.safetensors" in blobs:
        stale.add("model.safetensors.index.json")
    return folder.names - stale, written


def _unread(config: dict[str, Any], stored: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """New values by their keys in the files.

    transformers renames weights as it reads them, and may cut, join or turn them. Where each number
    ends up is found by reading files whose numbers count through all places.
    """
    values, keys = _values(net), list(stored)
    starts = torch.tensor([0, *(stored[k].numel() for k in keys)]).cumsum(0)
    total = int(starts[-1])

    def places(part: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        count = {
            k: part(torch.arange(stored[k].numel()) + start).float().reshape(stored[k].shape)
            for k, start in zip(keys, starts, strict=False)
        }
        return {name: v.long().flatten() for name, v in _values(huggingface._network(config, count)).items()}

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


def _check(config: dict[str, Any], written: dict[str, bytes], net: nn.Module, new: dict[str, Tensor]) -> None:
    """What is written must be read as the network is, but for the rounding of the dtype of the files."""
    stored = {k: v for blob in written.values() for k, v in safetensors.torch.load(blob).items()}
    again, values = _values(huggingface._network(config, stored)), _values(net)
    coarse = [torch.finfo(stored[k].dtype) for k, v in new.items() if stored[k].dtype != v.dtype]
    rtol, atol = max((f.eps for f in coarse), default=0.0), max((f.tiny for f in coarse), default=0.0)
    for name, value in values.items():
        if not torch.allclose(again[name].double(), value.cpu().double(), rtol, atol):
            raise BadInput(f"transformers changes {name!r} as it reads it, so it cannot be written back")


def _write_folder(path: Path, source: Path, names: set[str], written: dict[str, bytes]) -> None:
    """A new folder in one step: what is not `written` is copied."""
    if os.path.lexists(path) and (not path.is_dir() or path.is_symlink() or any(path.iterdir())):
        raise BadInput("there is a file or folder of this name; choose another path for the new folder")
    writable_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name in sorted(names):
            if name in written:
                write_bytes(partial / name, written[name])
            else:
                shutil.copyfile(source / name, partial / name)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
