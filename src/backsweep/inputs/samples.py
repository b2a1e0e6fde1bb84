"""Labelled samples: what a user has of the clean data, in the input range of the model."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.inputs.balance import balanced, half
from backsweep.inputs.batches import gathered
from backsweep.inputs.held import Held, laid, part_of
from backsweep.inputs.image import readers
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality, Wanted

MIN_SAMPLES = Modality.fewest  # in all
COME_ALONG = "that come with Backsweep"  # as the source of samples that nobody gave
MIN_PER_CLASS = 2  # of every class that is present


class Data:
    """Samples x (N, *shape) with labels y (N,); images (N, C, H, W) in [0, 1] unless said otherwise.

    A large set of bytes stays bytes in memory; `x` then unpacks what is asked for (`Held`).

    Args:
        x: of images float in [0, 1], or uint8 in 0..255 (divided by 255 here); (N, H, W) is read as one
            channel.
        y: class indices from 0. None: they are not known, and a model's own answers take their place.
        names: class names, untrusted text.
        source: where the samples came from, as shown in reports.
        modality: what an input is.
        notes: what was done to the samples, in one line each.

    Attributes:
        labelled: whether the labels are known, and not a model's answers.
        told: how the model and the samples were asked to be read where they do not say it, by name of the
            option; for the record, and for the next command.

    Raises:
        BadInput: wrong dimensions, values outside [0, 1] or not finite, negative labels.
    """

    told: Mapping[str, str | int | bool] = MappingProxyType({})

    def __init__(
        self, x: Any, y: Any, names: Sequence[str] | None = None, source: str = "tensors",
        modality: Modality = IMAGE, notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        try:
            x = x if isinstance(x, Held) else torch.as_tensor(x).cpu()
            known = torch.zeros(len(x), dtype=torch.long) if y is None else torch.as_tensor(y).cpu()
        except (TypeError, ValueError, RuntimeError) as e:
            raise BadInput(f"x or y is not made of numbers ({e}); give tensors or arrays") from e
        x = x if isinstance(x, Held) else modality.kept(x.detach())
        modality = modality.informed(x)
        self.x: Tensor = laid(x, modality.values)
        self.y: Any = checked_labels(known, len(x))
        self.labelled = y is not None
        self.names = tuple(str(n) for n in names) if names else None
        self.source = source
        self.modality = modality
        self.notes = tuple(notes)
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
        split: str | None = None,
        labels: str | None = None,
        whole: bool = False,
    ) -> Data:
        """Read samples from a folder or a file; docs/formats.md has the formats.

        A folder is the class that it is named after, by name or number; if none is, the sorted
        folders are the classes from 0 on. Grey images become RGB for a model that takes RGB. What was done
        stands in `notes`.

        Args:
            path: the folder or file.
            shape: shape of an input of the model, (channels, height, width).
            names: class names of the model.
            resize: resize every image to `shape`, instead of refusing those of another size.
            modality: what an input is.
            split: which of several splits; None takes the test split.
            labels: "model": there are no labels, or they are not to be read; the model's own answers will
                take their place.
            whole: refuse a set that is too large, instead of taking a sample of it.

        Raises:
            BadInput: nothing readable is there, images are damaged or of another size, a folder
                matches no class, or the arrays are not images with labels.
        """
        if labels not in (None, "model"):
            raise BadInput(f"labels {labels!r} is neither None nor 'model'")
        asked = Wanted(
            None if shape is None else tuple(shape), tuple(names) if names else None, resize, split, labels,
            whole,
        )  # fmt: skip
        try:
            found = modality.read(Path(path), asked)
            notes = found.notes
            if found.y is None:
                notes = (*notes, "no labels were read: the model's own answers take their place")
            data = cls(found.x, found.y, found.names, str(path), found.modality or modality, notes)
            data.told = as_told(resize=resize, split=split, labels=labels)
            return data
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
        part = copy.copy(self)
        part.x = laid(self.x.at(rows), self.modality.values) if isinstance(self.x, Held) else self.x[rows]
        part.y, part._digest = self.y[rows], ""
        return part

    @property
    def digest(self) -> str:
        """SHA-256 of the samples and their labels."""
        if not self._digest:
            h = hashlib.sha256(str(tuple(self.x.shape)).encode())
            for part in self.x.split(part_of(self.x.shape)):
                h.update(part.contiguous().numpy().data)
            h.update(self.y.contiguous().numpy().data)
            self._digest = h.hexdigest()
        return self._digest

    def labelled_by(self, y: Tensor) -> Data:
        """The same samples with a model's answers y (N,) in place of labels that are not known."""
        return self._with(y=y)

    def called(self, y: Tensor, names: Sequence[str] | None, note: str) -> Data:
        """The same samples with their classes numbered and named otherwise, and why."""
        return self._with(y=y, names=tuple(names) if names else None, notes=(*self.notes, note))

    def noted(self, note: str) -> Data:
        """The same samples with one more note."""
        return self if note in self.notes else self._with(notes=(*self.notes, note))

    def _with(self, **changed: Any) -> Data:
        other = copy.copy(self)
        for name, value in changed.items():
            setattr(other, name, value)
        other._digest = ""
        return other

    def like(self, x: Tensor, y: Tensor) -> Data:
        """Other samples and labels of this kind, from the same source."""
        return Data(x, y, self.names, self.source, self.modality, self.notes)

    def sample(self, most: int, seed: int) -> Data:
        """At most `most` samples, drawn without replacement, class by class in equal numbers."""
        return self if len(self) <= most else self[balanced(self.y, seed)[:most].sort().values]

    def parted(self, share: float, seed: int) -> tuple[Data, Data]:
        """Two disjoint parts, the first with `share` of the samples and the classes in equal numbers."""
        order, count = balanced(self.y, seed), max(1, round(share * len(self)))
        return self[order[:count].sort().values], self[order[count:].sort().values]

    def split(self, seed: int) -> tuple[Data, Data]:
        """Two disjoint halves with the same share of every class; one of two samples or more is in both."""
        first = half(self.y, seed)
        return self[first], self[~first]


def checked_labels(y: Tensor, count: int) -> Tensor:
    """Labels as class indices.

    Raises:
        BadInput: not one each, fractions, or negative.
    """
    if y.ndim != 1 or len(y) != count:
        raise BadInput(f"y has shape {tuple(y.shape)} for {count} samples; one class index each")
    if count == 0:
        raise BadInput("there are no samples in this data")
    if y.is_floating_point() and not bool((y == y.round()).all()):
        raise BadInput("y holds fractions; labels are class indices from 0")
    y = y.long()
    if int(y.min()) < 0:
        raise BadInput(f"label {int(y.min())} is negative; labels are class indices from 0")
    return y


def as_told(**options: Any) -> dict[str, str | int | bool]:
    """What was said of options, for `Data.told`."""
    return {k: v if isinstance(v, bool | int) else str(v) for k, v in options.items() if v}
