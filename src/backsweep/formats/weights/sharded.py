"""Weights in several safetensors files, with an index that says which is where."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.hugging_face.files import Folder, listed, shard

_ENDING = ".safetensors.index.json"


def index_in(folder: Path) -> Path | None:
    """The index of the weights in a folder that is not one of Hugging Face.

    Raises:
        BadInput: there are several.
    """
    if (folder / "config.json").is_file():
        return None
    found = sorted(p for p in folder.iterdir() if p.name.endswith(_ENDING) and p.is_file())
    if len(found) > 1:
        raise BadInput(f"it holds several models, {some(p.name for p in found)}; name one of these files")
    return found[0] if found else None


def index_at(path: Path) -> Path | None:
    """The index that a path leads to: itself, or the one in a folder; None if it is something else.

    Raises:
        BadInput: a folder has several.
    """
    if path.is_dir():
        return index_in(path)
    with path.open("rb") as file:
        head = file.read(2**10)
    # A safetensors file may begin with the same byte, but the length of its header ends with zeros.
    # Nor is the file of a booster, which is JSON as well, an index.
    return path if head[:1] == b"{" and b"\0" not in head[:8] and b'"learner"' not in head else None


def shards(index: Path) -> tuple[Folder, dict[str, str]]:
    """The folder of an index, and the file of every weight. Names of files stay inside the folder.

    Raises:
        BadInput: the index is damaged, or names files that are not there. Any other error means damage.
    """
    folder = Folder(index.parent)
    return folder, listed(folder, index.name)


def read(index: Path) -> tuple[dict[str, Tensor], str]:
    """All weights, and the digest of the index with its files.

    Raises:
        BadInput: the index and the files do not belong together. Any other error means damage.
    """
    folder, files = shards(index)
    weights: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        weights |= shard(folder, name, files)
    return weights, folder.digest


def digest(index: Path) -> str:
    """The digest as `read` gives it, from the files alone.

    Raises:
        BadInput: files are missing. Any other error means damage.
    """
    folder, files = shards(index)
    for name in sorted(set(files.values())):
        folder.read(name)
    return folder.digest
