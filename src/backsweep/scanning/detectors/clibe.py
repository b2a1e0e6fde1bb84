"""CLIBE (Zeng et al., NDSS 2025): a small change of weights that moves a few samples, and how far it carries.

For every class t a perturbation of some weights W is learned on a few samples of other classes,

    min over D of  mean log(1 + exp(-m_t(x; W + D)))     with |D_l| <= radius |W_l| for every weight l,

where m_t = logit_t - max of the other logits. Then W + D is asked about held-out samples of other classes.
A backdoor is a way to t that all inputs share: the perturbation switches it on and all samples move alike.
No trigger is searched for, so that a style or a syntax is no harder than a word, and nothing is asked of the
input: texts, images, rows and sounds are all the same to it.

The paper judges by the entropy of the held-out margins. The standard preset follows D from 0 on, W + s D, and
asks how small a share s radius of the norm wins each held-out sample; what a class needs less than the others
do is its score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import margin
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.calibration import threshold_of
from backsweep.scanning.detector import ModelDetector, Unit

PRESETS = ("standard", "paper")
ATTENTION = re.compile(
    r"(?i)att(entio)?n|(^|\.)(qkv|query|key|value|out|[qkvo](_proj|_lin)?|(in|out)_proj\w*)\."
)
ASKS = re.compile(
    r"(?i)(^|\.)(qkv|query|q(_proj|_lin)?|in_proj\w*|c_attn)(\.|_|$)"
)  # where there is attention
MOST = {True: 16, False: 4}  # weights that are changed, of attention and of other networks; the middle ones
RATE = 0.05  # of Adam, in units of the root mean square of a weight
PACE, SCALES = 0.7, 10  # the shares of D that are tried are powers of PACE, the smallest PACE ** (SCALES - 1)
HELD_OUT = 256  # samples that the perturbed network is asked about
WIDTH = 1.0  # of a bin of the entropy, in logits
USUAL = {"standard": (0.28, 0.5), "paper": (-0.5, -1.5)}  # least score of a flagged class: 2 classes, more


@dataclass(frozen=True)
class Clibe(ModelDetector):
    """Says how far a perturbation of weights, learned on a few samples, carries over to others.

    Attributes:
        preset: "paper" scores the entropy of the held-out margins, "standard" how small a change is enough.
        radius: largest norm of the change of a weight, a share of the norm of the weight.
        shots: samples of other classes that it is learned on.
        steps: updates of Adam.
        draws: how many times, each from other samples; the mean counts.
        least: least score of a flagged class; None: what a network of another kind exceeds with chance alpha,
            where clean networks of many kinds are known, else `USUAL`, and an alarm is "cannot tell".
    """

    name: ClassVar[str] = "clibe"
    summary: ClassVar[str] = "does a few-shot change of weights carry over? (CLIBE, 2025)"
    code: ClassVar[str] = "BSW122"

    preset: str = "standard"
    radius: float = 0.3
    shots: int = 16
    steps: int = 30
    draws: int = 2
    least: float | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if min(self.shots, self.steps, self.draws) < 1 or self.radius <= 0:
            raise ValueError("shots, steps and draws are at least 1, and the radius is above 0")

    @property
    def cautious(self) -> bool:
        return self.least is None

    def applies(self, model: Model, data: Data) -> str:
        return "" if changed(model)[0] else "no weight before the last layer is known by a name"

    def probe_one(self, model: Model, data: Data, unit: Unit, seed: int) -> Evidence:
        target = unit.target or 0
        known: dict[str, Any] = {"labels": data.labelled, "weights": len(changed(model)[0])}
        known["attention"] = changed(model)[1]
        few, held_out = (_others(model, part, target) for part in data.split(derive_seed(seed, "split")))
        if len(few) < 2 or len(held_out) < 2:
            return Evidence(self.name, unit.key, target, None, known)
        asked = _Asked(model)
        goal = torch.full((len(held_out),), target, device=model.device)
        own = {n: w.detach() for n, w in asked.named_parameters()}
        parts: list[dict[str, float]] = []
        for draw in range(self.draws):
            generator = self.generator(seed, target, draw)
            x = few[torch.randperm(len(few), generator=generator)[: self.shots]].to(model.device)
            weights, loss = self._perturbed(model, asked, x, target)
            lost, margins = torch.zeros(len(held_out), device=model.device), torch.zeros(0)
            for k in reversed(range(SCALES)):
                part = {n: own[n] + PACE**k * (w - own[n]) for n, w in weights.items()}
                margins = margin(_logits(asked, part, held_out), goal)
                lost += (margins <= 0).float()
            sizes = math.log(self.radius) + (lost - SCALES) * -math.log(PACE)
            parts.append({
                "loss": loss, "attack_success_rate": float((margins > 0).float().mean()),
                "size": float(sizes.mean()), "size_spread": float(sizes.std()), "entropy": entropy(margins),
                "margin": float(margins.mean()), "spread": float(margins.std()),
            })  # fmt: skip
        values = {key: math.fsum(p[key] for p in parts) / len(parts) for key in parts[0]}
        passes = self.draws * (3 * self.steps * min(self.shots, len(few)) + SCALES * len(held_out))
        return Evidence(self.name, unit.key, target, None, known | {"passes": passes} | values)

    def _perturbed(
        self, model: Model, asked: nn.Module, x: Tensor, target: int
    ) -> tuple[dict[str, Tensor], float]:
        """Perturbed weights by name that send x (N, *shape) to the target, and the loss they have."""
        own = dict(asked.named_parameters())
        weights = {f"net.{n}": own[f"net.{n}"].detach() for n in changed(model)[0]}
        shift = {n: torch.zeros_like(w).requires_grad_() for n, w in weights.items()}
        first, second = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
        goal, loss = torch.full((len(x),), target, device=x.device), torch.zeros(())
        for step in range(1, self.steps + 1):
            with torch.enable_grad():
                logits = functional_call(asked, {n: w + shift[n] for n, w in weights.items()}, (x,))
                loss = F.softplus(-margin(logits.float(), goal)).mean()
                grads = torch.autograd.grad(loss, list(shift.values()))
            with torch.no_grad():
                for (n, d), grad in zip(shift.items(), grads, strict=True):
                    first[n] = 0.9 * first[n] + 0.1 * grad
                    second[n] = 0.999 * second[n] + 0.001 * grad * grad
                    size = weights[n].norm()
                    pace = RATE * size / weights[n].numel() ** 0.5
                    d -= (
                        pace * (first[n] / (1 - 0.9**step)) / ((second[n] / (1 - 0.999**step)).sqrt() + 1e-12)
                    )
                    d *= (self.radius * size / d.norm().clamp_min(1e-20)).clamp(max=1.0)
        return {n: (w + shift[n]).detach() for n, w in weights.items()}, float(loss.detach())

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The class with the largest score, held against clean networks of other kinds or a number."""
        scored = [e for e in evidence if e.values.get("size") is not None]
        if len(scored) < 2:
            text = "cannot tell: fewer than two classes have samples of others that are not taken for them"
            return [Finding(self.code, self.name, WARNING, text)]
        scores = {e.unit: self._score(e, scored) for e in scored}
        order = sorted(scored, key=lambda e: -scores[e.unit])
        usual = USUAL[self.preset][classes > 2]
        limit = threshold_of(self, scored, classes, alpha, self.least, usual)
        flagged = [e for e in order if limit.passed(scores[e.unit])]
        level = WARNING if limit.doubt else ERROR if flagged else NOTE
        return [
            Finding(
                self.code, self.name, level, limit.doubt or _message(e, bool(flagged)), e.target,
                score=scores[e.unit], threshold=limit.at, p_value=limit.p_value(scores[e.unit]),
                attack_success_rate=number(e, "attack_success_rate"),
                details=limit.details | {k: number(e, k) for k in ("size", "entropy")},
            )
            for e in (flagged or order[:1])
        ]  # fmt: skip

    def _score(self, e: Evidence, every: Sequence[Evidence]) -> float:
        """Minus the entropy, or how much less a class needs than the median other one, in logarithms."""
        if self.preset == "paper":
            return -number(e, "entropy")
        return median(number(o, "size") for o in every if o.unit != e.unit) - number(e, "size")

    def measured(self, evidence: Sequence[Evidence], classes: int) -> Mapping[str, Any]:
        keys = ("attack_success_rate", "size", "size_spread", "margin", "spread", "entropy", "loss")
        return {str(e.target): {k: round(number(e, k), 4) for k in keys} for e in evidence}


