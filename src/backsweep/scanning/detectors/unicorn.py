"""UNICORN (Wang, Mei, Zhai, Ma, ICLR 2023): a trigger in a space that is learnt, for each class.

Two U-Nets P and Q lead into a space and back, and the trigger is a mask and a pattern there:

    x~ = Q((1 - m) * P(x) + m * t)        Q(P(x)) near x

For every class the four are searched for so that x~ is sent there under constraints (stealth, a small
mask, few features that suffice). How much such a trigger must change an input before it works is the
number of the class; a class that needs much less than the others is suspected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.learned_space import Transformed, unet, unet_weights
from backsweep.inputs.samples import Data
from backsweep.inversion.learned_space import BETAS, SHARE, SPREAD, STEALTH, SUCCESS, Search, Weights
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit
from backsweep.scanning.head import why_no_head
from backsweep.scanning.outliers import outlier_findings

PRESETS = {  # filters, blocks, pre-training passes, batch, steps, inner steps
    "standard": (8, 2, 120, 16, 28, 4),
    "paper": (32, 4, 500, 256, 1000, 10),
}
EPOCH = 4  # updates of the U-Nets between two looks at the weights, standard preset
WATCHED = 64  # held-out samples that an epoch is measured on
# Chosen on networks that nothing is judged on; docs/methods/unicorn.md says what was tried.
LACK = 1.5  # what a trigger that never works counts for, in units of log change
LEAST_SPREAD = 0.15  # of the need among the classes of a clean network
_identity: dict[tuple[object, ...], list[Tensor]] = {}  # the last pair of U-Nets, see `_identity_nets`


def need(measured: Mapping[str, float]) -> float:
    """log ||x~ - x||_2 + LACK * max(0.9 - success, 0) / 0.9: the change, and what it lacks to work."""
    lack = max(SUCCESS - measured["success"], 0) / SUCCESS
    return math.log(max(measured["change"], 1e-12)) + LACK * lack


def constrained(measured: Mapping[str, float]) -> bool:
    """The paper's rule: under all bounds at once, the features of m' alone make it work."""
    bounds = {"dissimilarity": STEALTH, "spread": SPREAD, "mask_share": SHARE, "feature_share": SHARE}
    return measured["mixed_success"] > SUCCESS and all(measured[k] <= v for k, v in bounds.items())


def batches(rows: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless full batches of rows, shuffled anew in every pass; of fewer rows than that, all of them."""
    while True:
        order = rows[torch.randperm(len(rows), generator=generator)]
        for part in order.split(batch):
            if len(part) == min(batch, len(rows)):
                yield part


