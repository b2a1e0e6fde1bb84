"""Tables: rows of numbers (F,), float32; a category is a code, its place in the list of the schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image as Pictures
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.family import Family
from backsweep.inputs.modality import Found, Modality, Wanted
from backsweep.inputs.space import Space
from backsweep.inputs.table import readers
from backsweep.inputs.table.cells import cells as held
from backsweep.inputs.table.families import SetFamily
from backsweep.inputs.table.pictures import drawn
from backsweep.inputs.table.schema import MOST_COLUMNS, Schema, Told, read, schema_of
from backsweep.inputs.table.spaces import Drift, Few

SWAPPED = 0.1  # share of the cells that a shifted view takes from other rows
INFER = "infer"  # instead of the name of a schema file


@dataclass(frozen=True)
class Table(Modality):
    """Rows of a table. All tables are of one kind; what their columns are, the schema says.

    Attributes:
        schema: None until there are samples.
        planned: what the user says of the columns before there are samples.
    """

    name: ClassVar[str] = "table"
    noun: ClassVar[str] = "row"
    unit: ClassVar[str] = "column"
    faint: ClassVar[str] = "drift"
    few: ClassVar[str] = "columns"
    detectors: ClassVar[tuple[str, ...]] = ("column_sweep",)
    repairs: ClassVar[tuple[str, ...]] = ("column_unlearning", "contrastive_unlearning")
    guards: ClassVar[tuple[str, ...]] = ("confused_expert", "column_transplant")
    guards_of_answers: ClassVar[tuple[str, ...]] = ("column_transplant",)
    axes: ClassVar[str] = "columns"
    smooth: ClassVar[bool] = False

    schema: Schema | None = field(default=None, compare=False)
    planned: Told = field(default=Told(), compare=False)

    @classmethod
    def given(cls, schema: str | Path | Schema | None) -> Table:
        """A table with a schema file, a schema, or one that is to be inferred (None, "infer").

        Raises:
            BadInput: the file cannot be read.
        """
        if isinstance(schema, Schema):
            return cls(schema)
        if schema is None or str(schema) == INFER:
            return cls()
        told = read(Path(schema))
        return cls(told.whole(), told)

    # ------------------------------------------------------------------ samples

    def samples(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise BadInput(f"x has {x.ndim} dimensions; rows of a table are (samples, columns)")
        if not 0 < x.shape[1] <= MOST_COLUMNS:
            raise BadInput(f"rows have {x.shape[1]:,} columns; there may be 1 to {MOST_COLUMNS:,}")
        x = x.float()
        bad = torch.nonzero(~torch.isfinite(x))
        if len(bad):
            row, column = bad[0].tolist()
            named = f"column {column + 1}" if self.schema is None else repr(self.schema.names[column])[:60]
            raise BadInput(f"row {row + 1} has no finite number in {named}; fill or drop missing cells")
        return x

    def informed(self, x: Tensor) -> Table:
        """With the schema of the samples, where none is known."""
        return replace(self, schema=Schema.of(x)) if self.schema is None and len(x) else self

    def joined(self, other: Modality) -> Table:
        """With the schema of the samples, which have names and ranges."""
        return other if isinstance(other, Table) and other.schema is not None else self

    def read(self, path: Path, wanted: Wanted) -> Found:
        x, y, names, notes, schema = readers.rows(path, wanted, self.planned)
        return Found(x, y, names, notes, replace(self, schema=schema))

    def mismatch(self, have: tuple[int, ...], want: tuple[int, ...]) -> str:
        return (
            f"the rows have {have[0]} columns, the model takes {want[0]}; name the columns in its order in a "
            "schema (--schema)"
            if len(have) == len(want) == 1
            else super().mismatch(have, want)
        )

    def random(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Every cell on its own, within the range of its column."""
        share = torch.rand((count, *shape), generator=generator)
        if self.schema is None or len(self.schema) != shape[0]:
            return share
        low, high = self.schema.bounds()
        x = low + share * (high - low)
        return torch.where(self.schema.whole(), x.round(), x)

    def blank(self, count: int, shape: Sequence[int]) -> Tensor:
        """What stands for missing cells."""
        if self.schema is None or len(self.schema) != shape[0]:
            return torch.zeros((count, *shape))
        return torch.tensor([c.missing for c in self.schema.columns]).expand(count, -1).clone()

    def clip(self, x: Tensor) -> Tensor:
        if self.schema is None:
            return x
        low, high = (b.to(x) for b in self.schema.limits())
        return torch.minimum(torch.maximum(x, low), high)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == 1 and 0 < shape[0] <= MOST_COLUMNS

    def size(self, shape: Sequence[int]) -> int:
        return shape[0]

    # ------------------------------------------------------------------ how a network runs on it

    def shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The same rows, some of their cells those of other rows."""
        other = x[torch.randperm(len(x), generator=generator).to(x.device)]
        swap = (torch.rand(x.shape, generator=generator) < SWAPPED).to(x.device)
        return torch.where(swap, other, x)

    def shifts(self, shape: Sequence[int]) -> bool:
        return True

    def mix(self, x: Tensor, overlays: Tensor, weight: float) -> Tensor:
        """A random share of the columns, weight / (1 + weight), from the overlay: other ones for each."""
        count = max(1, round(x.shape[1] * weight / (1 + weight)))
        chance = torch.rand(overlays.shape, generator=torch.Generator().manual_seed(x.shape[1]))
        taken = (chance.argsort(1).argsort(1) < count).to(x.device)
        return torch.where(taken[None], overlays[None].to(x), x[:, None])

    def features(self, x: Tensor, most: int = 3, forms: bool = True) -> list[list[str]] | None:
        return held(x, self.schema or Schema.of(x), most > 1, forms)

    # ------------------------------------------------------------------ triggers

    def spaces(self) -> Mapping[str, Space]:
        return {"drift": Drift(self.schema), "columns": Few(self.schema)}

    def patch(self) -> Family:
        return SetFamily(self.schema)

    # ------------------------------------------------------------------ files and people

    def said(self, rows: Iterable[Tensor]) -> dict[str, Any]:
        return {} if self.schema is None else {"schema": self.schema.json()}

    def told(self, model: Mapping[str, object]) -> Table:
        try:
            return replace(self, schema=schema_of(model["schema"]))
        except (BadInput, KeyError, TypeError, ValueError):
            return self

    def unpack(self, x: Tensor) -> Tensor:
        return x.float()

    def cells(self, x: Tensor) -> list[tuple[str, str]]:
        values = x.detach().cpu().flatten().tolist()
        if self.schema is None or len(self.schema) != len(values):
            return [(f"column {j + 1}", f"{v:.4g}") for j, v in enumerate(values)]
        return [(c.name, c.text(v)) for c, v in zip(self.schema.columns, values, strict=True)]

    def picture(self, x: Tensor) -> Pictures.Image:
        return drawn([f"{name} = {value}" for name, value in self.cells(x)])
