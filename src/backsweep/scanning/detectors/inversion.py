"""Trigger inversion in one family at a time: pixel (CVPR 2022), frequency, warp, patch.

The smallest trigger of the family that sends other classes to t is searched for, for every class t,
by the loop of Neural Cleanse; a class whose trigger is much smaller than the others' is suspected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inversion.loop import SmoothControl, invert
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, Finding
from backsweep.scanning.cascade.screens import jobs_of
from backsweep.scanning.detector import ModelDetector, Unit, units_in_a_pass
from backsweep.scanning.outliers import outlier_findings

# The first lambda, about CE / size at the usual sizes; chosen on networks that nothing is judged on.
START = {"patch": 1e-3, "pixel": 1e-3, "frequency": 1e-2, "warp": 1e-1}
UNIT = {"patch": "pixels", "pixel": "pixels", "frequency": "in L1 of the spectrum", "warp": "pixels of shift"}


@dataclass(frozen=True)
class Inversion(ModelDetector):
    """Finds the triggers of one family that have one target class.

    Attributes:
        family: "pixel" (additive), "frequency" (additive, sparse in the spectrum), "warp" or "patch".
        steps: most updates of a class.
        batch: inputs in an update.
        threshold: attack success rate that a trigger must reach while it is optimised.
    """

    name: ClassVar[str] = "inversion"
    summary: ClassVar[str] = "smallest additive, frequency or warp trigger per class, outlier"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    code: ClassVar[str] = "BSW105"

    family: str = "pixel"
    steps: int = 200
    batch: int = 24
    threshold: float = 0.95

    def __post_init__(self) -> None:
        if self.family not in START:
            raise ValueError(f"family {self.family!r} is none of {', '.join(START)}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is not in (0, 1]")
        if self.steps < 1 or self.batch < 1:
            raise ValueError("steps and batch are at least 1")

    def chunk(self, model: Model) -> int:
        return units_in_a_pass(model, self.batch)

    def applies(self, model: Model, data: Data) -> str:
        known = self.family in model.modality.families(model.shape)
        return (
            ""
            if known
            else f"{model.modality.noun}s of shape {model.shape} have no triggers of the family {self.family}"
        )

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        clean, held_out = data.split(derive_seed(seed, "split"))
        jobs = jobs_of(units, clean.y, seed, self.name)
        done = [0]

        def count(_live: int) -> None:
            done[0] += 1
            if done[0] % 10 == 0:
                tick(done[0] / self.steps)

        control = SmoothControl(len(jobs), threshold=self.threshold, start=START[self.family])
        results = invert(
            model, clean.x, jobs, model.modality.families(model.shape)[self.family], control,
            updates=self.steps, batch=self.batch, bf16=True, on_update=count,
        )  # fmt: skip
        found = []
        for unit, result, size in zip(units, results, control.best.tolist(), strict=True):
            values: dict[str, float | int | bool | str | None] = {
                "size": size if result.reached else None,
                "reached": result.reached,
                "attack_success_rate": model.success_rate(result.trigger, held_out),
                "updates": result.updates,
                "passes": result.passes,
            }
            found.append(Evidence(self.name, unit.key, unit.target, None, values, result.trigger))
        return found

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outlier among log sizes; a class whose trigger never worked has an infinite one."""
        sizes = [e.values["size"] for e in evidence]
        logs = [math.inf if s is None else math.log(max(float(s), 1e-12)) for s in sizes]

        def message(e: Evidence, flagged: bool, median: float) -> str:
            number = e.values["size"]
            size = f"{math.inf if number is None else float(number):.3g} {UNIT[self.family]}"
            usual = f"the median class needs {math.exp(median):.3g}"
            if not flagged:
                return f"no class is an outlier; the smallest {self.family} trigger has {size}, {usual}"
            rate = min(float(e.values["attack_success_rate"] or 0), 0.999)
            return f"a {self.family} trigger of {size} sends {rate:.1%} of held-out samples here; {usual}"

        return outlier_findings(self, evidence, logs, alpha, classes, message)
