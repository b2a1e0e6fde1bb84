"""Maximum Margin, MM-BD (Wang et al., IEEE S&P 2024): the largest margin that random images reach.

For every class c the margin r_c = max_{x in [0,1]^d} g_c(x) - max_{k != c} g_k(x) of the logits g is
searched for by gradient ascent from random images; no sample is needed. A backdoor target has been
taught to win against every other class at once, and its margin is an outlier.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.engine.precision import bfloat16
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import margin
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit, units_in_a_pass
from backsweep.scanning.outliers import outlier_findings

PRESETS = ("standard", "paper")
PAPER_LR, PAPER_MOMENTUM, PAPER_STOP = 1e-2, 0.2, 1e-5  # of the authors' code
LR = 0.2  # the first step of `standard` moves the pixel with the largest gradient by so much
LEAST_SPREAD = 0.1  # robust sigma of the log margins of clean nets: docs/methods/mm-bd.md


@dataclass(frozen=True)
class MmBd(ModelDetector):
    """Screens a model without data: the class whose margin can be made largest.

    Attributes:
        preset: "paper" is the authors' search and their gamma test (30 images, at most 300 steps of
            gradient ascent, float32); "standard" ascends from fewer images with normalised steps that
            get shorter, and judges by the outlier test of the other detectors.
        images: random images of a class; None: 30 and 8.
        steps: most steps (paper) or steps (standard); None: 300 and 70.
    """

    name: ClassVar[str] = "mm_bd"
    summary: ClassVar[str] = "largest margin per class, without data (MM-BD, 2024)"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    code: ClassVar[str] = "BSW102"

    preset: str = "standard"
    images: int | None = None
    steps: int | None = None

    def applies(self, model: Model, data: Data) -> str:
        return "" if model.modality.smooth else f"{model.modality.noun}s cannot be moved by gradients"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if any(n is not None and n < 1 for n in (self.images, self.steps)):
            raise ValueError("images and steps are at least 1")

    @property
    def _size(self) -> tuple[int, int]:
        """Images and steps."""
        images, steps = (30, 300) if self.preset == "paper" else (8, 70)
        return self.images or images, self.steps or steps

    def chunk(self, model: Model) -> int:
        return units_in_a_pass(model, self._size[0])

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        images, _ = self._size
        drawn = [
            model.modality.random(images, model.shape, torch.Generator().manual_seed(s))
            for s in (derive_seed(seed, self.name, u.key) for u in units)
        ]
        goals = [u.target for u in units if u.target is not None]
        margins, steps = self._ascend(model, torch.stack(drawn).to(model.device), goals, tick)
        found = []
        for unit, reached, used in zip(units, margins, steps.tolist(), strict=True):
            values: dict[str, float | int | bool | str | None] = {
                "margin": float(reached.max()),
                "mean_margin": float(reached.mean()),
                "steps": int(used),
                "passes": int(used) * images,
            }
            found.append(Evidence(self.name, unit.key, unit.target, None, values))
        return found

    def _ascend(
        self, model: Model, x: Tensor, goals: Sequence[int], tick: Callable[[float], None]
    ) -> tuple[Tensor, Tensor]:
        """Drive x (units, images, *shape) to large margins: margins (units, images), steps (units,)."""
        (images, steps), paper = self._size, self.preset == "paper"
        goal = torch.tensor(goals, device=x.device)
        margins, used = torch.zeros(x.shape[:2]), torch.zeros(len(x), dtype=torch.long)
        velocity, live = torch.zeros_like(x), torch.arange(len(x))
        last = torch.full((len(x),), 1000.0)
        for k in range(steps):
            here = x[live].requires_grad_()
            with bfloat16(x.device.type, not paper):
                logits = model.logits(model.modality.clip(here).flatten(0, 1))
            reached = margin(logits.float(), goal[live].repeat_interleave(images)).unflatten(0, (-1, images))
            (grad,) = torch.autograd.grad(reached.sum(), here)
            used[live] += 1
            if paper:
                margins[live] = reached.detach().cpu()
                velocity[live] = PAPER_MOMENTUM * velocity[live] + grad
                x[live] = here.detach() + PAPER_LR * velocity[live]
                loss = -margins[live].sum(1)
                stopped = (last[live] - loss).abs() / last[live].abs() < PAPER_STOP
                last[live] = loss
                live = live[~stopped]
            else:
                longest = grad.flatten(2).abs().amax(2).clamp_min(1e-20)
                longest = longest.reshape(*x.shape[:2], *[1] * len(model.shape))
                x = model.modality.clip(here.detach() + LR * (1 - k / steps) * grad / longest)
            if k % 10 == 9:
                tick((k + 1) / steps)
            if len(live) == 0:
                break
        if not paper:
            with torch.no_grad():
                final = margin(model.logits(x.flatten(0, 1)), goal.repeat_interleave(images))
            margins = final.unflatten(0, (-1, images)).cpu()
        return margins, used

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outlier among log margins; with the preset "paper" the authors' gamma test instead."""
        margins = [float(e.values["margin"] or 0) for e in evidence]
        p = gamma_p(margins)
        if self.preset == "paper":
            return [self._paper_finding(evidence[int(np.argmax(margins))], p, margins, alpha)]

        def details(e: Evidence) -> Mapping[str, float]:
            known = {"margin": float(e.values["margin"] or 0), "median_margin": float(np.median(margins))}
            return known if p is None else {**known, "paper_p": p}

        values = [-math.log(r) if r > 0 else math.inf for r in margins]
        return outlier_findings(
            self, evidence, values, alpha, classes, _message, least_spread=LEAST_SPREAD, details=details
        )

    def _paper_finding(self, e: Evidence, p: float | None, margins: Sequence[float], alpha: float) -> Finding:
        if p is None:
            text = "cannot tell: a gamma distribution cannot be fitted to the margins of so few classes"
            return Finding(self.code, self.name, WARNING, text, e.target, score=0.0)
        level = ERROR if p < alpha else NOTE
        details = {"margin": max(margins), "median_margin": float(np.median(margins)), "paper_p": p}
        text = _message(e, level == ERROR, -math.log(max(float(np.median(margins)), 1e-12)))
        return Finding(
            self.code, self.name, level, text, e.target,
            score=-math.log10(max(p, 1e-300)), threshold=-math.log10(alpha), p_value=p, details=details,
        )  # fmt: skip


def gamma_p(margins: Sequence[float]) -> float | None:
    """1 - F(r_max)^K, F the gamma distribution fitted to all margins but the largest; None: no fit."""
    from scipy.stats import gamma

    ordered = np.sort(np.asarray(margins, dtype=np.float64))
    if len(ordered) < 4 or ordered[0] == ordered[-2] or not np.isfinite(ordered).all():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, loc, scale = gamma.fit(ordered[:-1])
            log_f = float(gamma.logcdf(ordered[-1], shape, loc=loc, scale=scale))
    except (RuntimeError, ValueError):  # scipy's FitError is one of these
        return None
    p = -math.expm1(len(ordered) * log_f) if log_f > -math.inf else 1.0
    return p if 0 <= p <= 1 else None


def _message(e: Evidence, flagged: bool, median: float) -> str:
    """What is found about a class, in a sentence; `median` is minus the log of the median margin."""
    reached, usual = float(e.values["margin"] or 0), math.exp(-median)
    if flagged:
        return f"random images reach a margin of {reached:.1f} for this class, the median class {usual:.1f}"
    return f"no class is an outlier; the largest margin is {reached:.1f}, the median class has {usual:.1f}"
