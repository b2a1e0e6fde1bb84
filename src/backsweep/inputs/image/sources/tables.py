"""Manifests: a .csv or .tsv file with the path of an image and its label in each row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PureWindowsPath

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.inputs.image.sources.classes import chosen, first, numbered, split_of
from backsweep.inputs.image.sources.listing import Listing, Row
from backsweep.inputs.modality import Wanted

PATHS = (
    "path",
    "image",
    "filename",
    "file",
    "file_name",
    "image_path",
    "filepath",
    "img",
    "img_path",
    "audio",
    "sound",
    "wav",
)
LABELS = ("label", "class", "class_name", "labels", "target", "fine_label", "category", "y", "cls", "classes")
SPLITS = ("split", "set", "subset", "partition")
MOST_FILE = 2**28  # bytes of a manifest
MOST_ROWS = 2**22


def listing(path: Path, wanted: Wanted) -> Listing:
    """The images that a manifest names, inside its folder.

    Raises:
        BadInput: it has no such columns, or names files elsewhere.
    """
    if path.stat().st_size > MOST_FILE:
        raise BadInput(f"the manifest has more than {MOST_FILE >> 20} MiB; give a sample of it")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as f:
        reader = csv.reader(f, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        head = [name.strip() for name in next(reader, [])]
        where, label, split = columns(head, wanted)
        rows: list[tuple[str, str, str]] = []
        for row in reader:
            if not any(row):
                continue
            if len(row) < len(head):
                raise BadInput(f"line {reader.line_num} has {len(row)} fields, the first line {len(head)}")
            cells = dict(zip(head, (cell.strip() for cell in row), strict=False))
            rows.append((cells[where], cells[label] if label else "", cells[split] if split else ""))
            if len(rows) > MOST_ROWS:
                raise BadInput(f"the manifest has more than {MOST_ROWS:,} rows; give a sample of it")
    return listed(path.parent, rows, wanted, split is not None)


def columns(head: Sequence[str], wanted: Wanted) -> tuple[str, str | None, str | None]:
    """The columns of the path, the label and the split.

    Raises:
        BadInput: there is none of paths, or none of labels, and they are needed.
    """
    where, label = first(head, PATHS), first(head, LABELS)
    if where is None or (label is None and wanted.labels is None):
        raise BadInput(
            f"the first line names the columns {some(head)}; call them path and label, one row an image"
        )
    return where, label if wanted.labels is None else None, first(head, SPLITS)


def listed(
    folder: Path, rows: Sequence[tuple[str, str | int, str]], wanted: Wanted, has_splits: bool
) -> Listing:
    """Images by path, label and split.

    Args:
        folder: where the paths begin, and end.
        rows: path, label ("" where none is needed) and split ("" where there is none).
        wanted: how they are read.
        has_splits: whether there are several splits.

    Raises:
        BadInput: no rows, rows without a label, or a path that leads out of the folder.
    """
    note = ""
    if has_splits or wanted.split is not None:
        groups: dict[str, list[tuple[str, str | int, str]]] = {}
        for row in rows:
            groups.setdefault(split_of(row[2]) or row[2], []).append(row)
        rows, note = chosen(groups or {"": []}, wanted.split)
    if not rows:
        raise BadInput("there are no images in the manifest")
    for name, label, _ in rows:
        if label == "" and wanted.labels is None:
            raise BadInput(f"{name!r} has no label; give every image one")
    y, names, said = None, None, ""
    if wanted.labels is None:
        y, names, said = numbered([label for _, label, _ in rows], wanted.names)
    notes = tuple(filter(None, (note, said)))
    return Listing(len(rows), opened(folder, [name for name, _, _ in rows]), y, names, notes)


def opened(folder: Path, names: Sequence[str]) -> Callable[[Sequence[int]], Iterator[Row]]:
    """The files of some names below a folder.

    Raises:
        BadInput: a name leads out of the folder, which is seen before any file is opened.
    """
    for name in names:
        parts = PureWindowsPath(name)  # which knows both kinds of slashes, and drives
        if not name or "\0" in name or parts.anchor or ".." in parts.parts:
            raise BadInput(f"{name!r} leads out of the manifest's folder; give paths below it")
    top = folder.resolve()

    def found(rows: Sequence[int]) -> Iterator[Row]:
        for row in rows:
            file = (folder / names[row]).resolve()
            if not file.is_relative_to(top):
                raise BadInput(f"{names[row]!r} is a link out of the manifest's folder; copy it there")
            yield names[row], file if file.is_file() else None

    return found
