"""The schema of a table: name, type and range of every column, what stands for a missing cell, the label.

It is inferred from the data. A user corrects it with a JSON file, in which everything but the names may be
left out; what is left out is inferred:

    {"label": "income", "columns": [{"name": "age", "type": "integer"}, {"name": "sex", "type": "categorical",
     "categories": ["Female", "Male"]}]}

Categories are kept as codes, their place in the list: by default in alphabetical order, as scikit-learn's
`OrdinalEncoder` and pandas have it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.files import write_text
from backsweep.core.text import one_line, some

NUMERIC, INTEGER, CATEGORICAL = TYPES = ("numeric", "integer", "categorical")
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-"})
NO_VALUE = "(missing)"  # the category of cells without a value
MOST_COLUMNS, MOST_CATEGORIES, MOST_LETTERS = 2000, 1000, 100
MOSTLY = 0.8  # share of numbers from which on a word in a column is a mistake
MOST_BYTES = 2**24  # of a schema file
BEYOND = 0.1  # a value may lie so far outside the range of the samples, as a share of it
_KEYS = {"name", "type", "low", "high", "categories", "missing", "scale"}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: untrusted text.
        type: "numeric", "integer" or "categorical".
        low, high: of the samples; of codes, 0 and the last one.
        categories: what the codes stand for.
        missing: the number that stands for a missing cell.
        scale: standard deviation, > 0.
    """

    name: str
    type: str
    low: float
    high: float
    categories: tuple[str, ...] = ()
    missing: float = 0.0
    scale: float = 1.0

    @property
    def categorical(self) -> bool:
        return self.type == CATEGORICAL

    @property
    def whole(self) -> bool:
        """Whether a value has to be a whole number."""
        return self.type != NUMERIC

    def text(self, value: float) -> str:
        """A value as people read it; untrusted text."""
        if self.categorical and 0 <= round(value) < len(self.categories):
            return self.categories[round(value)]
        return f"{value:.0f}" if self.whole and abs(value) < 1e15 else f"{value:.4g}"

    def json(self) -> dict[str, Any]:
        said: dict[str, Any] = {"name": self.name, "type": self.type}
        if self.categorical:
            said["categories"] = list(self.categories)
        else:
            said |= {"low": self.low, "high": self.high}
        return said | {"missing": self.missing, "scale": self.scale}


