"""NumPy archives (.npz): images and labels under the names that people give them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.inputs.image.resizing import resized
from backsweep.inputs.image.sources import listing
from backsweep.inputs.image.sources.classes import chosen, numbered, split_of
from backsweep.inputs.modality import Found, Names, Wanted

_IMAGES = ("x", "images", "image", "imgs", "img", "data", "inputs", "pixels")
_LABELS = ("y", "labels", "label", "targets", "target", "classes")
_CHUNK = 2**24  # bytes that are read at once
_MOST_TEXT = 2**28  # bytes of labels in words


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def read(path: Path, wanted: Wanted) -> Found:
    """Images and labels of an .npz file.

    Raises:
        BadInput: it holds no such arrays, or they are no images with labels.
    """
    with zipfile.ZipFile(path) as archive:
        infos = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        (x, y), note = chosen(_pairs(infos, wanted.labels is None), wanted.split)
        labels, names, notes = None, wanted.names, [note]
        if wanted.labels is None:
            labels, names, said = _labels(archive, infos[y], wanted)
            notes.append(said)
        images, rows, said = _images(archive, infos[x], labels, wanted)
        notes.append(said)
        if labels is not None and rows is not None:
            labels = labels[rows]
        return Found(images, labels, names, tuple(filter(None, notes)))


def _pairs(keys: Sequence[str] | Any, labelled: bool) -> dict[str, tuple[str, str]]:
    """Keys of images and labels of every split; "" is what belongs to none."""
    found: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for key in keys:
        parts = key.lower().split("_")
        split = ""
        for part in (parts[0], parts[-1]):
            if len(parts) == 2 and (named := split_of(part)):
                split = named
                parts.remove(part)
                break
        if len(parts) == 1:
            for words, kind in ((_IMAGES, 0), (_LABELS, 1)):
                if parts[0] in words:
                    found.setdefault(split, ({}, {}))[kind].setdefault(parts[0], key)
    pairs = {}
    for split, (images, labels) in found.items():
        if images and (labels or not labelled):
            x = next(images[w] for w in _IMAGES if w in images)
            pairs[split] = (x, next((labels[w] for w in _LABELS if w in labels), ""))
    if not pairs:
        raise BadInput(f"it holds {some(keys)}; save it as np.savez(path, x=images, y=labels)")
    return pairs


# ---------------------------------------------------------------------- labels


def _labels(archive: zipfile.ZipFile, info: zipfile.ZipInfo, wanted: Wanted) -> tuple[Tensor, Names, str]:
    with archive.open(info) as f:
        header = _header(f, info, "buifUS")
    if header.dtype.kind in "US":
        if info.file_size > _MOST_TEXT or header.dtype.itemsize > 4096:
            raise BadInput(f"{info.filename} holds labels of {info.file_size:,} bytes, too many")
        words = _whole(archive, info, "US").ravel()
        if not len(words):
            raise BadInput("there are no samples in this data")
        return numbered(words.tolist(), wanted.names)
    y = array(archive, info)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.ndim == 2 and len(y):
        ones = (y == 1).sum(1) == 1
        if not bool((ones & ((y != 0).sum(1) == 1)).all()):
            raise BadInput(
                f"y has shape {tuple(y.shape)} and its rows are not one-hot (a 1 among 0s); give one class "
                "index each"
            )
        return y.double().argmax(1), wanted.names, "one-hot labels were read as class indices"
    return y, wanted.names, ""


# ---------------------------------------------------------------------- images


def _images(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, y: Tensor | None, wanted: Wanted
) -> tuple[Tensor, list[int] | None, str]:
    """Images (N, C, H, W), which rows they are (None: all), and a note if it is not all."""
    with archive.open(info) as f:
        header = _header(f, info)
        if len(header.shape) < 2 or header.fortran:
            return _turned(array(archive, info), wanted), None, ""
        count, per = header.shape[0], math.prod(header.shape[1:])
        if count * per * header.dtype.itemsize > info.file_size:
            raise BadInput(f"{info.filename} holds fewer bytes than its header says")
        if y is not None and len(y) != count:
            raise BadInput(f"y has shape {tuple(y.shape)} for {count} samples; one class index each")
        rows, note = listing.sampled(count, y, per, header.dtype.itemsize, wanted.whole)
        if not rows:
            raise BadInput("there are no samples in this data")
        images = _streamed(f, header, rows, lambda part: _turned(part, wanted))
    return images, rows if len(rows) < count else None, note


def _streamed(
    f: IO[bytes], header: _Header, rows: Sequence[int], turned: Callable[[Tensor], Tensor]
) -> Tensor:
    """Some rows of an array, a chunk at a time, each of them turned as it comes."""
    held: Tensor | None = None
    taken = 0
    pick = np.asarray(rows)
    for start, chunk in _chunks(f, header):
        here = pick[(pick >= start) & (pick < start + len(chunk))] - start
        if not len(here):
            continue
        part = turned(torch.from_numpy(chunk[here] if len(here) < len(chunk) else chunk))
        if held is None:
            held = torch.empty((len(rows), *part.shape[1:]), dtype=part.dtype)
        held[taken : taken + len(part)] = part
        taken += len(part)
    return torch.empty(0) if held is None else held


def _chunks(f: IO[bytes], header: _Header) -> Iterator[tuple[int, Any]]:
    count, shape = header.shape[0], header.shape[1:]
    width = math.prod(shape) * header.dtype.itemsize
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, count, step):
        n = min(step, count - start)
        flat = np.frombuffer(f.read(n * width), header.dtype).astype(header.dtype.newbyteorder("="))
        yield start, flat.reshape(n, *shape)


def _turned(x: Tensor, wanted: Wanted) -> Tensor:
    """Images as the model takes them: channels first, RGB for a model of colour, resized if asked."""
    shape = wanted.shape
    channels = (1, 3, 4) if shape is None else (1, 3, 4, shape[0])
    if x.ndim == 4 and x.shape[3] in channels and (shape is None or x.shape[1:] != shape):
        x = x.permute(0, 3, 1, 2)
    if shape is not None and shape[0] == 3:  # grey images for a model that takes colour
        x = x[:, None] if x.ndim == 3 else x
        x = x.expand(-1, 3, -1, -1) if x.ndim == 4 and x.shape[1] == 1 else x
    if wanted.resize and shape is not None and x.ndim == 4 and x.shape[2:] != shape[1:]:
        return resized(x, shape)
    return x.contiguous()


def _header(f: IO[bytes], info: zipfile.ZipInfo, kinds: str = "buif") -> _Header:
    """What an array says of itself, checked before it is read; never pickled objects."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = headers[np.lib.format.read_magic(f)](f)
    if dtype.hasobject or dtype.kind not in kinds or dtype.itemsize == 0:
        raise BadInput(f"{info.filename} holds {dtype}, not numbers; save plain arrays of numbers")
    if info.file_size > 2**26 and info.file_size > 200 * info.compress_size:
        raise BadInput(f"{info.filename} unpacks to {info.file_size:,} bytes, too many; give a sample")
    return _Header(shape, fortran, dtype)


def array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """One array, its declared size checked before it is read; never pickled objects."""
    return torch.from_numpy(_whole(archive, info))


def _whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str = "buif") -> Any:
    with archive.open(info) as f:
        header = _header(f, info, kinds)
        width = 4 if header.dtype.kind not in "US" else header.dtype.itemsize
        if width * math.prod(header.shape) > listing.MOST_BYTES:
            raise BadInput(f"{info.filename} unpacks to {info.file_size:,} bytes, too many; give a sample")
        data = f.read(math.prod(header.shape) * header.dtype.itemsize)
    flat = np.frombuffer(data, header.dtype).astype(header.dtype.newbyteorder("="))
    return np.reshape(flat, header.shape, order="F" if header.fortran else "C").copy(order="C")
