"""HDF5 as Keras writes it, read from the bytes in memory by code of our own.

The HDF5 library is native code that crashes or hangs on damaged files, follows links to other files and
loads plugins for filters that a file names. Keras needs a small part of the format, which is read here:
groups, datasets in one piece, texts in attributes. All that leads out of the file or unpacks to more than
is stored has no reader. Where a dataset lies is told, so that other values can be written in its place.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_AGAIN = "save it again with Keras (model.save)"
_NOWHERE = 2**64 - 1  # the address of what is not there
_MOST_AXES, _MOST_LEVELS = 8, 12
_SPACE, _TYPE, _OUTSIDE, _LAYOUT, _FILTERS, _ATTRIBUTE = 0x01, 0x03, 0x07, 0x08, 0x0B, 0x0C
_CONTINUED, _TABLE = 0x10, 0x11
_NEWER = {0x02, 0x06, 0x15}  # links and attributes in the layout of later versions
_FLOATS = {  # size -> where the parts of a float are, and the bias of its exponent
    2: (0, 16, 10, 5, 0, 10, 15), 4: (0, 32, 23, 8, 0, 23, 127), 8: (0, 64, 52, 11, 0, 52, 1023),
}  # fmt: skip
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Dataset:
    """Numbers in one piece of the file.

    Attributes:
        kind: of NumPy, with the order of bytes, such as "<f4"; "bfloat16".
        shape: sizes of its axes.
        start: where its bytes begin.
    """

    kind: str
    shape: tuple[int, ...]
    start: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * (2 if self.kind == BFLOAT16 else np.dtype(self.kind).itemsize)


@dataclass(frozen=True)
class Item:
    """A group, or a dataset with its attributes.

    Attributes:
        members: of a group, the addresses of what it holds, by their names.
        attributes: texts, or lists of texts, by their names; others are left out.
        dataset: None for a group.
    """

    members: dict[str, int]
    attributes: dict[str, str | list[str]]
    dataset: Dataset | None


class Hdf5:
    """A file in memory.

    Args:
        blob: its bytes.

    Raises:
        BadInput: it is not in the layout that Keras writes, or leads out of itself. Any other error
            means damage.
    """

    def __init__(self, blob: bytes) -> None:
        if blob[:8] != SIGNATURE:
            raise ValueError("no HDF5 signature")
        if blob[8] > 1:
            raise BadInput(f"it is in a layout of HDF5 that Keras does not write; {_AGAIN}")
        if blob[13:15] != b"\x08\x08":
            raise ValueError("sizes that are not of 8 bytes")
        self.blob = blob
        self._left = 8 * len(blob) + 2**20  # bytes that may still be looked at: structures may overlap
        self._items: dict[int, Item] = {}
        self._texts: dict[int, dict[int, int]] = {}
        start = 24 if blob[8] == 0 else 28
        base, _, _, _, _, root = self._numbers("<6Q", start)
        if base:
            raise BadInput(f"its HDF5 part does not begin where the file does; {_AGAIN}")
        self.root = self.item(root)

    def find(self, path: str) -> Item | None:
        """The item at a path of names from the root, None if there is none."""
        found = self.root
        for name in path.split("/"):
            if name not in found.members:
                return None
            found = self.item(found.members[name])
        return found

    def tensor(self, dataset: Dataset) -> Tensor:
        """The numbers of a dataset."""
        piece = bytearray(self._take(dataset.start, dataset.length))
        if dataset.kind == BFLOAT16:
            flat = torch.frombuffer(piece, dtype=torch.bfloat16) if piece else torch.empty(0)
        else:
            flat = torch.from_numpy(np.frombuffer(piece, np.dtype(dataset.kind)).astype(dataset.kind[1:]))
        return flat.reshape(dataset.shape)

    def item(self, address: int) -> Item:
        """What lies at an address."""
        if address not in self._items:
            self._items[address] = self._read(address)
        return self._items[address]

    # ------------------------------------------------------------------ structures

    def _read(self, address: int) -> Item:
        attributes: dict[str, str | list[str]] = {}
        parts: dict[int, bytes] = {}
        places: dict[int, int] = {}
        for kind, flags, start, size in self._messages(address):
            if kind in _NEWER:
                raise BadInput(f"it has links out of it, or a layout that Keras does not write; {_AGAIN}")
            if kind == _OUTSIDE:
                raise BadInput(f"its weights lie in another file, which is never opened; {_AGAIN}")
            if kind == _FILTERS:
                raise BadInput(f"its weights are compressed, as Keras does not do; {_AGAIN}")
            if flags & 2 and kind in (_SPACE, _TYPE, _LAYOUT, _ATTRIBUTE, _TABLE):
                raise ValueError("a shared message")
            if kind == _ATTRIBUTE:
                said = self._attribute(self._take(start, size))
                if said.keys() & attributes.keys():
                    raise BadInput("it says the same thing twice; do not use it")
                attributes.update(said)
            elif kind in (_SPACE, _TYPE, _LAYOUT, _TABLE):
                if kind in parts:
                    raise BadInput("it says the same thing twice; do not use it")
                parts[kind], places[kind] = self._take(start, size), start
        if _TABLE in parts:
            links = list(self._links(*struct.unpack_from("<2Q", parts[_TABLE])))
            names = [name.encode() for name, _ in links]
            if any(one >= two for one, two in pairwise(names)):  # or others would find other things by a name
                raise BadInput("the names in it are not in order, or there twice; do not use it")
            return Item(dict(links), attributes, None)
        if _LAYOUT not in parts:
            return Item({}, attributes, None)
        opaque = attributes.get("dtype") == BFLOAT16 or "dtype" not in attributes
        kind_of, shape = _number(parts[_TYPE], opaque), _shape(parts[_SPACE])
        return Item({}, attributes, self._placed(kind_of, shape, parts[_LAYOUT], places[_LAYOUT]))

    def _take(self, start: int, size: int) -> bytes:
        self._left -= size
        if start < 0 or size < 0 or start + size > len(self.blob) or self._left < 0:
            raise ValueError("a part that is not in the file")
        return self.blob[start : start + size]

    def _numbers(self, form: str, start: int) -> tuple[int, ...]:
        return struct.unpack(form, self._take(start, struct.calcsize(form)))

    def _messages(self, address: int) -> Iterator[tuple[int, int, int, int]]:
        """Kind, flags, start and size of what an object's header says."""
        version, _, count, _, size = self._numbers("<BBHII", address)
        if version != 1:
            raise BadInput(f"it is in a layout of HDF5 that Keras does not write; {_AGAIN}")
        blocks = [(address + 16, size)]
        for at, length in blocks:  # grows as it is gone through
            end = at + length
            while at + 8 <= end and count:
                kind, size, flags = self._numbers("<HHB", at)
                if at + 8 + size > end:
                    raise ValueError("a message that is longer than its header")
                if kind == _CONTINUED:
                    start, more = self._numbers("<2Q", at + 8)
                    blocks.append((start, more))
                yield kind, flags, at + 8, size
                at, count = at + 8 + size, count - 1

    def _links(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """Names and addresses of what a group holds."""
        if self._take(heap, 4) != b"HEAP":
            raise ValueError("no heap of names")
        size, _, start = self._numbers("<3Q", heap + 8)
        names = self._take(start, size)
        seen = set()
        below = [(tree, 0)]
        for node, level in below:  # grows as it is gone through
            if node in seen or level > _MOST_LEVELS:
                raise ValueError("a tree in a circle")
            seen.add(node)
            if self._take(node, 4) == b"TREE":
                kind, _, count = self._numbers("<BBH", node + 4)
                if kind:
                    raise ValueError("a tree of something else")
                children = self._numbers(f"<{2 * count + 1}Q", node + 24)[1::2]
                below.extend((child, level + 1) for child in children)
                continue
            if self._take(node, 4) != b"SNOD":
                raise ValueError("no node of a group")
            (count,) = self._numbers("<H", node + 6)
            for i in range(count):
                place, address, cached = self._numbers("<2QI", node + 8 + 40 * i)
                if cached == 2 or address == _NOWHERE:
                    raise BadInput(f"it has soft links, as Keras does not write them; {_AGAIN}")
                end = names.index(b"\0", place)
                yield names[place:end].decode(), address

    def _placed(self, kind: str, shape: tuple[int, ...], layout: bytes, place: int) -> Dataset:
        version, form = layout[0], layout[1]
        if version != 3 or form not in (0, 1):
            raise BadInput(f"its weights are in pieces, virtual or packed, as Keras does not do; {_AGAIN}")
        if form == 0:
            (length,) = struct.unpack_from("<H", layout, 2)
            start = place + 4
        else:
            start, length = struct.unpack_from("<2Q", layout, 2)
        found = Dataset(kind, shape, start if math.prod(shape) else 0)
        if found.length and (start == _NOWHERE or length < found.length):
            raise ValueError("a dataset without its numbers")
        self._take(found.start, found.length)
        return found

    # ------------------------------------------------------------------ attributes

    def _attribute(self, raw: bytes) -> dict[str, str | list[str]]:
        """Name and texts of an attribute; nothing if it holds something else."""
        version = raw[0]
        sizes = struct.unpack_from("<3H", raw, 2)
        at = 8 if version < 3 else 9
        pieces = []
        for size in sizes:
            pieces.append(raw[at : at + size])
            at += size + (-size % 8 if version == 1 else 0)
        name, kind, space = pieces
        shape = _shape(space)
        size = struct.unpack_from("<I", kind, 4)[0]
        count = math.prod(shape)
        if count * size > len(raw) - at:
            return {}
        cells = [raw[at + i * size : at + (i + 1) * size] for i in range(count)]
        if kind[0] & 15 == 3:  # texts of one length
            texts = [cell.split(b"\0")[0] for cell in cells]
        elif kind[0] & 15 == 9 and kind[1] & 15 == 1:  # texts of any length
            texts = [self._text(*struct.unpack("<IQI", cell)) for cell in cells]
        else:
            return {}
        said = [text.decode("utf-8", "replace") for text in texts]
        return {name.split(b"\0")[0].decode("utf-8", "replace"): said if shape else said[0]}

    def _text(self, length: int, address: int, index: int) -> bytes:
        """A text of a collection."""
        if not length:
            return b""
        if address not in self._texts:
            self._texts[address] = self._collection(address)
        return self._take(self._texts[address][index], length)

    def _collection(self, address: int) -> dict[int, int]:
        """Where the texts of a collection begin, by their numbers."""
        if self._take(address, 4) != b"GCOL":
            raise ValueError("no collection of texts")
        (size,) = self._numbers("<Q", address + 8)
        at, end = address + 16, address + size
        found = {}
        while at + 16 <= end:
            index, _, _, length = self._numbers("<HHIQ", at)
            if not index:
                break
            found[index] = at + 16
            at += 16 + length + -length % 8
        return found


def _shape(raw: bytes) -> tuple[int, ...]:
    """Sizes of the axes, as the file says."""
    version, axes = raw[0], raw[1]
    if axes > _MOST_AXES or version not in (1, 2):
        raise ValueError("too many axes")
    if version == 2 and raw[3] == 2:
        return (0,)  # nothing at all
    return struct.unpack_from(f"<{axes}Q", raw, 8 if version == 1 else 4)


def _number(raw: bytes, opaque: bool) -> str:
    """The kind of numbers that a dataset holds."""
    kind, bits = raw[0] & 15, raw[1]
    size = struct.unpack_from("<I", raw, 4)[0]
    order = ">" if bits & 1 else "<"
    if kind == 0 and size in (1, 2, 4, 8):
        return f"{order}{'i' if bits & 8 else 'u'}{size}"
    if kind == 1 and not bits & 0x40 and struct.unpack_from("<HHBBBBI", raw, 8) == _FLOATS.get(size):
        return f"{order}f{size}"
    if kind == 5 and size == 2 and opaque:  # as Keras stores it
        return BFLOAT16
    raise BadInput(f"its weights are no integers or floats; {_AGAIN}")
