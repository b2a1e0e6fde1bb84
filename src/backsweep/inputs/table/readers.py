"""Rows with labels from .csv, .tsv and .parquet files."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.inputs.image.sources.classes import numbered
from backsweep.inputs.modality import Names, Wanted
from backsweep.inputs.table.schema import MOST_COLUMNS, Schema, Told, inferred, is_missing, number_of, read

LABELS = ("label", "labels", "target", "class", "classification", "y")
WANTED = "a .csv, .tsv or .parquet file with a row in each line and a label in one column"
MOST_BYTES = 2**28  # of a file
MOST_CELLS = 2**26
SAMPLE = 50_000  # rows that are kept, unless all are asked for
MOST_FIELD = 2**16  # letters in a cell
DELIMITERS = ",;\t|"


def beside(path: Path) -> Path | None:
    """The schema that lies beside a file of rows: adult.csv, adult.schema.json."""
    try:
        found = path.with_name(f"{path.stem}.schema.json")
        return found if found.is_file() else None
    except (OSError, ValueError):
        return None


def rows(path: Path, wanted: Wanted, said: Told) -> tuple[torch.Tensor, Any, Names, tuple[str, ...], Schema]:
    """Numbers (N, F), labels or None, class names, notes, and the schema with what was inferred.

    Args:
        path: the file.
        wanted: how samples are to be read.
        said: what the user says of the columns.

    Raises:
        BadInput: nothing readable is there; ragged rows, words among numbers, formulas, too many columns.
    """
    if not said.columns and (file := beside(path)) is not None:
        said = read(file)
    if not path.is_file():
        raise BadInput(f"there is no such file; give {WANTED}")
    if path.stat().st_size > MOST_BYTES:
        raise BadInput(f"the file has more than {MOST_BYTES >> 20} MiB; give a sample of it")
    try:
        body = path.read_bytes()
        head, cells = _parquet(path) if body[:4] == b"PAR1" else _text(body, path.suffix.lower() == ".tsv")
    except BadInput:
        raise
    except Exception as e:
        reason = f"{type(e).__name__}: {one_line(str(e))[:80]}"
        raise BadInput(f"not readable as a table ({reason}); give {WANTED}") from e
    notes: list[str] = []
    if not head:
        width = len(cells[0][1])
        planned = [c["name"] for c in said.columns]
        head = [*planned, said.label or "label"] if len(planned) == width - 1 else planned
        if len(head) != width:
            head = [f"column {j + 1}" for j in range(width)]
        notes.append("the first line names no columns: they are taken in their order")
    label = _label(head, said, wanted)
    named = [c["name"] for c in said.columns] or [n for n in head if n != label]
    if lost := [n for n in named if n not in head]:
        raise BadInput(f"there is no column {some(lost)}; the file has {some(head)}")
    left = [n for n in head if n not in named and n != label]
    if left:
        notes.append(f"left out, as the schema does not name them: {some(left)}")
    if len(named) > MOST_COLUMNS:
        raise BadInput(
            f"there are {len(named):,} columns; at most {MOST_COLUMNS:,} are read: name them in a "
            "schema (--schema)"
        )
    if not named:
        raise BadInput(f"there is no column beside the label {label!r}; give {WANTED}")
    lines, table = [n for n, _ in cells], [row for _, row in cells]
    if len(table) > SAMPLE:
        if wanted.whole:
            raise BadInput(f"there are {len(table):,} rows, more than {SAMPLE:,}; give fewer")
        pick = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
        notes.append(f"of {len(table):,} rows {SAMPLE:,} were drawn")
        lines, table = [lines[i] for i in pick.tolist()], [table[i] for i in pick.tolist()]
    columns, numbers, missing = [], [], {}
    for name in named:
        j = head.index(name)
        column, values, empty = inferred(name, [row[j] for row in table], lines, said.of(name))
        columns.append(column)
        numbers.append(values)
        if empty:
            missing[name] = empty
    if missing:
        told = ", ".join(f"{n} {c:,}" for n, c in list(missing.items())[:5])
        told += " ..." if len(missing) > 5 else ""
        notes.append(
            f"missing cells were filled, numbers with the median, categories with one of their own: {told}"
        )
    x = torch.tensor(numbers, dtype=torch.float64).T.float().contiguous()
    y, names, note = _classes(head, label, table, lines, said, wanted)
    schema = Schema(tuple(columns), label, tuple(names or said.classes))
    return x, y, names, tuple(filter(None, (schema.words(), *notes, note))), schema


def _label(head: Sequence[str], said: Told, wanted: Wanted) -> str | None:
    """Name of the column of the labels: as the schema says, else as it is called, else the last one."""
    if said.label is not None:
        if said.label not in head and wanted.labels is None:
            raise BadInput(f"there is no column {said.label!r} for the label; the file has {some(head)}")
        return said.label
    called = next((n for want in LABELS for n in head if n.casefold() == want), None)
    if called is not None or wanted.labels is not None:
        return called
    named = [c["name"] for c in said.columns]
    return next((n for n in reversed(head) if n not in named), None)


def _classes(
    head: Sequence[str], label: str | None, table: Sequence[Sequence[str]], lines: Sequence[int], said: Told,
    wanted: Wanted,
) -> tuple[Any, Names, str]:  # fmt: skip
    if wanted.labels is not None:
        return None, wanted.names, ""
    if label is None:
        raise BadInput("no column is the label; name it in a schema, or say labels='model' (--labels model)")
    cells = [row[head.index(label)] for row in table]
    empty = next((i for i, c in enumerate(cells) if is_missing(c)), None)
    if empty is not None:
        raise BadInput(f"line {lines[empty]} has no label in column {label!r}; give every row one")
    numbers = [number_of(c) for c in cells]
    whole = [int(v) for v in numbers if v is not None and 0 <= v < 2**31 and v == int(v)]
    if len(whole) == len(cells):
        return numbered(whole, wanted.names or said.classes or None)
    if len(set(cells)) > 1000:
        raise BadInput(
            f"column {label!r} has {len(set(cells)):,} different labels; name the column of the "
            "classes in a schema"
        )
    return numbered(cells, wanted.names or said.classes or None)


Cells = list[tuple[int, list[str]]]  # line and cells of every row


def _text(body: bytes, tabs: bool) -> tuple[list[str], Cells]:
    """The names of the columns (empty: there are none) and the rows."""
    text = body.decode("utf-8-sig", "replace")
    if "\x00" in text[:4096]:
        raise BadInput(f"it holds bytes that are no text; give {WANTED}")
    csv.field_size_limit(MOST_FIELD)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise BadInput(f"there are no rows in it; give {WANTED}")
    counts = Counter({d: first.count(d) for d in DELIMITERS})
    delimiter = "\t" if tabs else max(DELIMITERS, key=lambda d: counts[d])
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    found: Cells = []
    width, most = 0, 0
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            width = width or len(row)
            if len(row) != width:
                raise BadInput(
                    f"line {reader.line_num} has {len(row):,} cells, the first line {width:,}; mend the file"
                )
            most += width
            if most > MOST_CELLS:
                raise BadInput(f"there are more than {MOST_CELLS:,} cells; give a sample of the rows")
            found.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as e:
        raise BadInput(f"line {reader.line_num} is no row of a table ({e}); mend the file") from e
    if width < 2:
        raise BadInput(f"its lines have one cell; give {WANTED}")
    head = found[0][1]
    named = all(head) and not any(number_of(c) is not None for c in head) and len(set(head)) == len(head)
    if not named and len(set(head)) < len(head) and not any(number_of(c) is not None for c in head):
        raise BadInput(f"the first line names a column twice: {some([c for c in head if head.count(c) > 1])}")
    found = found[1:] if named else found
    if not found:
        raise BadInput(f"there are no rows below the names of the columns; give {WANTED}")
    return (head if named else []), found


def _parquet(path: Path) -> tuple[list[str], Cells]:
    try:
        import pyarrow.parquet as pq
    except ImportError as e:
        raise BadInput("Parquet is read with pyarrow: pip install backsweep[data]") from e
    with pq.ParquetFile(path) as file:
        count, names = file.metadata.num_rows, [str(n) for n in file.schema_arrow.names]
        if count * len(names) > MOST_CELLS:
            raise BadInput(f"there are more than {MOST_CELLS:,} cells; give a sample of the rows")
        table = file.read()
    nested = [str(f.name) for f in table.schema if f.type.num_fields]
    if nested:
        raise BadInput(f"the columns {some(nested)} hold lists or structures; give one value in each cell")
    if len(set(names)) < len(names):
        raise BadInput(f"a column is there twice: {some([n for n in names if names.count(n) > 1])}")
    columns = [table.column(j).to_pylist() for j in range(len(names))]
    cells = [["" if v is None else _cell(v) for v in column] for column in columns]
    if count == 0:
        raise BadInput(f"there are no rows in it; give {WANTED}")
    return names, [(i + 1, list(row)) for i, row in enumerate(zip(*cells, strict=True))]


def _cell(value: Any) -> str:
    """A value of a Parquet file as a text file would have it."""
    return str(int(value)) if isinstance(value, bool) else str(value).strip()[:MOST_FIELD]
