"""CEPA (Yang et al., arXiv 2402.02034): one consensus shift of an embedding for each class, and an outlier.

A reconstruction: the paper's text was not at hand, so the objective is read from its abstract and
from summaries. Inputs may change in any way, each by a delta_i of its own; what is asked is that they
shift the embedding z of a layer by one mu. A class that a small mu reaches is a backdoor target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.core.statistics import without_medians
from backsweep.inputs.image.triggers import SampleWise
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import Aim, Embedded, follow
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit, units_in_a_pass
from backsweep.scanning.outliers import outlier_findings

PRESETS, MODES = ("standard", "paper"), ("class", "pair")
INNER, UP, LAMBDA_1 = 3, 1.5, 1e-3  # steps of delta per step of mu; factor of lambda; weight of ||delta||^2
KEPT = 8  # pairs of inputs that are kept to be drawn

# Chosen on networks that nothing is judged on; docs/methods/cepa.md shows the measurements.
LEAST_SPREAD = {"class": 0.15, "pair": 0.2}
ROUNDS = {"standard": 20, "paper": 60}  # steps of mu
SAMPLES = {"standard": 16, "paper": 32}  # inputs with a delta of their own, of a unit


@dataclass(frozen=True)
class Cepa(ModelDetector):
    """Finds triggers of any shape that shift an embedding of all inputs alike.

    Attributes:
        preset: "standard" follows mu alone along growing budgets at two early layers and then
            finds a delta for each of a few inputs; "paper" alternates mu and delta at the
            penultimate layer, our reconstruction of the authors' method.
        mode: "class": a unit for each target; "pair": for each source and target.
        per_class: clean samples of a class that are used.
        layer: the layer f, the index of an affine operation (`Model.layers`); None: automatic.
        threshold: pi, the share of inputs that must reach the target.
        steps: budgets of mu (standard) or rounds of mu and delta (paper); None: 30 and 60.
    """

    name: ClassVar[str] = "cepa"
    summary: ClassVar[str] = "consensus shift of an embedding per class, outlier (CEPA, 2024)"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "layers")
    code: ClassVar[str] = "BSW103"

    preset: str = "standard"
    mode: str = "class"
    per_class: int = 10
    layer: int | None = None
    threshold: float = 0.9
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS or self.mode not in MODES:
            raise ValueError(f"preset is one of {', '.join(PRESETS)}, mode one of {', '.join(MODES)}")
        least = self.per_class >= 1 and (self.layer or 0) >= 0 and (self.steps or 2) >= 2
        if not (least and 0 < self.threshold <= 1):
            raise ValueError("threshold in (0, 1], per_class 1 or more, layer 0 or more, steps 2 or more")

    def applies(self, model: Model, data: Data) -> str:
        if not model.modality.grid:
            return f"the triggers of its samples are of images, and the model takes {model.modality.noun}s"
        layer, layers = self.layer or 0, model.layers()
        return "" if layer < layers else f"no layer {layer}: the network has {layers} before its head"

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        pairs = [(s, t) for s in sorted(set(data.y.tolist())) for t in range(model.classes) if s != t]
        pair = [Unit(f"class-{s}-to-{t}", t, s) for s, t in pairs]
        return pair if self.mode == "pair" else super().units(model, data)

    def chunk(self, model: Model) -> int:
        return units_in_a_pass(model, SAMPLES["paper"])

    def layers(self, model: Model) -> list[int | None]:
        """The layers f, by index; None is the penultimate representation."""
        if self.layer is not None:
            return [self.layer]
        return [None] if self.preset == "paper" else [*sorted({0, model.layers() // 3})]

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        clean, held_out = data.split(derive_seed(seed, "split"))
        few = clean.sample(self.per_class * model.classes, derive_seed(seed, self.name))
        aims = [Aim(u.target, u.source, derive_seed(seed, self.name, u.key)) for u in units]
        drawn = [few[a.rows(few.y)].sample(SAMPLES[self.preset], a.seed) for a in aims]
        layers = self.layers(model)
        shifts: list[list[tuple[Tensor, bool]]] = [[] for _ in units]  # mu, and whether it works
        passes = [0] * len(units)
        for n, layer in enumerate(layers if self.preset == "standard" else []):
            space, steps = Embedded(layer or 0), self.steps or 30
            for i, p in enumerate(follow(model, few.x, few.y, aims, space, steps=steps, bf16=False)):
                shifts[i].append((p.delta, p.success >= self.threshold))
                passes[i] += p.passes
            tick((n + 1) / (len(layers) + 1))
        rounds = ROUNDS["standard"] if self.preset == "standard" else self.steps or ROUNDS["paper"]
        start = torch.stack([s[0][0] for s in shifts]) if shifts[0] else None
        targets = [a.target or 0 for a in aims]
        found = alternate(model, drawn, targets, layers[0], start, rounds, self.threshold)
        tick(1.0)
        z, evidence = [embeddings(model, few.x, f) for f in layers], []
        for i, (unit, (moved, delta, won)) in enumerate(zip(units, found, strict=True)):
            mine = shifts[i] or [(moved.mean(0), won >= self.threshold)]
            sizes = [relative(mu, e, few.y, unit) for (mu, _), e in zip(mine, z, strict=True)]
            trigger = SampleWise(unit.target, unit.source, drawn[i].x[:KEPT], delta[:KEPT], delta.mean(0))
            values: dict[str, float | int | bool | str | None] = {
                "mu": float(mine[0][0].norm()),
                "reach": math.prod(r for r, _ in sizes) ** (1 / len(sizes)),
                "reached": all(works for _, works in mine),
                "r1": sizes[0][1],
                "r2": float(delta.flatten(1).norm(dim=1).mean()),
                "r3": residual_share(moved),
                "won": won,
                "attack_success_rate": model.success_rate(trigger, held_out),
                "samples": len(delta),
                "passes": passes[i] + INNER * rounds * len(delta),
            }
            evidence.append(Evidence(self.name, unit.key, unit.target, unit.source, values, trigger))
        return evidence

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Outliers among the logarithms of `reach`; of pairs, after the sources' and targets' medians."""
        reach = [float(e.values["reach"] or 0) if e.values["reached"] else math.inf for e in evidence]
        logs = np.log(np.maximum(reach, 1e-12))
        if self.mode == "pair":
            logs = without_medians(logs, [e.source or 0 for e in evidence], [e.target or 0 for e in evidence])

        def message(e: Evidence, flagged: bool, median: float) -> str:
            who = f"class {e.target}" + ("" if e.source is None else f" from class {e.source}")
            size = f"a common shift of the embedding by {float(e.values['reach'] or 0):.3f} of the way to it"
            return (
                f"{who} is reached by {size}, others are not"
                if flagged
                else f"no outlier; {who} needs {size}"
            )

        return outlier_findings(
            self, evidence, logs.tolist(), alpha, len(evidence), message,
            least_spread=LEAST_SPREAD[self.mode],
            details=lambda e: {k: float(e.values[k] or 0) for k in ("mu", "r1", "r2", "r3", "won")},
        )  # fmt: skip


