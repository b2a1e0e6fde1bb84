"""Labelled images from folders, NumPy archives and torch data sets, as plain tensors."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some

MOST_BYTES = 8 * 2**30  # of a data set in memory, as float32
MOST_PIXELS = 2**26  # of one image
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # no other decoder of Pillow is reached
_NOT_YET = {".csv": "tables", ".tsv": "tables", ".wav": "sounds"}
_WANTED = "a folder with one folder of images per class, or an .npz file: np.savez(path, x=images, y=labels)"

Names = tuple[str, ...] | None


def read(
    path: Path, shape: Sequence[int] | None, names: Sequence[str] | None, resize: bool
) -> tuple[Tensor, Tensor, Names]:
    """Images (N, C, H, W), labels (N,) and class names from a folder or a file.

    Raises:
        BadInput: nothing readable is there, or the images do not have one size.
    """
    if path.is_dir():
        return _folder(path, shape, names, resize)
    if not path.is_file():
        raise BadInput("there is no such file or folder; check the path")
    if path.suffix.lower() in _NOT_YET:
        raise BadInput(f"{_NOT_YET[path.suffix.lower()]} are not readable yet; give {_WANTED}")
    try:
        x, y = _npz(path, shape)
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(f"not readable as .npz ({_reason(e)}); give {_WANTED}") from e
    if resize and shape is not None and x.ndim == 4 and x.shape[2:] != tuple(shape[1:]):
        x = resized(x, shape)
    return x, y, tuple(names) if names else None


def samples(dataset: Any) -> tuple[Tensor, Tensor]:
    """All (image, label) pairs of a torch data set: images (N, C, H, W) and labels (N,).

    Raises:
        BadInput: it is empty, or its items are not such pairs, of one shape.
    """
    images: list[Tensor] = []
    labels = []
    try:
        for i in range(len(dataset)):
            image, label = dataset[i][:2]
            images.append(_tensor(image))
            if images[i].shape != images[0].shape:
                raise ValueError(f"shape {tuple(images[i].shape)} after {tuple(images[0].shape)}")
            labels.append(int(label))
    except Exception as e:
        raise BadInput(
            f"sample {len(labels)} of the data set is no (image, label) pair like the others "
            f"({_reason(e)}); give images of one shape with class indices"
        ) from e
    if not images:
        raise BadInput("there are no samples in this data set")
    return torch.stack(images), torch.tensor(labels)


def _tensor(image: Any) -> Tensor:
    """A tensor as it is, and a picture or an array (H, W[, C]), as (C, H, W)."""
    if isinstance(image, Tensor):
        return image.detach().cpu() if image.ndim == 3 else image.detach().cpu()[None]
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0).copy())


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Images (N, C, H, W) at the height and width of `shape`; bytes stay bytes."""
    parts = []
    for part in torch.split(x, 256):
        y = F.interpolate(part.float(), tuple(shape[1:]), mode="bilinear", antialias=True)
        parts.append(y.round().clamp(0, 255).byte() if x.dtype == torch.uint8 else y)
    return torch.cat(parts)


def _reason(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:160]


# ---------------------------------------------------------------------- a folder per class


def _folder(
    path: Path, shape: Sequence[int] | None, names: Sequence[str] | None, resize: bool
) -> tuple[Tensor, Tensor, Names]:
    if shape is not None and shape[0] not in (1, 3):
        raise BadInput(f"images have 1 or 3 channels, the model takes {shape[0]}; give an .npz file")
    folders = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(folder, file) for folder in folders for file in images(path / folder)]
    if not files:
        raise BadInput(f"there are no images in folders of classes; give {_WANTED}")
    classes, found = _classes(folders, names)
    channels, size = (shape[0], tuple(shape[1:])) if shape is not None else (None, None)
    owner = "the model takes"
    found_images: list[Tensor] = []
    for _, file in files:
        shown = str(file.relative_to(path))
        one = image(file, shown, channels)
        if size is None:
            size, owner = tuple(one.shape[1:]), f"{shown} has"
        if resize and one.shape[1:] != size:
            one = resized(one[None], (0, *size))[0]
        if one.shape[1:] != size:
            raise BadInput(
                f"{shown} has {one.shape[1]} x {one.shape[2]} pixels (height x width), "
                f"{owner} {size[0]} x {size[1]}; make all images that size, or say resize=True"
            )
        if 4 * len(files) * one.numel() > MOST_BYTES:
            raise BadInput(f"{len(files):,} images are too many for the memory; give a sample of them")
        found_images.append(one)
    most = max(len(i) for i in found_images)  # a grey image among coloured ones becomes RGB
    x = torch.stack([i.expand(most, -1, -1) for i in found_images])
    return x, torch.tensor([classes[folder] for folder, _ in files]), found