@dataclass(frozen=True)
class Unicorn(ModelDetector):
    """Finds triggers of any kind that a pair of small networks can express, with one target class.

    Attributes:
        preset: "paper" has the authors' networks and length; "standard" is small enough for one core.
        filters, blocks: of the U-Nets (filters of the top level, levels below it).
        pretrain: passes in which the U-Nets learn the identity, once for all classes: over the data
            (paper), of a batch each (standard).
        batch: inputs in an update.
        steps: epochs (paper), or updates of the U-Nets (standard), of a class.
        inner: updates of m and t, and of m', after each one of the U-Nets.

    What is None comes from the preset.
    """

    name: ClassVar[str] = "unicorn"
    summary: ClassVar[str] = "trigger in a learnt space per class, outlier among classes (UNICORN, 2023)"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "layers")
    code: ClassVar[str] = "BSW104"

    preset: str = "standard"
    filters: int | None = None
    blocks: int | None = None
    pretrain: int | None = None
    batch: int | None = None
    steps: int | None = None
    inner: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        given = (self.filters, self.blocks, self.pretrain, self.batch, self.steps, self.inner)
        if any(n is not None and n < 1 for n in given):
            raise ValueError("filters, blocks, pretrain, batch, steps and inner are at least 1")

    def _numbers(self) -> tuple[int, ...]:
        given = (self.filters, self.blocks, self.pretrain, self.batch, self.steps, self.inner)
        return tuple(n or m for n, m in zip(given, PRESETS[self.preset], strict=True))

    def applies(self, model: Model, data: Data) -> str:
        if not model.modality.grid:
            return f"its networks transform maps (C, H, W), and the model takes {model.modality.noun}s"
        reason = why_no_head(model)
        return f"{reason}; features of two inputs cannot be mixed" if reason else ""

    def _identity_nets(self, model: Model, data: Data, clean: Data, seed: int) -> list[Tensor]:
        """P and Q with Q(P(x)) near x. They hang on nothing of a class, so the last pair is kept."""
        filters, blocks, passes, batch, *_ = self._numbers()
        key = (data.digest, seed, filters, blocks, passes, batch, self.preset, str(model.device))
        if key not in _identity:
            generator = self.generator(seed, "identity")
            channels, size = model.shape[0], (filters, blocks)
            nets = [unet_weights(channels, *size, generator).to(model.device) for _ in range(2)]
            paper = self.preset == "paper"
            optimiser = torch.optim.Adam([w.requires_grad_() for w in nets], 1e-3 if paper else 3e-3, BETAS)
            order = batches(torch.arange(len(clean)), batch, generator)
            for _ in range(passes * (max(1, len(clean) // batch) if paper else 1)):
                x = clean.x[next(order)].to(model.device)
                back = unet(nets[1], unet(nets[0], x, *size), *size)
                optimiser.zero_grad()
                F.mse_loss(back, x).backward()
                optimiser.step()
            _identity.clear()
            _identity[key] = [w.detach() for w in nets]
        return _identity[key]

    def _search(
        self, model: Model, clean: Data, watched: Tensor, nets: Sequence[Tensor], target: int, seed: int
    ) -> Iterator[tuple[float, Transformed, dict[str, float]]]:
        """Share done, trigger and measured values of one class, epoch after epoch."""
        filters, blocks, _, batch, steps, inner = self._numbers()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.nonzero(clean.y != target).flatten()
        with torch.no_grad():
            features = torch.cat([model.features(x.to(model.device)) for x in clean.x.split(256)])
        own = features[clean.y == target]
        anchor = own.mean(0) if len(own) else torch.zeros_like(features[0])
        search = Search(model, nets, (filters, blocks), target)
        epoch = max(1, len(rows) // batch) if self.preset == "paper" else EPOCH
        updates = steps * epoch if self.preset == "paper" else steps
        order, seen = batches(rows, batch, generator), []
        for k in range(1, updates + 1):
            drawn = next(order)
            other = features[drawn[torch.randperm(len(drawn), generator=generator)]]
            seen.append(search.step(clean.x[drawn].to(model.device), other, anchor, inner))
            if k % epoch == 0 or k == updates:
                success, stealth, spread = (sum(v) / len(seen) for v in zip(*seen, strict=True))
                search.w = Weights(
                    max(SUCCESS - success, 0) / SUCCESS, max(stealth - STEALTH, 0) / STEALTH,
                    max(spread - SPREAD, 0) / SPREAD,
                )  # fmt: skip
                seen, trigger = [], search.trigger(watched)
                yield k / updates, trigger, search.measure(trigger, watched)

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        clean, held_out = data.split(derive_seed(seed, "split"))
        nets = self._identity_nets(model, data, clean, seed)
        found = []
        for i, unit in enumerate(units):
            own, target = derive_seed(seed, self.name, unit.key), int(unit.target or 0)
            rows = torch.nonzero(held_out.y != target).flatten()
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(own))]
            count = max(1, min(WATCHED, len(rows) // 2))
            watched = held_out.x[rows[:count]].to(model.device)
            rest = held_out[rows[count:] if count < len(rows) else rows]
            track = self._search(model, clean, watched, nets, target, own)
            _, trigger, measured = next(track)
            met = constrained(measured)
            for share, other, there in track:
                tick((i + share) / len(units))
                met |= constrained(there)
                if need(there) < need(measured):
                    trigger, measured = other, there
            values: dict[str, float | int | bool | str | None] = {
                "need": need(measured), **measured,
                "attack_success_rate": model.success_rate(trigger, rest),
                "constrained": met,
            }  # fmt: skip
            found.append(Evidence(self.name, unit.key, unit.target, None, values, trigger))
        return found

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Outliers among the needs; how many classes meet the paper's rule stands in the details."""
        needs = [float(e.values["need"] or 0) for e in evidence]
        count = float(sum(bool(e.values["constrained"]) for e in evidence))

        def details(e: Evidence) -> dict[str, float]:
            names = ("change", "dissimilarity", "mixed_success", "mask_share", "feature_share")
            return {"constrained_classes": count, **{k: float(e.values[k] or 0) for k in names}}

        return outlier_findings(
            self, evidence, needs, alpha, classes, self._message, least_spread=LEAST_SPREAD, details=details
        )

    def _message(self, e: Evidence, flagged: bool, median: float) -> str:
        change, rate = float(e.values["change"] or 0), float(e.values["attack_success_rate"] or 0)
        what = f"changes of length {change:.1f} send {min(rate, 0.999):.1%} of held-out samples to this class"
        others = f"the median class needs about {math.exp(median):.1f}"
        return f"{what}; {others}" if flagged else f"no class is an outlier; {what}, {others}"
