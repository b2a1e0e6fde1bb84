"""Parquet and Arrow files, as Hugging Face data sets have them, and Parquet manifests. Needs pyarrow.

A folder that `save_to_disk` wrote (`*.arrow`), one as on the hub (`data/train-00000-of-00001.parquet`), or
one file. The image stands in it as bytes, or as a path inside the folder.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.inputs.image.sources import record_batches
from backsweep.inputs.image.sources.classes import chosen, first, numbered, split_of
from backsweep.inputs.image.sources.listing import MOST_FILE, Listing, Row
from backsweep.inputs.image.sources.tables import LABELS, PATHS, listed, opened
from backsweep.inputs.image.sources.tables import SPLITS as SPLIT_COLUMNS
from backsweep.inputs.modality import Wanted

_IMAGES = ("image", "img", "images", "pixel_values", "picture", "bytes")
MOST_ROWS = 2**22


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    names: tuple[str, ...] | None  # of the label's numbers


def is_folder(path: Path) -> bool:
    """Whether a folder is a data set of Parquet or Arrow files."""
    return bool(_files(path))


def listing(path: Path, wanted: Wanted) -> Listing:
    """The samples of a data set.

    Raises:
        BadInput: pyarrow is not installed, or there are no images with labels.
    """
    record_batches.needed()
    groups: dict[str, list[Path]] = {}
    folder = path if path.is_dir() else path.parent
    for file in _files(path) if path.is_dir() else [path]:
        groups.setdefault(_split(file, folder), []).append(file)
    files, note = chosen(groups, wanted.split if len(groups) > 1 or "" not in groups else None)
    schema = record_batches.schema(files[0])
    path_column = first(schema.names, PATHS)
    if path_column is not None and _is_text(schema.field(path_column).type):
        return _manifest(files, folder, schema, path_column, wanted)
    if wanted.split is not None and "" in groups and len(groups) == 1:
        raise BadInput(f"there is no split {wanted.split!r}: its files name none")
    columns = _columns(schema, wanted)
    labels: list[str | int] = []
    starts = [0]
    for file in files:
        count = 0
        for batch in record_batches.of(file, [columns.label or columns.image]):
            count += batch.num_rows
            if columns.label is not None:
                labels += [_label(v) for v in batch.column(columns.label).to_pylist()]
            if starts[-1] + count > MOST_ROWS:
                raise BadInput(f"it has more than {MOST_ROWS:,} rows; give some of its files")
        starts.append(starts[-1] + count)
    if not starts[-1]:
        raise BadInput("there are no samples in it")
    y, names, said = None, None, ""
    if columns.label is not None:
        y, names, said = numbered(labels, wanted.names, columns.names)
        said = said or (
            "" if columns.label in ("label", "class") else f"labels are those of {columns.label!r}"
        )
    notes = tuple(filter(None, (note, said)))
    return Listing(starts[-1], _opened(folder, files, starts, columns.image), y, names, notes)


def _files(folder: Path) -> list[Path]:
    found = [
        p
        for p in [*folder.glob("*"), *folder.glob("*/*")]
        if p.suffix.lower() in (".parquet", ".arrow") and p.is_file()
        if not p.name.startswith(("cache-", ".")) and not p.parent.name.startswith(".")
    ]
    top = folder.resolve()
    if lost := [p.name for p in found if not p.resolve().is_relative_to(top)]:
        raise BadInput(f"{some(lost)} is a link out of the folder; copy the file there")
    return sorted(found)


def _split(file: Path, folder: Path) -> str:
    """By the beginning of the file's name, else by its folder."""
    word = re.split(r"[^a-z]", file.name.lower())[0]
    return split_of(word) or (split_of(file.parent.name) or "" if file.parent != folder else "")


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _columns(schema: Any, wanted: Wanted) -> _Columns:
    """The columns of images and labels: by what Hugging Face says of them, else by their names."""
    features = _features(schema)
    images = [n for n in schema.names if features.get(n, {}).get("_type") == "Image"]
    image = first(images or schema.names, _IMAGES) or (images[0] if images else None)
    named = {
        n: features[n].get("names") for n in schema.names if features.get(n, {}).get("_type") == "ClassLabel"
    }
    label = first(named or schema.names, LABELS) or next(iter(named), None)
    if image is None or (label is None and wanted.labels is None):
        raise BadInput(
            f"it has the columns {some(schema.names)}; a data set here has images (bytes) under image and "
            "classes under label"
        )
    kind = str(schema.field(image).type)
    if not kind.startswith(("struct<", "binary", "large_binary")):
        raise BadInput(
            f"column {image!r} holds {kind[:80]}, not encoded images; cast it to Image and save it"
        )
    names = named.get(label) if label is not None else None
    good = isinstance(names, list) and names and all(isinstance(n, str) for n in names)
    return _Columns(image, label if wanted.labels is None else None, tuple(names) if good and names else None)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {k: v for k, v in said.items() if isinstance(v, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _label(value: Any) -> str | int:
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, str | bytes) and value:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    raise BadInput(f"a label is {value!r:.40}; give every image a class, as a number or a name")


def _opened(
    folder: Path, files: Sequence[Path], starts: Sequence[int], column: str
) -> Callable[[Sequence[int]], Iterator[Row]]:
    def found(rows: Sequence[int]) -> Iterator[Row]:
        """Rows in rising order, file by file."""
        for file, start, end in zip(files, starts, starts[1:], strict=False):
            here = [r - start for r in rows if start <= r < end]
            if not here:
                continue
            pick, at = set(here), 0
            for batch in record_batches.of(file, [column]):
                for i in range(batch.num_rows):
                    if at + i in pick:
                        yield _image(batch.column(column)[i].as_py(), f"{file.name}, row {at + i}", folder)
                at += batch.num_rows
                if at > here[-1]:
                    break

    return found


def _image(value: Any, shown: str, folder: Path) -> Row:
    body = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(body, bytes) and len(body) <= MOST_FILE:
        return shown, io.BytesIO(body)
    where = value.get("path") if isinstance(value, dict) else None
    if isinstance(where, str) and body is None:
        return next(opened(folder, [where])([0]))
    return shown, None


def _manifest(files: Sequence[Path], folder: Path, schema: Any, where: str, wanted: Wanted) -> Listing:
    """A table of paths and labels."""
    label, split = first(schema.names, LABELS), first(schema.names, SPLIT_COLUMNS)
    if label is None and wanted.labels is None:
        raise BadInput(f"it has the columns {some(schema.names)}; call them path and label, one row an image")
    names = [n for n in (where, label, split) if n is not None]
    rows: list[tuple[str, str | int, str]] = []
    for file in files:
        for batch in record_batches.of(file, names):
            cells = batch.to_pydict()
            said = [_label(v) for v in cells[label]] if label and wanted.labels is None else []
            for i, path in enumerate(cells[where]):
                part = str(cells[split][i]) if split else ""
                rows.append((str(path or ""), said[i] if said else "", part))
            if len(rows) > MOST_ROWS:
                raise BadInput(f"it has more than {MOST_ROWS:,} rows; give a sample of it")
    return listed(folder, rows, wanted, split is not None)