def images(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders in it."""
    found = []
    for file in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() == ".wav" and not hidden:
            raise BadInput(f"sounds ({folder.name}/{file.name}) are not readable yet; give {_WANTED}")
        if file.suffix.lower() in _SUFFIXES and not hidden and file.is_file():
            found.append(file)
    return found


def _classes(folders: list[str], names: Sequence[str] | None) -> tuple[dict[str, int], Names]:
    """Class of every folder: by its name, else the number that it is named, else in sorted order."""
    numbers = {f: int(f) for f in folders if f.isdecimal() and len(f) < 9}
    if names:
        index = {n.casefold(): i for i, n in enumerate(names)}
        known = {f: n for f, n in numbers.items() if n < len(names)}
        known |= {f: index[f.casefold()] for f in folders if f.casefold() in index}
        lost = [f for f in folders if f not in known]
        if not lost:
            return known, tuple(names)
        if known or len(folders) != len(names):
            raise BadInput(
                f"the folders {some(lost)} match none of the model's {len(names)} classes, {some(names)}; "
                "name every folder after a class, or by the number of its class from 0"
            )
    if len(numbers) == len(folders):
        return numbers, None
    return {f: i for i, f in enumerate(folders)}, tuple(folders)


def image(path: Path | IO[bytes], shown: str, channels: int | None) -> Tensor:
    """One image as bytes (C, H, W); grey stays one channel unless three are asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as found:
                if found.width * found.height > MOST_PIXELS:
                    raise BadInput(f"{shown} has {found.width} x {found.height} pixels, too many; remove it")
                if found.mode.startswith(("I", "F")):
                    raise BadInput(f"{shown} has more than 8 bits a channel; save it with 8")
                grey = found.mode in ("1", "L", "LA")
                if channels == 1 and not grey:
                    raise BadInput(f"{shown} is in colour, the model takes grey; convert the images to grey")
                return _tensor(found.convert("L" if grey and channels != 3 else "RGB"))
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(f"{shown} is not readable as an image ({_reason(e)}); remove or mend it") from e


# ---------------------------------------------------------------------- NumPy archives


def _npz(path: Path, shape: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    with zipfile.ZipFile(path) as archive:
        infos = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        if not {"x", "y"} <= infos.keys():
            raise BadInput(f"it holds {some(infos)}; save it as np.savez(path, x=images, y=labels)")
        x, y = (array(archive, infos[name]) for name in "xy")
    channels = (1, 3, 4) if shape is None else (1, 3, 4, shape[0])
    if x.ndim == 4 and x.shape[3] in channels and (shape is None or x.shape[1:] != tuple(shape)):
        x = x.permute(0, 3, 1, 2)
    if shape is not None and shape[0] == 3:  # grey images for a model that takes colour
        x = x[:, None] if x.ndim == 3 else x
        x = x.expand(-1, 3, -1, -1) if x.ndim == 4 and x.shape[1] == 1 else x
    return x.contiguous(), y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """One array, its declared size checked before it is read; never pickled objects."""
    bomb = info.file_size > 2**26 and info.file_size > 200 * info.compress_size
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(info) as f:
        shape, fortran, dtype = headers[np.lib.format.read_magic(f)](f)
        if dtype.hasobject or dtype.kind not in "buif":
            raise BadInput(f"{info.filename} holds {dtype}, not numbers; save plain arrays of numbers")
        if bomb or 4 * math.prod(shape) > MOST_BYTES:
            raise BadInput(f"{info.filename} unpacks to {info.file_size:,} bytes, too many; give a sample")
        data = f.read(math.prod(shape) * dtype.itemsize)
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return torch.from_numpy(np.reshape(flat, shape, order="F" if fortran else "C").copy(order="C"))
