"""Neural Cleanse (Wang et al., IEEE S&P 2019): the smallest patch for each class, and an outlier.

For every class t the smallest patch (m, Delta) that sends other classes to t is reverse-engineered
(equations 2 and 3); a class whose patch is much smaller than the others' is a backdoor target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from backsweep.core.seeds import derive_seed
from backsweep.core.statistics import anomaly_index, center_and_spread, chance_of_index, index_at
from backsweep.inputs.samples import Data
from backsweep.inversion.loop import Control, PaperControl, SmoothControl, invert
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.cascade.screens import jobs_of, unit_name, units_of
from backsweep.scanning.detector import ModelDetector, Unit, units_in_a_pass

PRESETS = ("standard", "paper")

# Chosen on networks that nothing is judged on; docs/decisions/0004 shows the measurements.
LEAST_SPREAD = 0.25  # log norms of clean nets spread about so much; less is an accident of few classes
PLANTED_RATIO = 0.2  # norm of a planted patch over the median norm, as it is on most nets
PATCH_AREA = 0.4  # effective area over the median's: planted patches at most 0.30, faint veils 0.62 and more


@dataclass(frozen=True)
class NeuralCleanse(ModelDetector):
    """Finds small patches with one target class.

    Attributes:
        preset: "paper" runs the authors' control loop to the letter (lambda from 0, patience 5,
            times 2 and divided by 2.83, early stop, at most 1000 steps of 31 updates of 32 inputs,
            float32); "standard" moves lambda smoothly and needs about 200 updates of 24 inputs.
        threshold: attack success rate that a trigger must reach while it is optimised.
        steps: most steps (paper) or updates (standard) of a class; None: 1000 and 200.
        batch: inputs in an update; None: 32 and 24.
    """

    name: ClassVar[str] = "neural_cleanse"
    summary: ClassVar[str] = "smallest patch per class, outlier among classes (Neural Cleanse, 2019)"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    code: ClassVar[str] = "BSW101"
    threads: ClassVar[bool] = True

    preset: str = "standard"
    threshold: float = 0.99
    steps: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is not in (0, 1]")
        if any(n is not None and n < 1 for n in (self.steps, self.batch)):
            raise ValueError("steps and batch are at least 1")

    def chunk(self, model: Model) -> int:
        return units_in_a_pass(model, self.batch or 32)

    def _control(self, count: int) -> tuple[Control, int, int, bool]:
        """Control, updates, batch and whether bfloat16 may be used."""
        if self.preset == "paper":
            paper = PaperControl(count, threshold=self.threshold)
            return paper, (self.steps or 1000) * paper.period, self.batch or 32, False
        return SmoothControl(count, threshold=self.threshold), self.steps or 200, self.batch or 24, True

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        clean, held_out = data.split(derive_seed(seed, "split"))
        control, updates, batch, bf16 = self._control(len(units))
        jobs = jobs_of(units, clean.y, seed, self.name)
        done = [0]

        def count(_live: int) -> None:
            done[0] += 1
            if done[0] % 10 == 0:
                tick(done[0] / updates)

        results = invert(
            model, clean.x, jobs, model.modality.patch(), control,
            updates=updates, batch=batch, bf16=bf16, on_update=count,
        )  # fmt: skip
        found = []
        for unit, result in zip(units, results, strict=True):
            values: dict[str, float | int | bool | str | None] = {
                "norm": result.trigger.size,
                "reached": result.reached,
                "attack_success_rate": model.success_rate(result.trigger, held_out),
                "updates": result.updates,
                "passes": result.passes,
                **units_of(model),
            }
            found.append(Evidence(self.name, unit.key, unit.target, None, values, result.trigger))
        return found

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Outliers among the logarithms of the norms; the paper's own index beside them.

        A class whose trigger never worked has a norm "larger than could be measured", not the norm
        of the last attempt.
        """
        norms = [float(e.values["norm"] or 0) if e.values["reached"] else math.inf for e in evidence]
        logs = np.log(np.maximum(norms, 1e-12))
        index = anomaly_index(logs.tolist(), LEAST_SPREAD)
        chances = [chance_of_index(i, classes, floored=True) for i in index]
        threshold = index_at(alpha, classes, floored=True)
        median, spread = (float(v[0]) for v in center_and_spread(logs, LEAST_SPREAD))
        paper = anomaly_index([float(e.values["norm"] or 0) for e in evidence])
        order = sorted(range(len(evidence)), key=lambda i: -index[i])
        flagged = [i for i in order if chances[i] <= alpha]
        findings = []
        for i in flagged or order[:1]:
            e = evidence[i]
            doubt = self._doubt(e, bool(flagged), threshold, median, spread, evidence)
            level = WARNING if doubt else ERROR if flagged else NOTE
            details = {
                "paper_index": float(paper[i]),
                "paper_index_chance": chance_of_index(paper[i], classes),
            }
            if math.isfinite(median):
                details |= {"median_norm": math.exp(median), "spread": spread}
            if threshold is not None and math.isfinite(median):
                details["norm_threshold"] = math.exp(median - threshold * spread)
            findings.append(Finding(
                self.code, self.name, level, doubt or self._message(e, bool(flagged), median), e.target,
                score=float(index[i]), threshold=threshold,
                p_value=None if threshold is None else chances[i], trigger=e.trigger,
                attack_success_rate=float(e.values["attack_success_rate"] or 0), details=details,
            ))  # fmt: skip
        return findings

    def _doubt(
        self, e: Evidence, flagged: bool, threshold: float | None, median: float, spread: float,
        evidence: Sequence[Evidence],
    ) -> str:  # fmt: skip
        """Why this cannot be told either way; "" when it can."""
        if threshold is None:
            return (
                "cannot tell: with 2 classes both norms are equally far from their median (the paper's "
                "index is always 0.67), so this test can never fire"
            )
        if not math.isfinite(median):
            return "cannot tell: most classes have no working trigger at all"
        areas = [a for x in evidence if x.trigger is not None and (a := x.trigger.area) is not None]
        area, unit = e.trigger.area if e.trigger is not None else None, unit_name(e)
        if flagged and area is not None and area > PATCH_AREA * np.median(areas):
            return (
                f"cannot tell: class {e.target} has an unusually small trigger, but it is a faint veil over "
                f"{area:.0f} {unit} (the median class: {np.median(areas):.0f}) and no patch; clean "
                "networks have such triggers by nature"
            )
        if not flagged and math.exp(-threshold * spread) < PLANTED_RATIO:
            norms = [float(x.values["norm"] or 0) for x in evidence if x.values["reached"]]
            return (
                f"cannot tell: the classes of this network need triggers of very different sizes "
                f"({min(norms):.1f} to {max(norms):.1f} {unit}); class {e.target} has the smallest, and a "
                "planted one would not stand out"
            )
        return ""

    def _message(self, e: Evidence, flagged: bool, median: float) -> str:
        """What is found about a class, in a sentence."""
        unit = unit_name(e)
        if flagged:
            rate = min(float(e.values["attack_success_rate"] or 0), 0.999)
            return (
                f"a patch of {e.values['norm']:.1f} {unit} sends {rate:.1%} of held-out samples to "
                f"this class; the median class needs {math.exp(median):.1f}"
            )
        return (
            f"no class is an outlier; the smallest trigger has {e.values['norm']:.1f} {unit}, the "
            f"median class needs {math.exp(median):.1f}"
        )
