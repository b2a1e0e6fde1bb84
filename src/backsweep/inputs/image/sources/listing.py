"""Images that are listed first and decoded one after another: what all sources but arrays share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.inputs.balance import balanced
from backsweep.inputs.image.decoding import GREY, Damaged, Decoded, decoded
from backsweep.inputs.image.resizing import resized
from backsweep.inputs.modality import Found, Names, Wanted

MOST_BYTES = 8 * 2**30  # of a data set, as float32; a larger one is sampled
SAMPLE_BYTES = 2**30  # of the sample, as it is kept
MOST_FILE = 2**28  # bytes of an encoded image
DAMAGED = 0.01  # share of the images that may be damaged, in a set of at least
LEAST = 20  # images, where it is one at least

Row = tuple[str, Path | IO[bytes] | None]  # the name of an image and where it is; None: it is not there


@dataclass(frozen=True)
class Listing:
    """Images that are there.

    Attributes:
        count: how many.
        opened: the images of some rows, in that order, one after another.
        y: labels (count,); None: they are not known.
        names: class names.
        notes: on the labels and the split.
    """

    count: int
    opened: Callable[[Sequence[int]], Iterator[Row]]
    y: Tensor | None
    names: Names = None
    notes: tuple[str, ...] = ()


def gathered(listing: Listing, wanted: Wanted) -> Found:
    """The images of a listing, decoded; of too many a sample, class by class.

    Raises:
        BadInput: too many are damaged, or they do not have one size.
    """
    if wanted.shape is not None and wanted.shape[0] not in (1, 3):
        raise BadInput(f"images have 1 or 3 channels, the model takes {wanted.shape[0]}; give an .npz file")
    stack = _Stack(listing.count, wanted)
    rows, note = list(range(listing.count)), ""
    if not wanted.resize or wanted.shape is None:
        stack.look(listing.opened(rows))
    channels, height, width = wanted.shape or (3, *stack.size)
    rows, note = sampled(listing.count, listing.y, channels * height * width, 1, wanted.whole)
    stack.fill(rows, listing.opened(rows))
    kept = torch.tensor(stack.rows, dtype=torch.long)
    y = None if listing.y is None else listing.y[kept]
    return Found(stack.x(), y, listing.names, tuple(filter(None, (*listing.notes, note, *stack.notes()))))


def sampled(
    count: int, y: Tensor | None, numbers: int, width: int, whole: bool = False
) -> tuple[list[int], str]:
    """Which rows of a data set are read, and a note if it is not all of them.

    Args:
        count: samples that there are.
        y: their labels, if they are known.
        numbers: of a sample.
        width: bytes that a number takes in memory.
        whole: refuse, rather than draw.

    Raises:
        BadInput: the samples are too many, and all of them are wanted, or hardly one fits.
    """
    if 4 * numbers * count <= MOST_BYTES:
        return list(range(count)), ""
    most = SAMPLE_BYTES // max(1, numbers * width)
    if whole or most < LEAST:
        raise BadInput(f"{count:,} images are too many for the memory; give a sample of them")
    order = balanced(torch.zeros(count, dtype=torch.long) if y is None else y, 0)
    return order[:most].sort().values.tolist(), (
        f"of {count:,} images {min(most, count):,} were drawn, of every class as many, "
        f"to fit into {SAMPLE_BYTES / 2**30:g} GiB"
    )


@dataclass
class _Stack:
    """Decoded images, put one upon another."""

    count: int
    wanted: Wanted
    size: tuple[int, int] = (0, 0)
    owner: str = "the model takes"
    rows: list[int] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    grey: int = 0
    apart: int = 0
    held: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if self.wanted.shape is not None:
            self.size = (self.wanted.shape[1], self.wanted.shape[2])

    def look(self, images: Iterator[Row]) -> None:
        """Take the size of the first image that can be read, where none is given."""
        if self.wanted.shape is None:
            for shown, one in self._read(images):
                if one is not None:
                    self.size, self.owner = (one.pixels.shape[1], one.pixels.shape[2]), f"{shown} has"
                    break
        self.damaged.clear()

    def fill(self, rows: Sequence[int], images: Iterator[Row]) -> None:
        """Decode the images of some rows, whose number is known, into one tensor."""
        channels = self.wanted.shape[0] if self.wanted.shape is not None else None
        held = torch.empty((len(rows), channels or 1, *self.size), dtype=torch.uint8)
        for row, (shown, one) in zip(rows, self._read(images), strict=True):
            if one is None:
                continue
            pixels = self._fitting(one.pixels, shown)
            if len(pixels) > held.shape[1]:  # a grey image among coloured ones becomes RGB
                held = held.repeat(1, len(pixels), 1, 1)
            held[len(self.rows)] = pixels
            self.rows.append(row)
            self.done.update(one.done)
            self.grey += one.grey
            self.apart = max(self.apart, one.apart)
        if not self.rows:
            raise BadInput("there is no image that can be read")
        self.held = held

    def x(self) -> Tensor:
        """The images that could be read."""
        x = self.held[: len(self.rows)]
        mixed = self.wanted.shape is None and x.shape[1] == 3 and self.apart <= GREY
        if mixed and 2 * self.grey >= len(self.rows):
            self.done["read as grey, all that there is in them, from a format of colours"] += (
                len(self.rows) - self.grey
            )
            x = x[:, 1:2].contiguous()
        return x

    def notes(self) -> Iterator[str]:
        """What was done, in lines; `x` comes first."""
        for what, count in self.done.items():
            yield f"{count:,} {'images were' if count > 1 else 'image was'} {what}"
        if self.damaged:
            kind = "images that are damaged were" if len(self.damaged) > 1 else "image that is damaged was"
            yield f"{len(self.damaged):,} {kind} left out: {some(self.damaged)}"

    def _read(self, images: Iterator[Row]) -> Iterator[tuple[str, Decoded | None]]:
        channels = self.wanted.shape[0] if self.wanted.shape is not None else None
        most = max(1, math.floor(DAMAGED * self.count)) if self.count >= LEAST else 0
        for shown, where in images:
            try:
                if where is None:
                    raise Damaged(f"{shown} is not there; give it, or take it off the list")
                yield shown, decoded(where, shown, channels)
            except Damaged as e:
                self.damaged.append(shown)
                if not most:
                    raise
                if len(self.damaged) > most:
                    raise BadInput(
                        f"more than {DAMAGED:.0%} of the {self.count:,} images cannot be read, "
                        f"{some(self.damaged)} among them; remove or mend them"
                    ) from e
                yield shown, None

    def _fitting(self, pixels: Tensor, shown: str) -> Tensor:
        have = (pixels.shape[1], pixels.shape[2])
        if have == self.size:
            return pixels
        if self.wanted.resize:
            return resized(pixels[None], (0, *self.size))[0]
        raise BadInput(
            f"{shown} has {have[0]} x {have[1]} pixels (height x width), "
            f"{self.owner} {self.size[0]} x {self.size[1]}; make all images that size, or say resize=True"
        )