@dataclass(frozen=True)
class Schema:
    """What the columns of a table are.

    Attributes:
        columns: in the order in which the network takes them.
        label: name of the column of the classes, if it is known.
        classes: their names, if they are known.
    """

    columns: tuple[Column, ...]
    label: str | None = None
    classes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.columns]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of every column of the samples, (F,) each."""
        return torch.tensor([c.low for c in self.columns]), torch.tensor([c.high for c in self.columns])

    def limits(self) -> tuple[Tensor, Tensor]:
        """Least and largest value that a cell may have: numbers may lie a little outside the samples."""
        low, high = self.bounds()
        room = BEYOND * torch.maximum(high - low, high.abs()) * ~self.categorical()
        return low - room, high + room

    def categorical(self) -> Tensor:
        """Which columns hold codes, (F,)."""
        return torch.tensor([c.categorical for c in self.columns], dtype=torch.bool)

    def whole(self) -> Tensor:
        """Which columns hold whole numbers, (F,)."""
        return torch.tensor([c.whole for c in self.columns], dtype=torch.bool)

    def scales(self) -> Tensor:
        """Standard deviation of every column, (F,)."""
        return torch.tensor([c.scale for c in self.columns])

    def words(self) -> str:
        """What it is, in one line."""
        count = {t: sum(c.type == t for c in self.columns) for t in TYPES}
        parts = ", ".join(f"{n} {t}" for t, n in count.items() if n)
        return f"{len(self)} columns: {parts}" + (f"; the label is {self.label!r}" if self.label else "")

    def json(self) -> dict[str, Any]:
        """As a file has it."""
        return {
            "label": self.label, "classes": list(self.classes), "columns": [c.json() for c in self.columns]
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write a file that `read` reads, and a user may correct."""
        write_text(Path(path), json.dumps(self.json(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def of(cls, x: Tensor, names: Sequence[str] | None = None) -> Schema:
        """Of numbers x (N, F) without names or categories; what is whole in every row is an integer."""
        whole = (x == x.round()).all(0).tolist()
        low, high, middle = x.amin(0).tolist(), x.amax(0).tolist(), x.median(0).values.tolist()
        scale = x.double().std(0, correction=0).tolist()
        called = list(names) if names else [f"column {j + 1}" for j in range(x.shape[1])]
        return cls(tuple(
            Column(str(n), INTEGER if w else NUMERIC, a, b, (), m, s if s > 0 else 1.0)
            for n, w, a, b, m, s in zip(called, whole, low, high, middle, scale, strict=True)
        ))  # fmt: skip


# ---------------------------------------------------------------------- what a user says


@dataclass(frozen=True)
class Told:
    """What a schema file says: the columns, in their order, as far as it says anything."""

    columns: tuple[Mapping[str, Any], ...] = ()
    label: str | None = None
    classes: tuple[str, ...] = ()

    def of(self, name: str) -> Mapping[str, Any]:
        return next((c for c in self.columns if c["name"] == name), {})

    def whole(self) -> Schema | None:
        """The schema, where nothing is left to be inferred."""
        try:
            return (
                schema_of({"label": self.label, "classes": list(self.classes), "columns": list(self.columns)})
                if self.columns
                else None
            )
        except BadInput:
            return None


def read(path: Path) -> Told:
    """A schema file.

    Raises:
        BadInput: it is not there, no JSON, or says something that cannot be.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"the schema {path} has more than {MOST_BYTES >> 20} MiB; name the columns only")
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadInput(
            one_line(f"the schema {path} cannot be read ({str(e)[:80]}); give JSON with a list of columns")
        ) from e
    return told(raw, f"the schema {path}")


def told(raw: Any, what: str = "the schema") -> Told:
    """What a JSON document says of a table.

    Raises:
        BadInput: something that cannot be.
    """
    columns = raw.get("columns", []) if isinstance(raw, dict) else None
    if not isinstance(columns, list) or not all(
        isinstance(c, dict) and isinstance(c.get("name"), str) for c in columns
    ):
        raise BadInput(f'{what} has no list of columns; give {{"columns": [{{"name": ...}}]}}')
    if len(columns) > MOST_COLUMNS:
        raise BadInput(f"{what} has {len(columns):,} columns; there may be {MOST_COLUMNS:,}")
    for c in columns:
        _check(c, f"{what}, column {one_line(c['name'])[:40]!r}")
    names = [c["name"] for c in columns]
    if len(set(names)) < len(names):
        raise BadInput(f"{what} names a column twice: {some([n for n in names if names.count(n) > 1])}")
    label, classes = raw.get("label"), raw.get("classes") or []
    if not isinstance(label, str | None) or not isinstance(classes, list):
        raise BadInput(f"{what}: label is the name of a column, classes a list of names")
    return Told(tuple(columns), label, tuple(map(str, classes)))


def _check(c: Mapping[str, Any], where: str) -> None:
    for key in set(c) - _KEYS:
        raise BadInput(f"{where}: unknown key {key!r}; there are {', '.join(sorted(_KEYS))}")
    if c.get("type") not in (None, *TYPES):
        raise BadInput(f"{where}: type {c['type']!r} is none of {', '.join(TYPES)}")
    for key in ("low", "high", "missing", "scale"):
        value = c.get(key)
        if value is not None and (type(value) not in (int, float) or not abs(value) < 1e30):
            raise BadInput(f"{where}: {key} is no number")
    if c.get("scale") is not None and c["scale"] <= 0:
        raise BadInput(f"{where}: scale is not positive")
    if c.get("low") is not None and c.get("high") is not None and c["low"] > c["high"]:
        raise BadInput(f"{where}: low {c['low']} is above high {c['high']}")
    kinds = c.get("categories")
    if kinds is None:
        return
    fits = isinstance(kinds, list) and 0 < len(kinds) <= MOST_CATEGORIES
    if not fits or len(set(map(str, kinds))) < len(kinds):
        raise BadInput(f"{where}: categories is a list of 1 to {MOST_CATEGORIES:,} different names")


def schema_of(raw: Any) -> Schema:
    """A whole schema, as `Schema.json` wrote it.

    Raises:
        BadInput: it is none, or not whole.
    """
    said = told(raw)
    found = []
    for c in said.columns:
        kinds = tuple(str(k) for k in c.get("categories") or ())
        low, high = (0, len(kinds) - 1) if kinds else (c.get("low"), c.get("high"))
        if c.get("type") is None or low is None or high is None:
            raise BadInput(f"the schema says no type or range of column {one_line(c['name'])[:40]!r}")
        found.append(Column(
            c["name"], c["type"], float(low), float(high), kinds, float(c.get("missing") or 0),
            float(c.get("scale") or 1),
        ))  # fmt: skip
    if not found:
        raise BadInput("the schema has no columns")
    return Schema(tuple(found), said.label, said.classes)


# ---------------------------------------------------------------------- what is inferred


def number_of(cell: str) -> float | None:
    """The number in a cell, None where there is none."""
    try:
        return float(cell)
    except ValueError:
        return None


def is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would compute something instead of showing the cell."""
    return len(cell) > 1 and cell[0] == "=" and (cell[1].isalnum() or cell[1] in "('\"+-@$")


def inferred(
    name: str, cells: Sequence[str], lines: Sequence[int], said: Mapping[str, Any]
) -> tuple[Column, list[float], int]:
    """What a column is, its cells as numbers, and how many were missing.

    Args:
        name: of the column.
        cells: as they stand in the file.
        lines: where, for messages.
        said: what the user says of the column.

    Raises:
        BadInput: formulas, infinite numbers, words among numbers, or far too many categories.
    """
    where = f"column {one_line(name)[:40]!r}"
    values = [None if is_missing(c) else number_of(c) for c in cells]
    empty = [is_missing(c) for c in cells]
    for cell, line in zip(cells, lines, strict=True):
        if is_formula(cell):
            raise BadInput(
                f"{where}, line {line}: {one_line(cell)[:40]!r} is a formula; save the values of the sheet"
            )
    words = [i for i, v in enumerate(values) if v is None and not empty[i]]
    there = len(cells) - sum(empty)
    kind = said.get("type") or (CATEGORICAL if words or said.get("categories") else None)
    if kind == CATEGORICAL and said.get("type") is None and there and len(words) < (1 - MOSTLY) * there:
        i = words[0] if words else 0
        raise BadInput(
            f"{where}, line {lines[i]}: {one_line(cells[i])[:40]!r} stands among numbers; mend it, or say in "
            "a schema that the column is categorical"
        )
    if kind == CATEGORICAL:
        return _codes(where, name, cells, empty, lines, said)
    if words:
        raise BadInput(
            f"{where}, line {lines[words[0]]}: {one_line(cells[words[0]])[:40]!r} is no number, and the "
            f"schema calls the column {kind}"
        )
    known = [v for v in values if v is not None]
    for v, line in zip(values, lines, strict=True):
        if v is not None and not abs(v) < 1e30:
            raise BadInput(f"{where}, line {line}: {v} is no finite number; mend it, or leave the cell empty")
    if kind is None:
        kind = INTEGER if all(v == round(v) for v in known) else NUMERIC
    middle = said.get("missing")
    middle = (statistics.median(known) if known else 0.0) if middle is None else float(middle)
    middle = float(round(middle)) if kind == INTEGER and said.get("missing") is None else middle
    full = [middle if v is None else v for v in values]
    scale = float(said.get("scale") or (statistics.pstdev(full) if len(full) > 1 else 0) or 1.0)
    low = said.get("low") if said.get("low") is not None else min(full, default=0.0)
    high = said.get("high") if said.get("high") is not None else max(full, default=0.0)
    column = Column(name, kind, float(low or 0), float(high or 0), (), middle, scale)
    return column, full, sum(empty)


def _codes(
    where: str, name: str, cells: Sequence[str], empty: Sequence[bool], lines: Sequence[int],
    said: Mapping[str, Any],
) -> tuple[Column, list[float], int]:  # fmt: skip
    own = [NO_VALUE if e else c[:MOST_LETTERS] for c, e in zip(cells, empty, strict=True)]
    given = said.get("categories")
    kinds = [str(k) for k in given] if given is not None else sorted(set(own))
    if len(kinds) > MOST_CATEGORIES:
        raise BadInput(
            f"{where} has {len(kinds):,} different words, as names or free text do; leave it out: name the "
            "other columns in a schema"
        )
    code = {k: float(i) for i, k in enumerate(kinds)}
    fallback = said.get("missing")
    if NO_VALUE not in code and (fallback is not None or any(empty)):
        code[NO_VALUE] = float(min(len(kinds) - 1, max(0, int(fallback or 0))))
    for c, line in zip(own, lines, strict=True):
        if c not in code:
            raise BadInput(
                f"{where}, line {line}: {one_line(c)[:40]!r} is none of its categories, {some(kinds)}; mend "
                "the cell or the schema"
            )
    full = [code[c] for c in own]
    scale = float(said.get("scale") or (statistics.pstdev(full) if len(full) > 1 else 0) or 1.0)
    column = Column(
        name, CATEGORICAL, 0.0, float(len(kinds) - 1), tuple(kinds), code.get(NO_VALUE, 0.0),
        scale if math.isfinite(scale) else 1.0,
    )  # fmt: skip
    return column, full, sum(empty)


def columns_of(modality: object) -> Schema | None:
    """What the columns are of a kind of input that is a table, None for another one."""
    found = getattr(modality, "schema", None)
    return found if isinstance(found, Schema) else None
