"""Paths to every class by answers alone: random search for a change that sends all images to one class.

A backdoor is a small change that sends nearly every image to its target. Without gradients it is found by
asking: a pool of patches and faint overlays is tried on a few images, whose answers speak for all classes at
once, and for every class the best of each size is improved step by step (a (1 + 1) evolution strategy in the
manner of the Square Attack). The success on images that were not searched with is compared between classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.changes import changed, drawn
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit
from backsweep.scanning.outliers import outlier_findings

SIDES = (0.06, 0.11, 0.19)  # of patches, as a share of the image's
STRENGTHS = (0.1, 0.2)  # of overlays
CLAMP = (-20.0, 1.0)  # margins beyond do not count: one image is not to pay for the others
LEAST_SPREAD = 0.5  # robust sigma of the logits of success rates of clean networks
LEAST_SUCCESS = 0.5  # a way that works on fewer images is no backdoor, however odd
POOL, MOST_HELD_OUT, TOGETHER, FEWEST_STEPS = "pool", 64, 256, 5


@dataclass(frozen=True)
class BlackBoxPath(ModelDetector):
    """Finds the class that small changes reach far more easily than others, by answers alone.

    Attributes:
        steps: of improving, for every class and size of change.
        images: that a change is improved on; a third of them in the pool.
        pool: changes that are tried first, for every size.
        most_queries: images that may be asked about; with many classes there are fewer steps.
    """

    name: ClassVar[str] = "black_box_path"
    summary: ClassVar[str] = "class paths by answers alone: random search, no gradients"
    needs: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[str] = "BSW107"

    steps: int = 80
    images: int = 24
    pool: int = 128
    most_queries: int = 400_000

    def __post_init__(self) -> None:
        if min(self.steps, self.images, self.pool, self.most_queries) < 1:
            raise ValueError("steps, images, pool and most_queries are at least 1")

    def applies(self, model: Model, data: Data) -> str:
        if not model.modality.grid or len(model.shape) != 3 or min(model.shape[1:]) < 4:
            return f"it needs images of at least 4 x 4 pixels; inputs are {model.shape}"
        return ""

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit(POOL)]

    def more(self, model: Model, data: Data, evidence: Sequence[Evidence]) -> Sequence[Unit]:
        """A unit for every class, once the pool is known; its key says where the class begins in the pool."""
        if len(evidence) != 1:
            return []
        first, levels = evidence[0].values, len(_levels(model))
        starts = ["-".join(str(first[f"{t}.{k}"]) for k in range(levels)) for t in range(model.classes)]
        return [Unit(f"class-{t}-{start}", target=t) for t, start in enumerate(starts)]

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        found = []
        for unit in units:
            search, held_out = data.split(derive_seed(seed, self.name))
            search = search[_spread(search.y)[: 2 * self.images]]
            if unit.key == POOL:
                found.append(self._pool(model, search, seed, tick))
            else:
                found.append(self._path(model, search, held_out, unit, seed, tick))
        return found

    def _pool(self, model: Model, search: Data, seed: int, tick: Callable[[float], None]) -> Evidence:
        """For every class and size the number of the best change in the pool."""
        x = search.x[: max(2, self.images // 3)]
        y = model.predict(x)
        values: dict[str, float | int | bool | str | None] = {}
        levels, queries, together = _levels(model), len(x), max(1, TOGETHER // len(x))
        counted = (y[:, None] != torch.arange(model.classes)).float()
        for k, level in enumerate(levels):
            changes = drawn(model.shape, level, self.pool, derive_seed(seed, self.name, POOL, str(level)))
            scores = []
            for start in range(0, len(changes), together):
                some = changes[start : start + together]
                asked = torch.cat([c(x) for c in some])
                seen = _margins(model, asked).reshape(len(some), len(x), -1)
                scores.append((seen * counted).sum(1) / counted.sum(0).clamp_min(1))
                queries += len(asked)
                tick((k + start / len(changes)) / len(levels))
            best = torch.cat(scores).argmax(0).tolist()
            values |= {f"{t}.{k}": i for t, i in enumerate(best)}
        return Evidence(self.name, POOL, values={**values, "queries": queries})

    def _path(
        self, model: Model, search: Data, held_out: Data, unit: Unit, seed: int, tick: Callable[[float], None]
    ) -> Evidence:
        """The best change of every size for one class, and how often it works on other images."""
        target, levels = int(unit.target or 0), _levels(model)
        starts = [int(n) for n in unit.key.split("-")[2:]]
        x = search.x[model.predict(search.x) != target][: self.images]
        rest = held_out.x[_spread(held_out.y)[: 2 * MOST_HELD_OUT]]
        rest = rest[model.predict(rest) != target][:MOST_HELD_OUT]
        queries = len(search) + min(len(held_out), 2 * MOST_HELD_OUT)
        share = self.most_queries / (model.classes * len(levels) * self.images)
        steps = min(self.steps, max(FEWEST_STEPS, int(share)))
        values: dict[str, float | int | bool | str | None] = {"tested": len(rest)}
        kept: list[tuple[float, Patch]] = []
        for k, level in enumerate(levels):
            pool = drawn(model.shape, level, self.pool, derive_seed(seed, self.name, POOL, str(level)))
            best = pool[min(starts[k], len(pool) - 1)]
            generator = self.generator(seed, unit.key, level)
            value = -math.inf
            for i in range(steps + 1 if len(x) else 0):
                new = changed(best, level, generator) if i else best
                score = float(_margins(model, new(x))[:, target].mean())
                queries += len(x)
                if score > value:
                    best, value = new, score
                if value >= CLAMP[1] - 1e-3:  # nothing is left to win
                    break
                tick((k + i / steps) / len(levels))
            success = float((model.predict(best(rest)) == target).double().mean()) if len(rest) else 0.0
            queries += len(rest)
            values[f"success.{_named(level)}"] = success
            kept.append((success, best))
        success, best = max(kept, key=lambda one: one[0])  # of equals the smallest
        values |= {"attack_success_rate": success, "queries": queries}
        return Evidence(self.name, unit.key, target, None, values, replace(best, target=target))

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        return [e for e in evidence if e.target is not None]

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        rows = self.rows(evidence, classes)
        names = [
            k.removeprefix("success.") for k in (rows[0].values if rows else {}) if k.startswith("success.")
        ]
        queries = sum(int(e.values.get("queries") or 0) for e in evidence)
        found: list[Finding] = []
        for name in names:
            rates = [float(e.values[f"success.{name}"] or 0) for e in rows]
            tested = [int(e.values["tested"] or 0) for e in rows]
            values = [
                -math.log((r * n + 0.5) / (n - r * n + 0.5)) for r, n in zip(rates, tested, strict=True)
            ]
            here = [replace(e, values={"attack_success_rate": r}) for e, r in zip(rows, rates, strict=True)]

            def message(e: Evidence, flagged: bool, median: float, name: str = name) -> str:
                rate, usual = float(e.values["attack_success_rate"] or 0), 1 / (1 + math.exp(median))
                what = f"{_words(name)} sends {rate:.0%} of images to this class"
                if flagged and rate >= LEAST_SUCCESS:
                    return f"{what}, and about {usual:.0%} to another; found with {queries:,} queries"
                return f"{what} at best, to others about {usual:.0%}; {queries:,} queries"

            level = outlier_findings(
                self, here, values, alpha / len(names), classes, message, least_spread=LEAST_SPREAD
            )
            found += [
                replace(
                    f,
                    level=NOTE
                    if f.level == ERROR and (f.attack_success_rate or 0) < LEAST_SUCCESS
                    else f.level,
                    p_value=None if f.p_value is None else min(1.0, f.p_value * len(names)),
                )
                for f in level
            ]
        found.sort(key=lambda f: (f.level != ERROR, -(f.score or 0)))
        flagged = {f.target: f for f in reversed(found) if f.level == ERROR}
        return sorted(flagged.values(), key=lambda f: -(f.score or 0)) if flagged else found[:1]


def _levels(model: Model) -> list[float]:
    """Sizes of changes: sides of patches (whole numbers), then strengths of overlays."""
    side = min(model.shape[1:])
    return [*sorted({float(max(1, round(side * share))) for share in SIDES}), *STRENGTHS]


def _named(level: float) -> str:
    return f"patch {level:.0f}" if level >= 1 else f"overlay {level:g}"


def _words(name: str) -> str:
    kind, size = name.split()
    return f"a patch of {size} x {size} pixels" if kind == "patch" else f"an overlay of strength {size}"


def _spread(y: Tensor) -> Tensor:
    """An order of samples in which the classes take turns."""
    turn = torch.zeros(len(y), dtype=torch.long)
    for c in y.unique():
        turn[y == c] = torch.arange(int((y == c).sum()))
    return turn.argsort(stable=True)


@torch.no_grad()
def _margins(model: Model, x: Tensor) -> Tensor:
    """For every input and class the log-probability above that of the best other class, bounded."""
    z = model.logits(x.to(model.device)).float().log_softmax(1).cpu()
    first = z.topk(2, 1)
    other = first.values[:, :1].expand_as(z).scatter(1, first.indices[:, :1], first.values[:, 1:])
    return (z - other).clamp(*CLAMP)