class _Asked(nn.Module):
    """A model as a module, so that it can be asked with other weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net = model.net
        self.asked = model.logits

    def forward(self, x: Tensor) -> Tensor:
        return self.asked(x)


def changed(model: Model) -> tuple[list[str], bool]:
    """Names of the weights that are perturbed, and whether they are those of attention.

    Of attention all of query, key, value and output, of another network those of the affine operations before
    the head; of many, the middle ones.
    """
    shapes = {n: p.ndim for n, p in model.net.named_parameters()}
    names = [n for n in dict.fromkeys(model.affine()[:-1]) if shapes.get(n, 0) >= 2]
    own = [n for n in names if ATTENTION.search(n)] if any(ASKS.search(n) for n in names) else []
    chosen, most = own or names, MOST[bool(own)]
    skipped = max(0, len(chosen) - most) // 2
    return chosen[skipped : skipped + most], bool(own)


def _others(model: Model, data: Data, target: int) -> Tensor:
    """Samples of other classes that are not taken for the target (N, *shape)."""
    x = data.x[data.y != target]
    return x[model.predict(x) != target][:HELD_OUT]


@torch.no_grad()
def _logits(asked: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What a network with other weights says of x (N, *shape), in batches (N, classes)."""
    device = next(asked.parameters()).device
    return torch.cat([functional_call(asked, weights, (b.to(device),)).float() for b in x.split(128)])


def entropy(margins: Tensor) -> float:
    """Of the histogram of some margins (N,) in bins of `WIDTH`, in nats: 0 where all are alike."""
    _, counts = torch.floor(margins / WIDTH).unique(return_counts=True)
    share = counts / counts.sum()
    return float(-(share * share.log()).sum())


def number(e: Evidence, key: str) -> float:
    """A figure of a record, 0 where it has none."""
    value = e.values.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _message(e: Evidence, flagged: bool) -> str:
    """What is found about a class, in a sentence."""
    said = f"{math.exp(number(e, 'size')):.1%} of the norm of some weights"
    if flagged:
        return (
            f"a change of {said}, learned on a few samples, sends others to this class too: less than usual"
        )
    return f"no class is switched on by an unusually small change of weights; the least is {said}"
