"""Labelled samples: what a user has of the clean data, in the input range of the model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.inputs.batches import gathered
from backsweep.inputs.image import readers
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality

MIN_SAMPLES = 20  # in all
MIN_PER_CLASS = 2  # of every class that is present


class Data:
    """Samples x (N, *shape) with labels y (N,); images (N, C, H, W) in [0, 1] unless said otherwise.

    Args:
        x: of images float in [0, 1], or uint8 in 0..255 (divided by 255 here); (N, H, W) is read as one
            channel.
        y: class indices from 0.
        names: class names, untrusted text.
        source: where the samples came from, as shown in reports.
        modality: what an input is.

    Raises:
        BadInput: wrong dimensions, values outside [0, 1] or not finite, negative labels.
    """

    def __init__(
        self, x: Any, y: Any, names: Sequence[str] | None = None, source: str = "tensors",
        modality: Modality = IMAGE,
    ) -> None:  # fmt: skip
        try:
            x, y = torch.as_tensor(x).cpu(), torch.as_tensor(y).cpu()
        except (TypeError, ValueError, RuntimeError) as e:
            raise BadInput(f"x or y is not made of numbers ({e}); give tensors or arrays") from e
        x = modality.samples(x)
        if y.ndim != 1 or len(y) != len(x):
            raise BadInput(f"y has shape {tuple(y.shape)} for {len(x)} samples; one class index each")
        if len(x) == 0:
            raise BadInput("there are no samples in this data")
        if y.is_floating_point() and not bool((y == y.round()).all()):
            raise BadInput("y holds fractions; labels are class indices from 0")
        y = y.long()
        if int(y.min()) < 0:
            raise BadInput(f"label {int(y.min())} is negative; labels are class indices from 0")
        self.x, self.y = x.detach(), y
        self.names = tuple(str(n) for n in names) if names else None
        self.source = source
        self.modality = modality
        self._digest = ""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        shape: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        resize: bool = False,
        modality: Modality = IMAGE,
    ) -> Data:
        """Read a folder with one folder of images per class, or an .npz file with x and y.

        A folder is the class that it is named after, by name or number; if none is, the sorted
        folders are the classes from 0 on. Grey images become RGB for a model that takes RGB.

        Args:
            path: the folder or file.
            shape: shape of an input of the model, (channels, height, width).
            names: class names of the model.
            resize: resize every image to `shape`, instead of refusing those of another size.
            modality: what an input is.

        Raises:
            BadInput: nothing readable is there, an image is damaged or of another size, a folder
                matches no class, or the arrays are not images with labels.
        """
        try:
            x, y, found = modality.read(Path(path), shape, names, resize)
            return cls(x, y, found, str(path), modality)
        except BadInput as e:
            raise BadInput(one_line(f"{path}: {e}")) from e

    @classmethod
    def of(cls, given: Any) -> Data:
        """Data from what a user has: a Data, an (x, y) pair, a torch Dataset or DataLoader, or a path.

        Raises:
            BadInput: it is none of these.
        """
        if isinstance(given, Data):
            return given
        if isinstance(given, str | os.PathLike):
            return cls.open(given)
        if isinstance(given, tuple | list) and len(given) == 2:
            return cls(*given)
        if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
            x, y = readers.samples(given)
            return cls(x, y, getattr(given, "classes", None), source=type(given).__name__)
        if hasattr(given, "__iter__"):
            x, y = gathered(given, readers.MOST_BYTES)
            names = getattr(getattr(given, "dataset", None), "classes", None)
            return cls(x, y, names, source=type(given).__name__)
        raise BadInput(
            f"data is a {type(given).__name__}; give a backsweep.Data, an (x, y) pair, a torch Dataset or "
            "DataLoader"
        )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Data({self.source!r}, {len(self)} samples of shape {tuple(self.x.shape[1:])})"

    def __getitem__(self, rows: Any) -> Data:
        """The samples at `rows`: indices, a slice or a boolean mask."""
        part = object.__new__(Data)
        part.x, part.y, part.names = self.x[rows], self.y[rows], self.names
        part.source, part.modality, part._digest = self.source, self.modality, ""
        return part

    @property
    def digest(self) -> str:
        """SHA-256 of the samples and their labels."""
        if not self._digest:
            h = hashlib.sha256(str(tuple(self.x.shape)).encode())
            h.update(self.x.contiguous().numpy().tobytes())
            h.update(self.y.contiguous().numpy().tobytes())
            self._digest = h.hexdigest()
        return self._digest

    def like(self, x: Tensor, y: Tensor) -> Data:
        """Other samples and labels of this kind, from the same source."""
        return Data(x, y, self.names, self.source, self.modality)

    def sample(self, most: int, seed: int) -> Data:
        """At most `most` samples, drawn without replacement, class by class in equal numbers."""
        return self if len(self) <= most else self[_balanced(self.y, seed)[:most].sort().values]

    def parted(self, share: float, seed: int) -> tuple[Data, Data]:
        """Two disjoint parts, the first with `share` of the samples and the classes in equal numbers."""
        order, count = _balanced(self.y, seed), max(1, round(share * len(self)))
        return self[order[:count].sort().values], self[order[count:].sort().values]

    def split(self, seed: int) -> tuple[Data, Data]:
        """Two disjoint halves with the same share of every class."""
        order = _balanced(self.y, seed)
        return self[order[0::2].sort().values], self[order[1::2].sort().values]


def _balanced(y: Tensor, seed: int) -> Tensor:
    """Row order in which every prefix holds the classes in numbers as equal as can be."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    rank = torch.empty_like(order)
    for c in sorted(set(y.tolist())):
        rows = order[y[order] == c]
        rank[rows] = torch.arange(len(rows))
    return order[torch.argsort(rank[order], stable=True)]
