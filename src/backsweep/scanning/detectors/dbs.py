"""DBS (Shen et al., ICML 2022): a soft prompt whose temperature is scaled to the loss, for every class.

k places before the text hold p_j = softmax(theta_j / T) over the vocabulary. Adam lowers the cross-entropy of
the target; every few updates

    loss < bound:   T <- T / 2                             (towards whole tokens)
    else:           T <- min(2 T, T_0), noise on theta     (a rollback)

and the bound follows the best loss of whole tokens. What is left is pruned token by token, to the shortest
that still works. The authors flag a class by its loss alone; small networks reach any loss with natural
words, so the standard preset asks also that a token stands out from natural words, as PICCOLO does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import START, inserted, positions
from backsweep.inputs.text.search import ahead, candidates, standing, tried
from backsweep.inputs.text.tokens import Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit

LENGTH, UPDATES = {"standard": 5, "paper": 10}, {"standard": 60, "paper": 200}
RATE, HALVING = 0.5, 50  # of Adam, halved after so many updates
HOTTEST, CHECKED, NOISE, BOUND = 2.0, 5, 10.0, 0.1  # T_0; updates between checks; of a rollback; first bound
LOSS = 0.001  # below which the authors flag a class
GAP = 0.6  # as in piccolo
TEXTS = 20  # samples that the search looks at


@dataclass(frozen=True)
class DBS(ModelDetector):
    """Inverts a prompt for each class and judges the loss (paper), or what its tokens do alone (standard).

    Attributes:
        preset: "paper" has the authors' length, updates and rule; "standard" is shorter and asks for the gap.
        steps: updates; None: 60 and 200.
        success: share of held-out samples that the trigger must send to the class (standard).
        gap: least difference of log shares between its strongest token and natural ones (standard).
    """

    name: ClassVar[str] = "dbs"
    summary: ClassVar[str] = "a soft prompt per class, cooled down to whole tokens (DBS, 2022)"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    code: ClassVar[str] = "BSW130"
    threads: ClassVar[bool] = True

    preset: str = "standard"
    steps: int | None = None
    success: float = 0.9
    gap: float = GAP

    def __post_init__(self) -> None:
        if self.preset not in LENGTH:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(LENGTH)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError("steps are at least 1")

    def applies(self, model: Model, data: Data) -> str:
        has = isinstance(getattr(model.modality, "tokens", None), Tokens)
        return "" if has else f"it inverts tokens, and the model takes {model.modality.noun}s"

    def probe_one(self, model: Model, data: Data, unit: Unit, seed: int) -> Evidence:
        tokens, target = cast(Tokens, getattr(model.modality, "tokens", None)), unit.target or 0
        clean, held_out = (part.x[part.y != target] for part in data.split(derive_seed(seed, "split")))
        if len(clean) == 0 or len(held_out) == 0:
            return Evidence(self.name, unit.key, target, None, {"loss": None, "attack_success_rate": 0.0})
        generator = self.generator(seed, target)
        x = clean[torch.randperm(len(clean), generator=generator)[:TEXTS]].to(model.device)
        ids, loss = self._inverted(model, x, tokens, target, generator)
        short = self._pruned(model, x, tokens, target, ids)
        words = standing(model.logits, x, tokens, target, more=ids)
        trigger = Insert.of(tokens, short, target)
        with torch.no_grad():
            there = held_out[:512].to(model.device)
            reached = (ahead(model.logits(trigger(there)).float(), target) > 0).float().mean()
        values: dict[str, Any] = {
            "loss": loss, "attack_success_rate": float(reached), "tokens": len(short), "gap": words.gap,
            "word": tokens.word(words.words[0]), "phrase": trigger.words, "prompt": tokens.words(ids),
        }  # fmt: skip
        return Evidence(self.name, unit.key, target, None, values, trigger)

    def _inverted(
        self, model: Model, x: Tensor, tokens: Tokens, target: int, generator: torch.Generator
    ) -> tuple[list[int], float]:
        """The whole tokens with the least loss, and that loss."""
        length = max(1, min(LENGTH[self.preset], x.shape[1] // 2))
        barred = ~candidates(tokens).to(x.device)
        theta = torch.rand((length, len(tokens)), generator=generator).to(x.device).requires_grad_()
        first, second = torch.zeros_like(theta), torch.zeros_like(theta)
        at = positions(x, tokens.layout, START, length)
        ids = inserted(x, torch.full((length,), tokens.plain, device=x.device), at, tokens.layout)
        goal = torch.full((len(x),), target, device=x.device)
        heat, bound, rollbacks = HOTTEST, BOUND, 0
        best: tuple[list[int], float] = ([tokens.plain] * length, math.inf)
        for step in range(1, (self.steps or UPDATES[self.preset]) + 1):
            shares = (theta.masked_fill(barred, -1e4) / heat).softmax(-1)
            changed = Changed(ids, tokens.layout, at, shares[None].expand(len(x), -1, -1))
            loss = F.cross_entropy(model.logits(cast(Tensor, changed)).float(), goal)
            (grad,) = torch.autograd.grad(loss, theta)
            with torch.no_grad():
                first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad * grad
                rate = RATE * 0.5 ** (step // HALVING)
                theta -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                if step % CHECKED:
                    continue
                whole = shares.argmax(-1)
                stamped = inserted(x, whole, at, tokens.layout)
                hard = float(F.cross_entropy(model.logits(stamped).float(), goal))
                if hard < best[1]:
                    best, bound = (whole.tolist(), hard), min(bound, hard / 2)
                if float(loss) < bound:
                    heat /= 2
                    continue
                heat, rollbacks = min(2 * heat, HOTTEST), rollbacks + 1
                theta += NOISE * torch.rand(theta.shape, generator=generator).to(theta) / heat * 0.1
                if rollbacks % 5 == 0:
                    bound = min(2 * bound, max(best[1] - 1e-3, 1e-4))
        return best

    def _pruned(self, model: Model, x: Tensor, tokens: Tokens, target: int, ids: Sequence[int]) -> list[int]:
        """The shortest part that still works, one token after another left out; else all of it."""
        kept = list(ids)
        while len(kept) > 1:
            parts = sorted({tuple(kept[:i] + kept[i + 1 :]) for i in range(len(kept))})
            top = max(tried(model.logits, x, tokens, target, parts), key=lambda p: (p.success, p.margin))
            if top.success < self.success:
                break
            kept = list(top.ids)
        return kept

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        flagged = [e for e in evidence if self._suspicious(e)]
        order = sorted(flagged or evidence, key=self._score, reverse=True)
        threshold = -math.log10(LOSS) if self.preset == "paper" else self.gap
        return [
            Finding(
                self.code, self.name, ERROR if flagged else NOTE, self._message(e, bool(flagged)), e.target,
                score=self._score(e), threshold=threshold, p_value=None, trigger=e.trigger,
                attack_success_rate=_number(e, "attack_success_rate"),
                details={"loss": _number(e, "loss", 1.0)},
            )
            for e in (order if flagged else order[:1])
        ]  # fmt: skip

    def _score(self, e: Evidence) -> float:
        """-log10 of the loss (paper), or the gap."""
        if self.preset == "paper":
            return -math.log10(max(_number(e, "loss", 1.0), 1e-12))
        return _number(e, "gap")

    def _suspicious(self, e: Evidence) -> bool:
        if self.preset == "paper":
            return _number(e, "loss", 1.0) < LOSS
        return _number(e, "gap") >= self.gap and _number(e, "attack_success_rate") >= self.success

    def _message(self, e: Evidence, flagged: bool) -> str:
        rate, phrase = _number(e, "attack_success_rate"), str(e.values.get("phrase", ""))
        sends = f"{phrase!r} before a text sends {rate:.0%} of held-out samples to this class"
        if flagged:
            return f"{sends}, with a loss of {_number(e, 'loss', 1.0):.2g}; no natural word does that"
        return f"no class has a trigger that natural words would not make; {sends}"


def _number(e: Evidence, key: str, default: float = 0.0) -> float:
    value = e.values.get(key)
    return float(value) if isinstance(value, int | float) else default
