"""What torch.save and pickle write, opened without running anything in it: see `machine`.

Three forms are read: the zip archive of torch.save, the older row of pickles with raw memory behind it, and
a plain pickle, whose tensors are small archives of the older form or arrays of NumPy.
"""

from __future__ import annotations

import io
import sys
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.archives import WAY_OUT, members
from backsweep.formats.pickles.machine import Budget, Machine, Placeholder
from backsweep.formats.pickles.rebuilding import STORAGES, Rebuilder, Storage

ZIP, LEGACY, PLAIN = "zip", "legacy", "plain"
_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save began its files with before they were archives
_PROTOCOL = 1001
_MOST_NESTED = 1  # a plain pickle holds archives, and these hold none


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        value: its object, where all that is no plain data, tensor or array is a `Placeholder`.
        form: "zip", "legacy" or "plain".
        dropped: what was left out of objects that were made otherwise, untrusted text.
    """

    value: Any
    form: str
    dropped: list[str]

    def unknown(self) -> list[str]:
        """Names of the objects that were not made, each once; untrusted text."""
        names = dict.fromkeys(self.dropped)
        seen, left = set(), [self.value]
        while left:
            value = left.pop()
            if (
                not isinstance(value, dict | list | tuple | set | frozenset | Placeholder)
                or id(value) in seen
            ):
                continue
            seen.add(id(value))
            if isinstance(value, Placeholder):
                names[value.name] = None
                left += [value.args, value.state, *value.items, *(v for pair in value.entries for v in pair)]
            elif isinstance(value, dict):
                left += [*value, *value.values(), getattr(value, "_metadata", None)]
            else:
                left += value
        return list(names)


def open_checkpoint(blob: bytes) -> Checkpoint:
    """Read a file of torch.save or pickle.

    Raises:
        BadInput: it is damaged, or costs far more memory than its own size.
    """
    try:
        return _open(blob, Budget(len(blob)), 0)
    except BadInput:
        raise
    except Exception as e:  # whatever foreign bytes lead to
        raise BadInput(
            f"cannot be read as a checkpoint of torch.save ({type(e).__name__}: {str(e).strip()[:120]}); "
            "it is damaged or cut short; get it again"
        ) from e


def tensors_only(blob: bytes) -> Any:
    """The object of a file that may hold tensors and plain data, and nothing else.

    Raises:
        BadInput: it is damaged, or holds other objects.
    """
    found = open_checkpoint(blob)
    if unknown := found.unknown():
        raise BadInput(
            f"it holds pickled Python objects ({some(unknown)}), and unpickling them would run code from "
            f"the file; where it was made, {WAY_OUT}"
        )
    return found.value


def _open(blob: bytes, budget: Budget, depth: int) -> Checkpoint:
    def nested(content: bytes) -> Any:
        if depth >= _MOST_NESTED:
            raise ValueError("an archive in an archive in a pickle")
        budget.spend(2 * len(content))
        inner = _open(content, budget, depth + 1)
        rebuilder.dropped += inner.dropped
        return inner.value

    rebuilder = Rebuilder(budget, nested)
    if blob[:2] == b"PK":
        value, form = _zip(blob, budget, rebuilder), ZIP
    else:
        value, form = _legacy(blob, budget, rebuilder)
    return Checkpoint(value, form, rebuilder.dropped)


def _memory(size: int) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8).untyped_storage()


def _read_into(file: Any, memory: torch.UntypedStorage) -> None:
    """Fill memory from a file, all of it."""
    if memory.nbytes():
        flat: Any = torch.empty(0, dtype=torch.uint8).set_(memory).numpy()
        view = memoryview(flat)
        done = 0
        while done < len(view):
            part = file.readinto(view[done:])
            if not part:
                raise ValueError("the memory of a tensor is cut short")
            done += part


def _sized(kind: Any, count: Any) -> tuple[torch.dtype, int]:
    """Dtype and bytes of a storage; ValueError when it is none."""
    dtype = STORAGES.get(kind.name) if isinstance(kind, Placeholder) else None
    if dtype is None or type(count) is not int or not 0 <= count < 2**60:
        raise ValueError("a storage of no known kind")
    return dtype, count * dtype.itemsize


def _key(key: Any) -> str:
    if type(key) not in (str, int):
        raise ValueError("a storage whose key is no text")
    return str(key)


def _zip(blob: bytes, budget: Budget, rebuilder: Rebuilder) -> Any:
    names = members(blob)
    roots = [n.removesuffix("data.pkl") for n in names if n.endswith("data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"{len(roots)} members data.pkl, not one")
    storages: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        order = archive.read(f"{roots[0]}byteorder") if f"{roots[0]}byteorder" in names else b"little"

        def persistent(name: Any) -> Any:
            if type(name) is not tuple or len(name) != 5 or name[0] not in ("storage", b"storage"):
                return NotImplemented
            dtype, size = _sized(name[1], name[4])
            key = _key(name[2])
            if key not in storages:
                member = archive.getinfo(f"{roots[0]}data/{key}")
                if size > member.file_size:
                    raise ValueError("a storage that is larger than its member")
                memory = _memory(size)
                with archive.open(member) as file:
                    _read_into(file, memory)
                    if size == member.file_size:
                        file.read(1)  # the end, where the checksum is compared
                if order != sys.byteorder.encode() and dtype.itemsize > 1:
                    memory.byteswap(dtype)
                storages[key] = memory, dtype
            memory, _ = storages[key]
            if size > memory.nbytes():
                raise ValueError("a storage that is larger than its memory")
            return Storage(memory, dtype, 0, memory.nbytes())

        if order not in (b"little", b"big"):
            raise ValueError("an unknown order of bytes")
        machine = Machine(budget, rebuilder.rebuild, rebuilder.fill, persistent)
        return machine.load(io.BytesIO(archive.read(f"{roots[0]}data.pkl")))


def _legacy(blob: bytes, budget: Budget, rebuilder: Rebuilder) -> tuple[Any, str]:
    """Four pickles, then the keys of the storages and their memory; or one pickle, which is a plain one."""
    file: BinaryIO = io.BytesIO(blob)
    storages: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}
    left = len(blob)

    def persistent(name: Any) -> Any:
        nonlocal left
        if type(name) is not tuple or not name:
            return NotImplemented
        if name[0] in ("module", b"module") and len(name) == 4:  # a class with its source, which is not read
            return name[1]
        if name[0] not in ("storage", b"storage") or len(name) != 6:
            return NotImplemented
        (dtype, size), key, view = _sized(name[1], name[4]), _key(name[2]), name[5]
        if key not in storages:
            left -= size
            if left < 0:
                raise ValueError("storages that are larger than the file")
            storages[key] = _memory(size), dtype
        memory, stored = storages[key]
        if view is None:
            return Storage(memory, dtype, 0, memory.nbytes())
        _, offset, count = view
        plain = all(type(n) is int and 0 <= n < 2**60 for n in (offset, count))
        if not plain or stored != dtype or (offset + count) * dtype.itemsize > memory.nbytes():
            raise ValueError("a part of a storage that is outside of it")
        return Storage(memory, dtype, offset * dtype.itemsize, count * dtype.itemsize)

    machine = Machine(budget, rebuilder.rebuild, rebuilder.fill, persistent)
    value = machine.load(file)
    if type(value) is not int or value != _MAGIC:
        return value, PLAIN
    if machine.load(file) != _PROTOCOL:
        raise ValueError("an unknown protocol")
    machine.load(file)  # the machine that it was written on; numbers are little-endian whatever it was
    value = machine.load(file)
    keys = machine.load(file)
    if type(keys) is not list or sorted(map(_key, keys)) != sorted(storages):
        raise ValueError("other storages than the tensors have")
    for key in keys:
        memory, dtype = storages[str(key)]
        if int.from_bytes(file.read(8), "little") * dtype.itemsize != memory.nbytes():
            raise ValueError("a storage of another size")
        _read_into(file, memory)
        if sys.byteorder == "big" and dtype.itemsize > 1:
            memory.byteswap(dtype)
    return value, LEGACY
