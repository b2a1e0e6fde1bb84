"""Writing a folder in one step, and an index of shards again with other weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder, write_bytes
from backsweep.formats.weights import sharded
from backsweep.formats.weights.values import (
    CHANGED,
    find_again,
    new_values,
    with_values,
)
from backsweep.models.model import Model


def write_folder(path: Path, source: Path, names: set[str], written: dict[str, bytes]) -> None:
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


def shards(model: Model, index: Path) -> tuple[set[str], dict[str, bytes]]:
    """Names of the files of an index, and the new content of those with weights."""
    try:
        weights, digest = sharded.read(index)
        folder, files = sharded.shards(index)
        blobs = {name: folder.read(name) for name in sorted(set(files.values()))}
    except Exception as e:
        raise BadInput(CHANGED) from e
    if digest != model.origin or folder.digest != digest:
        raise BadInput(CHANGED)
    new = {leaf.key: value for leaf, value in new_values(model, find_again(model, weights))}
    parts = {name: {k: v for k, v in new.items() if files[k] == name} for name in blobs}
    return {index.name, *blobs}, {name: with_values(blob, parts[name]) for name, blob in blobs.items()}
