"""Column transplant, ours: rows of a table of which a few cells alone decide, here and not on a reference.

The cells of a trigger send any row to its class. So some cells of the row that is looked at are put into
clean rows which the model gives another class: first each cell alone, then the best one with every other, and
so on up to `columns`. What is natural, such as a large capital gain, moves clean rows on the references as
well, which learned the labels of clean rows:

    score(x) = max over sets S of columns of  m(f, S) - m(r, S)  +  log p_f(y | x) - log p_r(y | x),

m the mean log-odds of y = f(x) when x_S stands in clean rows, cut at +-6, divided by 6; the last two terms,
log-odds cut likewise, are how far the references disagree about the row itself. Answers are enough: it works
for trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.table.schema import columns_of
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.scanning.surrogates import Answers, answers_of, taught

CUT = 6.0  # log-odds beyond do not count
KINDS = ("boosted", "forest")  # of references
TOGETHER = 2**15  # rows in a pass


@dataclass(frozen=True)
class ColumnTransplant(SampleDetector):
    """Flags rows some of whose cells, put into clean rows, move them here and not on a reference.

    Attributes:
        columns: the largest set of cells that is put into clean rows.
        donors: clean rows of each class that get them.
    """

    name: ClassVar[str] = "column_transplant"
    summary: ClassVar[str] = "rows of which a few cells decide, here and not on a reference (ours)"
    needs: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = 64

    columns: int = 3
    donors: int = 12

    def __post_init__(self) -> None:
        if min(self.columns, self.donors) < 1:
            raise ValueError("columns and donors are at least 1")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if model.modality.unit != "column":
            return f"it moves columns of a table, and the model takes {model.modality.noun}s"
        return ""

    def passes(self, model: Model) -> float:
        """Some of the model's, as many of the references'."""
        width = model.shape[0]
        return float(self.donors * sum(width - k for k in range(min(self.columns, width))))

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Rows that get cells with the model's answers, and what the references learn."""
        given = answers_of(model)(data.x).argmax(1)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(0, self.name)))
        rows = torch.cat([order[given[order] == c][: self.donors] for c in range(model.classes)])
        y = data.y if data.labelled else given
        return {"donors": data.x[rows], "given": given[rows], "x": data.x.clone(), "y": y.clone()}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        suspect, width = answers_of(model), model.shape[0]
        schema = columns_of(model.modality)
        codes = schema.categorical() if schema is not None else torch.zeros(width, dtype=torch.bool)
        seed = derive_seed(0, self.name)
        references = taught(learned["x"], learned["y"], model.classes, codes, seed, KINDS)
        donors = _donors(learned["donors"], learned["given"], model.classes, self.donors)

        def score(x: Tensor) -> Tensor:
            rows = x.cpu()
            z = suspect(rows)
            y = z.argmax(1)
            there = torch.stack([_odds(r(rows), y) for r in references]).amax(0)
            return self._moved(rows, y, donors[y], suspect, references) + (_odds(z, y) - there) / CUT

        return score

    def _moved(
        self, x: Tensor, y: Tensor, donors: Tensor, suspect: Answers, references: Sequence[Answers]
    ) -> Tensor:
        """The largest excess (N,) of rows x (N, F) of classes y, in their donors (N, D, F)."""
        count, width = x.shape
        taken = torch.zeros((count, width), dtype=torch.bool)
        best = torch.full((count,), -2.0)
        for _ in range(min(self.columns, width)):
            sets = taken[:, None] | torch.eye(width, dtype=torch.bool)  # (N, F, F): one column more each
            stamped = torch.where(sets[:, :, None], x[:, None, None], donors[:, None]).flatten(0, 2)
            wanted = y.repeat_interleave(width * donors.shape[1])

            def odds(answers: Answers, stamped: Tensor = stamped, wanted: Tensor = wanted) -> Tensor:
                parts = zip(stamped.split(TOGETHER), wanted.split(TOGETHER), strict=True)
                found = torch.cat([_odds(answers(a), b) for a, b in parts])
                return found.reshape(count, width, -1).mean(2)

            excess = (odds(suspect) - torch.stack([odds(r) for r in references]).amax(0)) / CUT
            top = excess.masked_fill(taken, -torch.inf).max(1)
            best = torch.maximum(best, top.values)
            taken = taken | F.one_hot(top.indices, width).bool()
        return best


def _donors(rows: Tensor, given: Tensor, classes: int, count: int) -> Tensor:
    """For every class as many rows that the model gives another one: (C, count, F)."""
    found = []
    for label in range(classes):
        own = rows[given != label]
        own = own if len(own) else rows
        found.append(own[torch.arange(count) * len(own) // count % max(1, len(own))])
    return torch.stack(found)


def _odds(z: Tensor, y: Tensor) -> Tensor:
    """Log-odds of classes y (N,) beside the best other one, cut, of log-probabilities z (N, C)."""
    own = z.gather(1, y[:, None])[:, 0]
    other = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return (own - other).clamp(-CUT, CUT)