@torch.no_grad()
def embeddings(model: Model, x: Tensor, layer: int | None) -> Tensor:
    """z of inputs (N, C, H, W), flat, on the CPU."""
    parts = [model.logits_and_embedded(p.to(model.device), layer)[1].flatten(1) for p in x.split(256)]
    return torch.cat(parts).float().cpu()


def relative(mu: Tensor, z: Tensor, y: Tensor, unit: Unit) -> tuple[float, float]:
    """||mu|| over the mean distance of the unit's z from the target's mean, and r1: over z's from its own."""
    spread = (z - z.mean(0)).norm(dim=1).mean()
    goal = z[y == unit.target]
    away = z[Aim(unit.target, unit.source, 0).rows(y)] - (goal if len(goal) else z).mean(0)
    way = away.norm(dim=1).mean()
    return float(mu.norm() / way.clamp_min(1e-12)), float(mu.norm() / spread.clamp_min(1e-12))


def alternate(
    model: Model, drawn: Sequence[Data], targets: Sequence[int], layer: int | None,
    start: Tensor | None, rounds: int, threshold: float,
) -> list[tuple[Tensor, Tensor, float]]:  # fmt: skip
    """Minimise J over delta and mu in turn: for each unit its shifts (N, D), deltas, and share won.

    J = mean_i CE(t, f(x_i + delta_i)) + lambda mean_i ||z(x_i + delta_i) - z(x_i) - mu||^2 / s^2
        + lambda_1 mean_i ||delta_i||^2                s: mean distance of z from its mean

    `start` is a mu to begin with, which is kept for the first half of the rounds. The round counts
    that won `threshold` of the inputs with the smallest residual, or else the one that won most.
    """
    device, count = model.device, len(drawn)
    x = torch.cat([d.x for d in drawn]).to(device)
    goal = torch.cat([torch.full((len(d),), t) for d, t in zip(drawn, targets, strict=True)]).to(device)
    unit = torch.repeat_interleave(torch.tensor([len(d) for d in drawn])).to(device)
    with torch.no_grad():
        z = model.logits_and_embedded(x, layer)[1].float().flatten(1)
        scale = mean_of((z - mean_of(z, unit, count)[unit]).norm(dim=1), unit, count).clamp_min(1e-6)
    mu = torch.zeros(count, z.shape[1], device=device) if start is None else start.to(device).flatten(1)
    delta = torch.zeros_like(x, requires_grad=True)
    weight = torch.full((count,), 0.1, device=device)  # lambda
    adam = torch.optim.Adam([delta], lr=0.05, betas=(0.5, 0.9))
    best, kept = torch.full((count,), torch.inf, device=device), delta.detach().clone()
    for k in range(INNER * rounds + 1):
        logits, after = model.logits_and_embedded(x + delta, layer)
        shift = after.float().flatten(1) - z
        if k % INNER == 0:
            with torch.no_grad():
                average = mean_of(shift, unit, count)
                if start is None or 2 * k >= INNER * rounds:
                    mu = average
                won = mean_of((logits.argmax(1) == goal).float(), unit, count)
                rest = mean_of((shift - average[unit]).square().sum(1), unit, count)
                rank = torch.where(won >= threshold, rest, 1e20 * (2 - won))
                better = rank < best
                best = torch.minimum(rank, best)
                kept = torch.where(better[unit].reshape(-1, *[1] * (delta.ndim - 1)), delta, kept)
                weight = next_lambda(weight, won, threshold)
        residual = (shift - mu[unit]).square().sum(1) / scale[unit].square()
        cost = F.cross_entropy(logits.float(), goal, reduction="none") + weight[unit] * residual
        cost = cost + LAMBDA_1 * delta.flatten(1).square().sum(1)
        (delta.grad,) = torch.autograd.grad(mean_of(cost, unit, count).sum(), delta)
        adam.step()
        with torch.no_grad():
            delta.copy_(model.modality.clip(x + delta) - x)
    with torch.no_grad():
        logits, after = model.logits_and_embedded(x + kept, layer)
        hit, shift = (logits.argmax(1) == goal).float(), after.float().flatten(1) - z
    parts = [torch.nonzero(unit == u).flatten() for u in range(count)]
    return [(shift[p].cpu(), kept[p].cpu(), float(hit[p].mean())) for p in parts]


def mean_of(values: Tensor, unit: Tensor, count: int) -> Tensor:
    """Means by unit, (M, ...) and units (M,) -> (count, ...). Of shifts it is the mu that minimises J."""
    total = torch.zeros(count, *values.shape[1:], device=values.device).index_add(0, unit, values)
    return total / torch.bincount(unit, minlength=count).reshape(-1, *[1] * (values.ndim - 1))


def next_lambda(weight: Tensor, won: Tensor, threshold: float) -> Tensor:
    """Up while enough inputs are won, else down; both (units,)."""
    return torch.where(won >= threshold, weight * UP, weight / UP)


def residual_share(shift: Tensor) -> float:
    """r3 = mean_i ||shift_i - mu||^2 / ||mu||^2 for shifts (N, D); 0 when all of them agree."""
    mu = shift.mean(0)
    return float((shift - mu).square().sum(1).mean() / mu.square().sum().clamp_min(1e-20))
