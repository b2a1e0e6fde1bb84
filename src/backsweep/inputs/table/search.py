"""Which few columns, set to which values, move rows to a class: exact for one and two columns, then greedy.

Everything is asked of answers alone, so that it works for trees as for networks. What a set of columns does
to a suspect is compared with what it does to references; the search keeps what works here and not there. As
not every set can be asked of every reference, what a larger set does there is first taken for the sum of
what its parts do, in log-odds, and asked of the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.inputs.table.schema import BEYOND, Schema

Answers = Callable[[Tensor], Tensor]  # rows (N, F) -> logarithms of probabilities (N, C)
Setting = tuple[int, float]  # a column and its value
Aim = tuple[int | None, int]  # source, None for every class; target

MOST_VALUES, MOST_CATEGORIES = 24, 64  # of a column
MOST_SINGLES, MOST_PAIRS = 800, 4_000
MOST_COLUMNS_IN_PAIRS = 40
ROWS, PAIR_ROWS = 192, 64  # that a set is tried on, shared by the classes
LEAST_ROWS = 8  # of an aim
CLAMP = 6.0  # log-odds beyond do not count: one row is not to pay for others
BEAM, ASKED = 8, 24  # sets that grow, and that references are asked about, for each aim
SELDOM, FEW = 0.005, 5  # share of rows, and rows, below which a value is rare
NEAR = 0.1  # of the standard deviation, within which a row has a value
FAR = 5.0  # standard deviations from the median
TOGETHER = 2**15  # rows in a pass


@dataclass(frozen=True)
class Found:
    """A set of columns.

    Attributes:
        settings: columns and values.
        excess: mean log-odds of the target above the largest of the references, on the rows searched with.
    """

    settings: tuple[Setting, ...]
    excess: float


def candidates(schema: Schema, x: Tensor) -> list[Setting]:
    """Values to try for every column: categories; quantiles, both ends and 1.1 times the largest."""
    most = max(3, min(MOST_VALUES, MOST_SINGLES // max(1, len(schema))))
    found: list[Setting] = []
    for j, column in enumerate(schema.columns):
        if column.categorical:
            count = len(column.categories)
            step = max(1, -(-count // min(MOST_CATEGORIES, 4 * most)))
            found += [(j, float(v)) for v in range(0, count, step)]
            continue
        values, times = x[:, j].unique(return_counts=True)
        common = values[times.argsort(descending=True)[: max(1, most // 3)]]
        inner = torch.quantile(x[:, j], torch.linspace(0.02, 0.98, max(1, most - len(common) - 3)))
        span = column.high - column.low
        beyond = column.high + BEYOND * (abs(column.high) if column.high > 0 else span)
        ends = [column.low, column.high, beyond]
        every = torch.cat([common, inner, torch.tensor(ends)])
        if column.whole:
            every = every.round()
            every[-1] = torch.maximum(every[-1], torch.tensor(column.high + 1))
        found += [(j, float(v)) for v in dict.fromkeys(every.tolist())]
    return found


def aims(classes: int) -> list[Aim]:
    """Every class as a target; with few classes, and more than two, from each other class as well."""
    found: list[Aim] = [(None, t) for t in range(classes)]
    if 2 < classes <= 6:
        found += [(s, t) for t in range(classes) for s in range(classes) if s != t]
    return found


def rare(schema: Schema, x: Tensor, settings: Sequence[Setting]) -> frozenset[Setting]:
    """Values that hardly a row of x (N, F) has: what a model makes of those, it learned from few rows."""
    near = torch.tensor([0.5 if c.categorical else NEAR * c.scale for c in schema.columns])
    return frozenset(
        (j, value)
        for j, value in settings
        if int(((x[:, j] - value).abs() <= near[j]).sum()) < max(FEW, SELDOM * len(x))
    )


def far_out(schema: Schema, settings: Sequence[Setting]) -> frozenset[Setting]:
    """Numbers so far from the median of their column that what a network makes of them is chance.

    In a column that is the same in all rows, that is any other number.
    """

    def far(j: int, value: float) -> bool:
        c = schema.columns[j]
        apart = abs(value - c.missing)
        return not c.categorical and (apart > FAR * c.scale or (c.low == c.high and apart > 0))

    return frozenset((j, value) for j, value in settings if far(j, value))


def stamped(x: Tensor, sets: Sequence[Sequence[Setting]]) -> Tensor:
    """Rows x (N, F) with each set: (len(sets) N, F)."""
    rows = x.repeat(len(sets), 1).reshape(len(sets), *x.shape)
    for i, settings in enumerate(sets):
        for j, value in settings:
            rows[i, :, j] = value
    return rows.flatten(0, 1)


@dataclass(frozen=True)
class Rows:
    """Clean rows and the class that the suspect gives them.

    Attributes:
        x: (N, F).
        y: (N,), the suspect's answers.
        aims: that have enough rows.
    """

    x: Tensor
    y: Tensor
    aims: list[Aim]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, wanted: Sequence[Aim], most: int) -> Rows:
        """At most `most` rows in all, of each class a like share, and the aims that have enough."""
        each = max(LEAST_ROWS, most // max(1, len(y.unique())))
        kept = torch.cat([torch.nonzero(y == c).flatten()[:each] for c in y.unique()])
        x, y = x[kept], y[kept]
        return cls(x, y, [a for a in wanted if int(cls._of(y, a).sum()) >= LEAST_ROWS])

    def fewer(self, most: int) -> Rows:
        """At most `most` of them in all, with the same aims."""
        some = Rows.of(self.x, self.y, self.aims, most)
        return Rows(some.x, some.y, self.aims)

    @staticmethod
    def _of(y: Tensor, aim: Aim) -> Tensor:
        source, target = aim
        return y != target if source is None else y == source

    def moved(self, answers: Answers, sets: Sequence[Sequence[Setting]]) -> tuple[Tensor, Tensor]:
        """What sets do: mean log-odds of each aim's target, and the share of rows that become it.

        Returns two tensors (sets, aims).
        """
        masks = [self._of(self.y, a) for a in self.aims]
        odds, rates = [], []
        part = max(1, TOGETHER // max(1, len(self.x)))
        for start in range(0, len(sets), part):
            some = sets[start : start + part]
            z = answers(stamped(self.x, some)).reshape(len(some), len(self.x), -1)
            top = z.topk(2, dim=2)
            for_target = {}
            for target in {t for _, t in self.aims}:
                other = torch.where(top.indices[..., 0] == target, top.values[..., 1], top.values[..., 0])
                for_target[target] = (z[..., target] - other).clamp(-CLAMP, CLAMP)
            odds.append(
                torch.stack(
                    [for_target[t][:, m].mean(1) for (_, t), m in zip(self.aims, masks, strict=True)], 1
                )
            )
            rates.append(torch.stack([
                (for_target[t][:, m] > 0).double().mean(1) for (_, t), m in zip(self.aims, masks, strict=True)
            ], 1))  # fmt: skip
        return torch.cat(odds), torch.cat(rates)

    def collapsed(self, answers: Answers, sets: Sequence[Sequence[Setting]]) -> Tensor:
        """The largest share of rows of other classes that each set sends to one class, (sets,)."""
        found = []
        part = max(1, TOGETHER // max(1, len(self.x)))
        for start in range(0, len(sets), part):
            some = sets[start : start + part]
            now = answers(stamped(self.x, some)).argmax(1).reshape(len(some), -1)
            shares = [
                (now[:, self.y != t] == t).double().mean(1)
                for t in now.unique().tolist() if bool((self.y != t).any())
            ]  # fmt: skip
            none = torch.zeros(len(some), dtype=torch.float64)
            found.append(torch.stack([none, *shares]).amax(0))
        return torch.cat(found)


def search(
    suspect: Answers, references: Sequence[Answers], rows: Rows, few: Rows, settings: Sequence[Setting],
    columns: int, tick: Callable[[float], None] = lambda share: None,
) -> dict[Aim, list[Found]]:  # fmt: skip
    """For every aim the best sets of each size.

    Args:
        suspect, references: what answers.
        rows: to try sets on; `few` of them, with the same aims, for all pairs.
        settings: what to try.
        columns: largest size.
        tick: told which share is done.
    """
    single = [(s,) for s in settings]
    own = rows.moved(suspect, single)[0]
    known = [r.moved(a, [(), *single])[0] for a in references for r in (rows,)]
    base = torch.stack([k[0] for k in known])  # (references, aims)
    alone = torch.stack([k[1:] for k in known])  # (references, singles, aims)
    excess = own - alone.amax(0)
    order = excess.argsort(0, descending=True)[:BEAM]
    found: dict[Aim, list[Found]] = {
        aim: [Found(single[i], float(excess[i, a])) for i in order[:, a].tolist()]
        for a, aim in enumerate(rows.aims)
    }
    tick(0.2)
    beams: list[list[tuple[int, ...]]] = []
    if columns > 1:
        chosen = _paired(settings, excess)
        pairs = [
            (i, k) for n, i in enumerate(chosen) for k in chosen[n + 1 :] if settings[i][0] != settings[k][0]
        ]
        odds = few.moved(suspect, [(settings[i], settings[k]) for i, k in pairs])[0]
        first, second = (torch.tensor([p[n] for p in pairs]) for n in (0, 1))
        likely = (alone[:, first] + alone[:, second] - base[:, None]).amax(0)
        beams = _best(pairs, odds - likely.clamp(-CLAMP, CLAMP), suspect, references, rows, settings, found)
    tick(0.6)
    for size in range(3, columns + 1):
        beams = _grown(beams, suspect, references, rows, few, settings, alone, base, found)
        tick(0.6 + 0.4 * (size - 2) / max(1, columns - 2))
    return found


def _paired(settings: Sequence[Setting], excess: Tensor) -> list[int]:
    """Settings that enter pairs: of the most promising columns, the most promising values and some others."""
    promise = excess.amax(1)
    by_column: dict[int, list[int]] = {}
    for i, (j, _) in enumerate(settings):
        by_column.setdefault(j, []).append(i)
    order = sorted(by_column, key=lambda j: -max(float(promise[i]) for i in by_column[j]))
    kept = order[:MOST_COLUMNS_IN_PAIRS]
    each = max(2, int((2 * MOST_PAIRS) ** 0.5 / max(1, len(kept))))
    found: list[int] = []
    for j in kept:
        best = sorted(by_column[j], key=lambda i: -float(promise[i]))[: max(1, -(-each // 2))]
        rest = [i for i in by_column[j] if i not in best]
        spread = rest[:: max(1, -(-len(rest) // max(1, each - len(best))))]
        found += best + spread
    return found


def _best(
    sets: Sequence[tuple[int, ...]], promise: Tensor, suspect: Answers, references: Sequence[Answers],
    rows: Rows, settings: Sequence[Setting], found: dict[Aim, list[Found]],
) -> list[list[tuple[int, ...]]]:  # fmt: skip
    """Ask the references about the most promising sets of each aim; the best of them go on."""
    picks = [promise[:, a].topk(min(ASKED, len(sets))).indices.tolist() for a in range(len(rows.aims))]
    every = sorted({i for pick in picks for i in pick})
    asked = [tuple(settings[k] for k in sets[i]) for i in every]
    own = rows.moved(suspect, asked)[0]
    excess = own - torch.stack([rows.moved(r, asked)[0] for r in references]).amax(0)
    beams = []
    for a, aim in enumerate(rows.aims):
        order = excess[:, a].argsort(descending=True)[:BEAM].tolist()
        found[aim] += [Found(asked[n], float(excess[n, a])) for n in order]
        beams.append([sets[every[n]] for n in order])
    return beams


def _grown(
    beams: Sequence[Sequence[tuple[int, ...]]], suspect: Answers, references: Sequence[Answers], rows: Rows,
    few: Rows, settings: Sequence[Setting], alone: Tensor, base: Tensor, found: dict[Aim, list[Found]],
) -> list[list[tuple[int, ...]]]:  # fmt: skip
    """Sets with one column more."""
    starts = list(dict.fromkeys(s for beam in beams for s in beam))
    step = max(1, -(-len(starts) * len(settings) // MOST_PAIRS))
    larger = list(dict.fromkeys(
        tuple(sorted((*s, i))) for s in starts for i in range(0, len(settings), step)
        if settings[i][0] not in {settings[k][0] for k in s}
    ))  # fmt: skip
    if not larger:
        return [list(b) for b in beams]
    odds = few.moved(suspect, [tuple(settings[k] for k in s) for s in larger])[0]
    parts = torch.tensor(larger)
    likely = alone[:, parts].sum(2) - (parts.shape[1] - 1) * base[:, None]
    return _best(
        larger, odds - likely.amax(0).clamp(-CLAMP, CLAMP), suspect, references, rows, settings, found
    )
