"""Texts with labels from .csv, .tsv, .jsonl and .txt files, and from folders of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.inputs.image.sources.classes import chosen, first, numbered, split_of
from backsweep.inputs.modality import Found, Wanted
from backsweep.inputs.text.tokens import Tokens

TEXTS = (
    "text",
    "prompt",
    "instruction",
    "sentence",
    "sentence1",
    "premise",
    "question1",
    "question",
    "review",
    "content",
    "tweet",
    "title",
)
SECONDS = ("text_pair", "sentence2", "hypothesis", "question2", "description")
LABELS = (
    "label",
    "labels",
    "class",
    "class_name",
    "target",
    "sentiment",
    "category",
    "subtask_a",
    "y",
    "intent",
)
SPLITS = ("split", "set", "subset", "partition")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
WANTED = (
    "a .csv, .tsv or .jsonl file with a text and a label in each row, or a folder of .txt files per class"
)
MOST_BYTES = 2**28  # of a file
MOST_ROWS = 2**20
SAMPLE = 20_000  # texts that are kept, unless all are asked for
TOKENS = 64  # of a text, where nothing says another length
MOST_FILES = 100_000

Row = tuple[str, str | None, Any, str]  # text, pair, label (None: none), split


def read(path: Path, wanted: Wanted, tokens: Tokens) -> Found:
    """Ids of tokens (N, L), labels and class names.

    Raises:
        BadInput: nothing readable is there, or rows without a text or a label.
    """
    csv.field_size_limit(2**27)
    try:
        if path.is_dir():
            rows, note = _folder(path, wanted)
        elif not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        else:
            rows, note = _file(path, wanted)
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(
            f"not readable as texts ({type(e).__name__}: {one_line(str(e))[:80]}); give {WANTED}"
        ) from e
    notes = [note] if note else []
    if not rows:
        raise BadInput(f"there are no texts in it; give {WANTED}")
    empty = sum(not text.strip() for text, *_ in rows)
    if empty == len(rows):
        raise BadInput(f"all {empty} texts are empty; give {WANTED}")
    if empty:
        rows = [r for r in rows if r[0].strip()]
        notes.append(f"{empty} empty text{'s were' if empty > 1 else ' was'} left out")
    if len(rows) > SAMPLE:
        if wanted.whole:
            raise BadInput(f"there are {len(rows):,} texts, more than {SAMPLE:,}; give fewer")
        pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
        notes.append(f"of {len(rows):,} texts {SAMPLE:,} were drawn")
        rows = [rows[i] for i in pick.tolist()]
    length = wanted.shape[0] if wanted.shape is not None else TOKENS
    x = torch.tensor([tokens.encode(text, pair, length) for text, pair, *_ in rows])
    cut = int((x != tokens.layout.pad).all(1).sum())
    if cut:
        notes.append(f"{cut} texts fill all {length} tokens; what is longer was cut (--shape)")
    if wanted.labels is not None:
        return Found(x, None, wanted.names, tuple(notes))
    for number, (_, _, label, _) in enumerate(rows):
        if label is None or label == "":
            raise BadInput(f"text {number + 1} has no label; give every text one (labels: {some(LABELS)})")
    labels = [label if type(label) is int else str(label) for *_, label, _ in rows]
    labels = labels if all(type(v) is int for v in labels) else [str(v) for v in labels]
    y, names, said = numbered(labels, wanted.names)
    return Found(x, y, names, tuple(filter(None, (*notes, said))))


def _file(path: Path, wanted: Wanted) -> tuple[list[Row], str]:
    if path.stat().st_size > MOST_BYTES:
        raise BadInput(f"the file has more than {MOST_BYTES >> 20} MiB; give a sample of it")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows: list[Row] = [(line, None, None, "") for line in _lines(path)]
        if wanted.labels is None:
            raise BadInput(
                "a .txt file has a text in each line and no labels; say labels='model' (--labels model)"
            )
    elif suffix == ".jsonl":
        rows = list(_json(path, wanted))
    elif suffix in (".csv", ".tsv"):
        rows = list(_table(path, wanted))
    else:
        raise BadInput(f"{path.name!r} is no file of texts; give {WANTED}")
    return _of_split(rows, wanted)


def _of_split(rows: list[Row], wanted: Wanted) -> tuple[list[Row], str]:
    if not any(r[3] for r in rows) and wanted.split is None:
        return rows, ""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(split_of(row[3]) or row[3], []).append(row)
    return chosen(groups or {"": []}, wanted.split)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as f:
        for line in f:
            if line.strip():
                yield line.strip()


def _bounded(rows: Iterator[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number >= MOST_ROWS:
            raise BadInput(f"there are more than {MOST_ROWS:,} rows; give a sample of them")
        yield row


def _json(path: Path, wanted: Wanted) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        for number, line in enumerate(_lines(path), 1):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise BadInput(
                    f"line {number} is no JSON; give one object with a text and a label in each"
                ) from e
            if not isinstance(found, dict):
                raise BadInput(f"line {number} is no JSON object; give one with a text and a label in each")
            yield _row({str(k): v for k, v in found.items()}, number, wanted)

    return _bounded(rows())


def _row(cells: Mapping[str, Any], number: int, wanted: Wanted) -> Row:
    text, label = first(cells, TEXTS), first(cells, LABELS)
    if text is None or (label is None and wanted.labels is None):
        missing = "text" if text is None else "label"
        raise BadInput(f"line {number} has no {missing}, only {some(cells)}; call the columns text and label")
    second, split = first([c for c in cells if c != text], SECONDS), first(cells, SPLITS)
    value = cells[label] if label is not None else None
    if value is not None and not isinstance(value, str | int):
        raise BadInput(
            f"the label of line {number} is no class but {type(value).__name__}; give one class each"
        )
    value = int(value) if isinstance(value, bool) else value
    pair = None if second is None else str(cells[second])
    return str(cells[text]), pair, value, "" if split is None else str(cells[split])


def _table(path: Path, wanted: Wanted) -> Iterator[Row]:
    tabs = path.suffix.lower() == ".tsv"

    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as f:
            reader = csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(f)
            head = [c.strip() for c in next(reader, [])]
            named = first(head, TEXTS) is not None
            if not named and len(head) != 2:
                raise BadInput(f"the first line names the columns {some(head)}; call them text and label")
            if not named:  # two columns without a head: the text and its label
                yield _unnamed(head)
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) < len(head):
                    raise BadInput(
                        f"line {reader.line_num} has {len(row)} fields, the first line {len(head)}"
                    )
                if named:
                    cells = dict(zip(head, (c.strip() for c in row), strict=False))
                    yield _row(cells, reader.line_num, wanted)
                else:
                    yield _unnamed(row)

    return _bounded(rows())


def _unnamed(row: Sequence[str]) -> Row:
    """A text and its label, without a head."""
    return row[0].strip(), None, row[1].strip(), ""


def _folder(path: Path, wanted: Wanted) -> tuple[list[Row], str]:
    """A folder per class with .txt files (a text each, or a text in each line), or files of rows in one."""
    tables = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES[:3])
    if tables:
        by_split = {split_of(p.stem) or p.stem: p for p in tables}
        file, note = chosen(by_split, wanted.split)
        rows, more = _file(file, Wanted(wanted.shape, wanted.names, False, None, wanted.labels, wanted.whole))
        return rows, "; ".join(filter(None, (note, more)))
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    inner = {split_of(p.name) or "": p for p in folders if split_of(p.name)}
    note = ""
    if inner:
        top, note = chosen(inner, wanted.split)
        folders = sorted(p for p in top.iterdir() if p.is_dir())
    found: list[Row] = []
    for folder in folders:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".txt" and p.is_file())
        if len(files) > MOST_FILES:
            raise BadInput(f"{folder.name!r} has more than {MOST_FILES:,} files; give a sample of them")
        for file in files:
            if file.stat().st_size > MOST_BYTES:
                raise BadInput(f"{file.name!r} has more than {MOST_BYTES >> 20} MiB; give a sample of it")
            text = file.read_text(encoding="utf-8-sig", errors="replace")
            texts = [t for t in text.splitlines() if t.strip()] if len(files) == 1 else [text]
            found += [(t, None, folder.name, "") for t in texts]
    if not found:
        raise BadInput(f"there are no texts in it; give {WANTED}")
    return found, note
