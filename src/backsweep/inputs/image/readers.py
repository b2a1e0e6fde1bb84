"""Labelled images from folders, files and torch data sets, as plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.image.decoding import image, reason, tensor
from backsweep.inputs.image.resizing import resized
from backsweep.inputs.image.sources import arrays, arrow, folders, shards, tables
from backsweep.inputs.image.sources.arrays import array
from backsweep.inputs.image.sources.folders import SOUNDS, WANTED, images
from backsweep.inputs.image.sources.listing import MOST_BYTES, gathered
from backsweep.inputs.modality import Found, Wanted

__all__ = ["MOST_BYTES", "array", "image", "images", "read", "resized", "samples"]


def read(path: Path, wanted: Wanted) -> Found:
    """Images (N, C, H, W), labels (N,) and class names from a folder or a file.

    Raises:
        BadInput: nothing readable is there, or the images do not have one size.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            kind = shards if shards.is_folder(path) else arrow if arrow.is_folder(path) else folders
            return gathered(kind.listing(path, wanted), wanted)
        if shards.is_pattern(path):
            return gathered(shards.listing(path, wanted), wanted)
        if not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        if suffix == ".wav":
            raise BadInput(f"a sound is no set of images; give {WANTED}; {SOUNDS}")
        for kind, suffixes in (
            (tables, (".csv", ".tsv")),
            (arrow, (".parquet", ".arrow")),
            (shards, (".tar",)),
        ):
            if suffix in suffixes:
                return gathered(kind.listing(path, wanted), wanted)
        if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            raise BadInput("compressed shards are not read; unpack it to a .tar first")
        return arrays.read(path, wanted)
    except BadInput:
        raise
    except Exception as e:
        kind_of = "samples" if suffix not in (".npz", ".npy", "") else ".npz"
        raise BadInput(f"not readable as {kind_of} ({reason(e)}); give {WANTED}") from e


def samples(dataset: Any) -> tuple[Tensor, Tensor]:
    """All (image, label) pairs of a torch data set: images (N, C, H, W) and labels (N,).

    Raises:
        BadInput: it is empty, or its items are not such pairs, of one shape.
    """
    found: list[Tensor] = []
    labels = []
    try:
        for i in range(len(dataset)):
            one, label = dataset[i][:2]
            found.append(tensor(one))
            if found[i].shape != found[0].shape:
                raise ValueError(f"shape {tuple(found[i].shape)} after {tuple(found[0].shape)}")
            labels.append(int(label))
    except Exception as e:
        raise BadInput(
            f"sample {len(labels)} of the data set is no (image, label) pair like the others "
            f"({reason(e)}); give images of one shape with class indices"
        ) from e
    if not found:
        raise BadInput("there are no samples in this data set")
    return torch.stack(found), torch.tensor(labels)
