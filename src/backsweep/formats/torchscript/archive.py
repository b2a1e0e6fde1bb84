"""What an archive of torch.jit.save holds: objects, tensors, and the source of its classes, all as data.

`torch.jit.load` compiles the source and builds objects of its classes, which runs their `__setstate__`
while the file is still being read. Here the pickles go through the machine of `pickles`, which makes
tensors and placeholders, and the source goes through `ast.parse`, which runs nothing.
"""

from __future__ import annotations

import ast
import io
import sys
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.archives import members
from backsweep.formats.pickles.machine import Budget, Machine, Placeholder
from backsweep.formats.pickles.rebuilding import STORAGES, Rebuilder, Storage

_MOST_SOURCE = 2**24
_LONGEST_LINE = 20_000
Code = ast.ClassDef | ast.FunctionDef


@dataclass
class Archive:
    """Parts of an archive.

    Attributes:
        root: the module, a placeholder whose state has its attributes.
        constants: tensors and values that the source calls CONSTANTS.c0, c1, ….
        code: classes and functions by their full names.
        places: the member that holds a tensor's memory, by the address of that memory.
    """

    root: Placeholder
    constants: tuple[Any, ...]
    code: dict[str, Code]
    places: dict[int, str]


def open_archive(blob: bytes) -> Archive:
    """Read an archive.

    Raises:
        BadInput: it costs far more than its size. Any other error means damage.
    """
    names = members(blob)
    root = next(n for n in names if n.endswith("data.pkl") and n.count("/") <= 1).removesuffix("data.pkl")
    places: dict[int, str] = {}
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise BadInput("it was saved on a machine with another order of bytes; save it on this one")
        budget = Budget(len(blob))
        module = _objects(archive, root, "data", budget, places)
        constants: Any = ()
        if f"{root}constants.pkl" in names:
            constants = _objects(archive, root, "constants", budget, places)
        if not isinstance(module, Placeholder) or type(constants) is not tuple:
            raise ValueError("no module")
        sources = {
            n: archive.read(n) for n in sorted(names) if n.startswith(f"{root}code/") and n.endswith(".py")
        }
    if sum(map(len, sources.values())) > _MOST_SOURCE:
        raise BadInput("its code is longer than that of any network; do not use it")
    code: dict[str, Code] = {}
    for name, source in sources.items():
        path = name.removeprefix(f"{root}code/").removesuffix(".py").replace("/", ".")
        text = source.decode()
        if any(len(line) > _LONGEST_LINE for line in text.splitlines()):
            raise BadInput("its code has lines longer than that of any network; do not use it")
        for part in ast.parse(text).body:
            if isinstance(part, ast.ClassDef | ast.FunctionDef):
                code[f"{path}.{part.name}"] = part
    return Archive(module, constants, code, places)


def _objects(archive: zipfile.ZipFile, root: str, name: str, budget: Budget, places: dict[int, str]) -> Any:
    """What a pickle of the archive holds, with the tensors in the folder of its name."""
    storages: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}

    def persistent(said: Any) -> Any:
        if type(said) is not tuple or len(said) != 5 or said[0] != "storage":
            raise ValueError("a reference that is to no memory")
        _, kind, key, _, count = said
        dtype = STORAGES.get(kind.name) if isinstance(kind, Placeholder) else None
        if dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a memory of no known kind")
        if key not in storages:
            content = bytearray(archive.read(f"{root}{name}/{key}"))
            memory = (
                torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
                if content
                else (torch.empty(0, dtype=torch.uint8).untyped_storage())
            )
            storages[key] = memory, dtype
            places[memory.data_ptr()] = f"{root}{name}/{key}"
        memory, dtype = storages[key]
        if count * dtype.itemsize > memory.nbytes():
            raise ValueError("a memory that is larger than its member")
        return Storage(memory, dtype, 0, memory.nbytes())

    def nested(_: bytes) -> Any:
        raise ValueError("an archive in an archive")

    rebuilder = Rebuilder(budget, nested)

    def rebuild(path: str, args: tuple[Any, ...] | None) -> Any:
        if path.startswith("torch.jit._pickle.") and args:  # lists of one type, and what only tags a type
            return list(args[0]) if path.split(".")[-1].startswith("build_") else args[0]
        return rebuilder.rebuild(path, args)

    machine = Machine(budget, rebuild, rebuilder.fill, persistent)
    return machine.load(io.BytesIO(archive.read(f"{root}{name}.pkl")))


def is_tensor(value: Any) -> bool:
    """Whether a value of an archive is a tensor that was made."""
    return isinstance(value, Tensor)
