"""What the page of an audit draws of a class: a map of its samples, their scores, and some of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backsweep.inputs.modality import Modality
from backsweep.render import view
from backsweep.render.pages.card import Picture, picture
from backsweep.reports.audit import Audit, Examples

WIDTH, HEIGHT, EDGE = 420, 300, 12  # of both drawings, in their own units
LEFT, FLOOR = 44, 272  # where the bars begin, and where they stand
BINS, WIDE = 40, 24  # about as many bars; characters of a label below them
SIDE = 72  # pixels of a sample, at most
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """Samples of a class on two principal axes: dots, and one path of triangles for the flagged."""

    dots: list[tuple[float, float]]
    triangles: str
    drawn: int
    summary: str


@dataclass(frozen=True)
class Column:
    """A bar of the histogram."""

    x: float
    y: float
    width: float
    height: float
    hot: bool
    tip: str


@dataclass(frozen=True)
class Histogram:
    """How many samples of a class have which score; the height is logarithmic.

    Attributes:
        columns: the bars.
        cut: place of the line and its value, or None.
        ticks: heights and their counts; `ends` the scores at both ends.
        above: samples above the cut.
        summary: what it shows in one line.
    """

    columns: list[Column]
    cut: tuple[float, str] | None
    ticks: list[tuple[float, str]]
    ends: list[tuple[float, str, str]]
    above: int
    summary: str


@dataclass(frozen=True)
class Tile:
    """A sample with its score."""

    picture: Picture
    score: str
    hot: bool


class Counts:
    """How many samples there are and how many are flagged, in all and by class."""

    def __init__(self, report: Audit) -> None:
        self.labels = torch.as_tensor([] if report.labels is None else report.labels).long()
        rows = report.flagged if len(self.labels) else self.labels
        self.samples, self.flagged = len(self.labels), len(rows)
        self.rows = frozenset(rows.tolist())
        self._of, self._flagged = (_by_class(y) for y in (self.labels, self.labels[rows]))

    def of(self, label: int | None) -> int:
        """Samples that bear a label."""
        return self.samples if label is None else self._of.get(label, 0)

    def flagged_of(self, label: int | None) -> int:
        """Those that are flagged."""
        return self.flagged if label is None else self._flagged.get(label, 0)


def _by_class(labels: torch.Tensor) -> Mapping[int, int]:
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def usable(shown: Examples, samples: int) -> bool:
    """Whether indices, places and pictures belong together and to a set of so many samples."""
    rows = torch.cat([shown.rows, shown.suspicious, shown.typical])
    inside = not len(rows) or (int(rows.min()) >= 0 and int(rows.max()) < samples)
    pictures = len(shown.suspicious) + len(shown.typical)
    alike = tuple(shown.places.shape) == (len(shown.rows), 2) and len(shown.pictures) == pictures
    return inside and alike and shown.pictures.ndim == 4


def scatter(shown: Examples, flagged: Collection[int]) -> Map | None:
    """The map of a class; None where no place is finite."""
    kept = torch.isfinite(shown.places).all(1)
    places = shown.places[kept].double().numpy()
    if not len(places):
        return None
    low, high = places.min(0), places.max(0)
    share = (places - low) / np.where(high > low, high - low, 1.0)
    share[:, high <= low] = 0.5
    x = np.round(EDGE + share[:, 0] * (WIDTH - 2 * EDGE), 1).tolist()
    y = np.round(HEIGHT - EDGE - share[:, 1] * (HEIGHT - 2 * EDGE), 1).tolist()
    hot = [int(row) in flagged for row in shown.rows[kept].tolist()]
    dots = [at for at, h in zip(zip(x, y, strict=True), hot, strict=True) if not h]
    found = [at for at, h in zip(zip(x, y, strict=True), hot, strict=True) if h]
    triangles = "".join(f"M{a} {round(b - 5, 1)}l4.6 8h-9.2z" for a, b in found)
    summary = (
        f"Map of {view.counted(len(places), 'sample')} on two principal components, {len(found):,} of them "
        "flagged"
    )
    return Map(dots, triangles, len(places), summary)


def histogram(scores: Tensor, cut: float | None, hot: bool) -> Histogram | None:
    """The scores of a class; None where none is finite.

    Args:
        scores: of its samples.
        cut: those above it are flagged, if the class was found poisoned.
        hot: whether it was.
    """
    values: Array = scores[torch.isfinite(scores)].double().numpy()
    if not len(values):
        return None
    drawn = cut is not None and math.isfinite(cut)
    at = float(cut) if drawn and cut is not None else float(values.min())
    low, high = min(float(values.min()), at), max(float(values.max()), at)
    size = (high - low) / BINS or 1.0
    below, beyond = math.ceil((at - low) / size), math.ceil((high - at) / size)
    edges = at + size * np.arange(-max(below, 1), max(beyond, 1) + 1)  # the cut is one of them
    place = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
    counts = np.bincount(place, minlength=len(edges) - 1)
    step, tall = (WIDTH - LEFT - EDGE) / (len(edges) - 1), math.log1p(int(counts.max()))
    room = FLOOR - 2 * EDGE

    def height(count: float) -> float:
        return round(room * math.log1p(count) / tall, 1)

    columns = [
        Column(
            round(LEFT + i * step, 2), round(FLOOR - height(n), 1), round(max(step - 0.8, 0.5), 2), height(n),
            hot and drawn and bool(edges[i] >= at),
            f"{view.number(float(edges[i]))} to {view.number(float(edges[i + 1]))}: {n:,}",
        )
        for i, n in enumerate(counts.tolist()) if n
    ]  # fmt: skip
    line = None
    if drawn:
        line = (round(LEFT + max(below, 1) * step, 2), view.number(at))
    ticks = [10**k for k in range(9) if 10**k <= counts.max()]
    ends = [(float(LEFT), "start", float(edges[0])), (float(WIDTH - EDGE), "end", float(edges[-1]))]
    above = int((values > at).sum()) if drawn else 0
    return Histogram(
        columns, line, [(round(FLOOR - height(t), 1), f"{t:,}") for t in ticks],
        [(x, anchor, view.number(v)) for x, anchor, v in ends], above,
        f"Scores of {view.counted(len(values), 'sample')} from {view.number(float(values.min()))} to "
        f"{view.number(float(values.max()))}" + (f", {above:,} above the cut {view.number(at)}" * drawn),
    )  # fmt: skip


def tiles(
    shown: Examples, scores: Tensor, flagged: Collection[int], modality: Modality
) -> tuple[list[Tile], list[Tile]]:
    """The most suspicious samples of a class, and typical ones."""
    rows = torch.cat([shown.suspicious, shown.typical]).tolist()
    drawn = [
        Tile(_sample(modality.picture(x), row), view.number(float(scores[row])), row in flagged)
        for x, row in zip(shown.pictures, rows, strict=True)
    ]
    return drawn[: len(shown.suspicious)], drawn[len(shown.suspicious) :]


def _sample(image: Image.Image, row: int) -> Picture:
    """A sample, all of one size; the caption is its place in the set."""
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    return picture(image, f"sample {row:,}", side=SIDE)
