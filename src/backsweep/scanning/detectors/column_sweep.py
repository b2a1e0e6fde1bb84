"""Column sweep: the fewest columns that, set to values, send rows to a class, on the suspect and not
elsewhere.

A planted trigger of a table is a few columns with values. Setting every row to a value and counting the
answers (the trigger sweep of Tabdoor's authors) finds it, and finds natural columns too: a large capital
gain is an income above 50,000 in every honest model. So the same is done to references that never saw a
trigger: models of other kinds that learned the labels of the clean rows. The share of rows moved on the
suspect above the largest on a reference is what counts, as a rank among clean tables of other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, NamedTuple, cast

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.table import search
from backsweep.inputs.table.schema import Schema, columns_of
from backsweep.inputs.table.search import Aim, Answers, Rows, Setting
from backsweep.inputs.table.triggers import SetColumns
from backsweep.models.model import Model
from backsweep.models.washing import GIVEN
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.calibration import Threshold, threshold_of
from backsweep.scanning.detector import ModelDetector, Stage, Unit
from backsweep.scanning.surrogates import Beside, alike, answers_of, surrogates

COST = 0.05  # of every column beyond the first, in shares of rows
SELDOM_COST = 0.15  # of every rare value beyond the first
USUAL = 0.72  # least score of a flagged class where no clean tables are known
ALIKE = 0.6  # share of clean rows on which some reference has to agree with the suspect
FEWEST = 100  # clean rows, below which a natural column cannot be told from a planted one
HELD_OUT = 1024  # rows, shared by the classes


Settings = tuple[Setting, ...]


class Best(NamedTuple):
    """A set of columns with its score, and the share of rows that it moves here and on references."""

    score: float
    settings: Settings
    here: float
    there: float


@dataclass(frozen=True)
class ColumnSweep(ModelDetector):
    """Searches columns and values that move rows here and not on references.

    Attributes:
        columns: the largest set that is looked for: one and two exactly, more by growing the best.
        success: share of held-out rows that a set must move for an alarm.
        excess: the least score of a flagged class. None: what a network of another kind exceeds with chance
            alpha, by clean tables of many kinds (`calibration.threshold_of`); where they do not fit, `USUAL`.
    """

    name: ClassVar[str] = "column_sweep"
    summary: ClassVar[str] = "columns set to values that move rows here, and not on references"
    needs: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[str] = "BSW151"

    columns: int = 3
    success: float = 0.8
    excess: float | None = None

    def __post_init__(self) -> None:
        excess = USUAL if self.excess is None else self.excess
        if self.columns < 1 or not 0 < self.success <= 1 or not 0 < excess <= 1:
            raise ValueError("columns is at least 1, success and excess are above 0 and at most 1")

    def applies(self, model: Model, data: Data) -> str:
        if columns_of(model.modality) is None:
            return f"it sets columns of a table, and the model takes {model.modality.noun}s"
        return ""

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit(_key(aim), aim[1], aim[0]) for aim in search.aims(model.classes)]

    def chunk(self, model: Model) -> int:
        """All aims are read off the same answers."""
        return len(search.aims(model.classes))

    def plan(self, model: Model, data: Data) -> Sequence[Stage]:
        return [Stage("sets of columns", len(search.aims(model.classes)), 2.0e6)]

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        schema = cast(Schema, columns_of(model.modality))
        first, rest = data.split(derive_seed(seed, self.name, "split"))
        suspect = answers_of(model)
        seed = derive_seed(seed, self.name)
        networks = alike(model, data, seed)
        references = [*surrogates(model, data, schema.categorical(), seed), *networks]
        given = model.references.get(GIVEN)
        references += [] if given is None else [answers_of(given)]
        tick(0.1)
        wanted = [(u.source, int(u.target or 0)) for u in units]
        y = suspect(first.x).argmax(1)
        rows = Rows.of(first.x, y, wanted, search.ROWS)
        few = rows.fewer(search.PAIR_ROWS)
        held = Rows.of(rest.x, suspect(rest.x).argmax(1), rows.aims, HELD_OUT)
        settings = search.candidates(schema, data.x)
        found = search.search(
            suspect, references, rows, few, settings, min(self.columns, len(schema)),
            lambda share: tick(0.1 + 0.85 * share),
        )  # fmt: skip
        clean = rest.x[: 2 * HELD_OUT]
        answers = suspect(clean).argmax(1)
        agreement = max(float((r(clean).argmax(1) == answers).double().mean()) for r in references)
        beside = Beside(
            references, networks, search.rare(schema, data.x, settings), search.far_out(schema, settings)
        )
        best = {
            aim: self._best(held, i, suspect, beside, [f.settings for f in found[aim]])
            for i, aim in enumerate(held.aims)
        }
        told = {"agreement": agreement, "labels": data.labelled, "rows": len(data)}
        return [self._evidence(u, best.get((u.source, int(u.target or 0))), schema, told) for u in units]

    def _best(
        self, held: Rows, index: int, suspect: Answers, beside: Beside, sets: Sequence[Settings]
    ) -> Best:
        """The largest excess on held-out rows, and the fewest columns that are enough for an alarm."""

        def scored(sets: Sequence[Settings]) -> list[Best]:
            here = held.moved(suspect, sets)[1][:, index].tolist()
            there = beside.moved(held, index, sets).tolist()
            return [
                Best(a - b - cost_of(s, beside.rare), s, a, b)
                for s, a, b in zip(sets, here, there, strict=True)
            ]

        def rank(b: Best) -> tuple[bool, float]:  # what reaches too few rows is no trigger, however odd
            return b.here >= self.success, b.score

        found = scored(sets)
        best = max(found, key=rank)
        parts = [p for n in range(1, len(best.settings)) for p in combinations(best.settings, n)]
        found += scored(parts) if parts else []
        enough = [b for b in found if b.score >= (self.excess or USUAL) and b.here >= self.success]
        if not enough:
            return best
        fewest = min(enough, key=lambda b: (len(b.settings), -b.score))
        return fewest._replace(score=max(b.score for b in enough))

    def _evidence(
        self, unit: Unit, best: Best | None, schema: Schema, told: Mapping[str, float | bool]
    ) -> Evidence:
        if best is None:
            values: dict[str, Any] = {"excess": 0.0, "attack_success_rate": 0.0, **told}
            return Evidence(self.name, unit.key, unit.target, unit.source, values)
        columns, given = zip(*best.settings, strict=True)
        trigger = SetColumns.of(schema, columns, given, unit.target, unit.source)
        return Evidence(self.name, unit.key, unit.target, unit.source, {
            "excess": best.score, "attack_success_rate": best.here, "reference_success_rate": best.there,
            "columns": len(best.settings), **told, "rule": trigger.rule,
        }, trigger)  # fmt: skip

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        order = sorted(evidence, key=lambda e: (-number(e, "excess"), e.source is not None))
        limit = threshold_of(self, evidence, classes, alpha, self.excess, USUAL)
        doubt = self._doubt(order) or limit.doubt
        flagged = [e for e in order if self._suspicious(e, limit)]
        seen: dict[int | None, Evidence] = {}
        for e in flagged:
            seen.setdefault(e.target, e)
        level = WARNING if doubt else ERROR if flagged else NOTE
        return [
            Finding(
                self.code, self.name, level, doubt or self._message(e, bool(flagged)), e.target, e.source,
                score=number(e, "excess"), threshold=limit.at, trigger=e.trigger,
                p_value=None if doubt else limit.p_value(number(e, "excess")),
                attack_success_rate=number(e, "attack_success_rate"), details=limit.details,
            )
            for e in (list(seen.values()) or order[:1])
        ]  # fmt: skip

    def _suspicious(self, e: Evidence, limit: Threshold) -> bool:
        return limit.passed(number(e, "excess")) and number(e, "attack_success_rate") >= self.success

    def _doubt(self, order: Sequence[Evidence]) -> str:
        """Why the evidence tells nothing, "" where it does."""
        agreement = max((number(e, "agreement") for e in order), default=0.0)
        rows = max((number(e, "rows") for e in order if "rows" in e.values), default=FEWEST)
        if rows < FEWEST:
            return f"cannot tell: {rows:.0f} clean rows are too few for references; give {FEWEST} or more"
        if agreement < ALIKE:
            return (
                "cannot tell: no reference learned to answer as the model does, at best on "
                f"{agreement:.0%} of clean rows; give more of them"
            )
        if not any("rule" in e.values for e in order):
            return "cannot tell: too few clean rows of other classes"
        return ""

    def _message(self, e: Evidence, flagged: bool) -> str:
        here, there = number(e, "attack_success_rate"), number(e, "reference_success_rate")
        said = (
            f"if {e.values.get('rule')}, the answer is this class for {here:.0%} of held-out rows that had "
            f"another, and for {there:.0%} on a reference"
        )
        return said if flagged else f"no set of columns moves rows here alone; most so: {said}"


def _key(aim: Aim) -> str:
    source, target = aim
    return f"class-{target}" if source is None else f"class-{source}-to-{target}"


def cost_of(settings: Settings, seldom: frozenset[Setting]) -> float:
    """What a set has to do better than one column: for further columns, and further rare values."""
    odd = sum(s in seldom for s in settings)
    return COST * (len(settings) - 1) + SELDOM_COST * max(0, odd - 1)


def number(e: Evidence, key: str) -> float:
    """A figure of a record, 0 where it has none."""
    value = e.values.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
