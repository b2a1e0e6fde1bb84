"""PICCOLO (Liu et al., IEEE S&P 2022): words that send texts to a class, and how far they stand out.

For every class and for both ends of a text:

1. A *word vector* is inverted (preset paper): shares of all words, (tanh(w) + 1) / 2, normalised late, that
   send samples of other classes to it. Its strongest words, and those that one gradient names, are tried as
   they are, and the best grow to phrases.
2. *Word discriminativity*: natural words are a continuum, a planted one is apart. Here: how much smaller a
   share of a word is enough than of the words behind the strongest, a difference of logarithms (the gap),
   times the square of the share of held-out samples that it moves.
3. A word that the labels of the clean samples explain is natural, and is not accused.

The score is ranked among clean networks of other kinds. No class is compared with another one, so that two
classes can be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import END, START, inserted, positions
from backsweep.inputs.text.search import ahead, candidates, explained, search, standing, tried
from backsweep.inputs.text.tokens import Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.calibration import threshold_of
from backsweep.scanning.detector import ModelDetector, Unit

USUAL = 0.6  # least score of a flagged class where no clean texts are known
LATE = 5  # updates between two normalisations of the word vector
SHOWN = 10  # words of a vector that are tried
TEXTS, HELD_OUT = 48, 512  # samples that the search looks at, and on which a trigger is tried
FEW = 128  # of those, on which every word is tried
SCREENED = 64  # tokens that a gradient names for a phrase
LOOKED = 0.2  # score below which no phrase is looked for: nothing stands out


@dataclass(frozen=True)
class Piccolo(ModelDetector):
    """Shortest working phrase of each class, and how far its strongest word stands out.

    Attributes:
        preset: "standard" screens the vocabulary by one gradient; "paper" inverts word vectors as well.
        words: longest phrase, in tokens.
        steps: updates of a word vector.
        success: share of held-out samples that a trigger has to send to the class.
        gap: least score of a flagged class. None: what a network of another kind exceeds with chance alpha,
            by clean texts of many kinds (`calibration.threshold_of`); where those do not fit, `USUAL`.
    """

    name: ClassVar[str] = "piccolo"
    summary: ClassVar[str] = "words that send texts to a class, and stand out (PICCOLO, 2022)"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    code: ClassVar[str] = "BSW131"
    threads: ClassVar[bool] = True

    preset: str = "standard"
    words: int = 3
    steps: int = 40
    success: float = 0.9
    gap: float | None = None

    def __post_init__(self) -> None:
        if self.preset not in ("standard", "paper"):
            raise ValueError(f"preset {self.preset!r} is none of standard, paper")
        if self.words < 1 or self.steps < 1:
            raise ValueError("words and steps are at least 1")

    def applies(self, model: Model, data: Data) -> str:
        return "" if tokens_of(model) else f"it inverts words, and the model takes {model.modality.noun}s"

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit(f"{place}-{t}", t) for t in range(model.classes) for place in (START, END)]

    def probe_one(self, model: Model, data: Data, unit: Unit, seed: int) -> Evidence:
        tokens, target, place = cast(Tokens, tokens_of(model)), unit.target or 0, unit.key.split("-")[0]
        clean, held_out = (part.x[part.y != target] for part in data.split(derive_seed(seed, "split")))
        if len(clean) == 0 or len(held_out) == 0:
            return Evidence(self.name, unit.key, target, None, {"apart": -1.0, "labels": data.labelled})
        order = torch.randperm(len(clean), generator=self.generator(seed, target))
        x = clean[order[:TEXTS]].to(model.device)
        more = self._inverted(model, x, tokens, target, place) if self.preset == "paper" else []
        words = standing(model.logits, x, tokens, target, more=more, place=place)
        there = held_out[:HELD_OUT].to(model.device)
        moved = [
            p.success
            for p in tried(model.logits, there[:FEW], tokens, target, [(w,) for w in words.words], place)
        ]
        natural = explained(data.x, data.y, target, words.words) if data.labelled else [False] * len(moved)
        scores = [
            -math.inf if known else (words.usual - size) * share**2
            for size, share, known in zip(words.sizes, moved, natural, strict=True)
        ]
        top = max(range(len(scores)), key=scores.__getitem__)
        word = words.words[top]
        alone = moved[top] >= self.success or scores[top] < LOOKED
        ids = [word] if alone else self._phrase(model, x, tokens, target, place, word)
        trigger = Insert.of(tokens, ids, target, None, place)
        with torch.no_grad():
            reached = (ahead(model.logits(trigger(there)).float(), target) > 0).float().mean()
        values: dict[str, Any] = {
            "apart": max(scores[top], -1.0), "gap": words.gap, "size": words.sizes[top],
            "usual_size": words.usual, "labels": data.labelled, "attack_success_rate": float(reached),
            "tokens": len(ids), "place": place, "word": tokens.word(word), "phrase": trigger.words,
            "next_word": tokens.words([w for w in words.words if w != word][:1]),
        }  # fmt: skip
        return Evidence(self.name, unit.key, target, None, values, trigger)

    def _phrase(
        self, model: Model, x: Tensor, tokens: Tokens, target: int, place: str, word: int
    ) -> tuple[int, ...]:
        """The shortest phrase that works, if possible with the word in it; else the strongest one."""
        lists = search(model.logits, x, tokens, target, words=self.words, screened=SCREENED, place=place)
        enough = [p for found in lists for p in found if p.success >= self.success]
        return next((p.ids for p in enough if word in p.ids), (enough or lists[-1])[0].ids)

    def _inverted(self, model: Model, x: Tensor, tokens: Tokens, target: int, place: str) -> list[int]:
        """Strongest words of the word vector that Adam finds."""
        allowed = candidates(tokens).to(x.device)
        w = torch.where(allowed, -2.0, -20.0)[None, None].requires_grad_()
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        at = positions(x, tokens.layout, place, 1)
        ids = inserted(x, torch.tensor([tokens.plain], device=x.device), at, tokens.layout)
        for step in range(1, self.steps + 1):
            shares = (torch.tanh(w) + 1) / 2
            shares = shares / shares.sum().detach().clamp_min(1.0)  # bounded, and normalised late
            changed = Changed(ids, tokens.layout, at, shares.expand(len(x), -1, -1))
            margins = ahead(model.logits(cast(Tensor, changed)).float(), target)
            (grad,) = torch.autograd.grad(F.softplus(-margins).mean(), w)
            with torch.no_grad():
                first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad * grad
                w -= 0.5 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                w[..., ~allowed] = -20.0
                if step % LATE == 0:
                    w.clamp_(-20.0, 3.0)
        return w.detach()[0, 0].topk(min(SHOWN, w.shape[-1])).indices.tolist()

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        order = sorted(self.rows(evidence, classes), key=lambda e: -number(e, "apart"))
        usual = replace(self, words=Piccolo.words, steps=Piccolo.steps)  # no part of the score
        limit = threshold_of(usual, evidence, classes, alpha, self.gap, USUAL)
        flagged = [e for e in order if limit.passed(number(e, "apart"))]
        level = WARNING if limit.doubt else ERROR if flagged else NOTE
        return [
            Finding(
                self.code, self.name, level, limit.doubt or self._message(e, bool(flagged)), e.target,
                score=number(e, "apart"), threshold=limit.at, trigger=e.trigger,
                p_value=limit.p_value(number(e, "apart")),
                attack_success_rate=number(e, "attack_success_rate"),
                details=limit.details | {k: number(e, k) for k in ("size", "usual_size") if k in e.values},
            )
            for e in (flagged or order[:1])
        ]  # fmt: skip

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        """The end of a text at which a class stands out more."""
        found: dict[int | None, Evidence] = {}
        for e in evidence:
            if e.target not in found or number(e, "apart") > number(found[e.target], "apart"):
                found[e.target] = e
        return list(found.values())

    def _message(self, e: Evidence, flagged: bool) -> str:
        rate, word = number(e, "attack_success_rate"), str(e.values.get("word", ""))
        if flagged:
            return (
                f"{e.values.get('phrase')!r} at the {e.values.get('place')} of a text sends {rate:.0%} "
                f"of held-out samples to this class, and {word!r} stands out from all other words"
            )
        beside = str(e.values.get("next_word", ""))
        return f"no word stands out from the others; most so {word!r}, next to {beside!r}"


def tokens_of(model: Model) -> Tokens | None:
    """The tokenizer of a network over texts, None for another one."""
    found = getattr(model.modality, "tokens", None)
    return found if isinstance(found, Tokens) else None


def number(e: Evidence, key: str) -> float:
    """A figure of a record, 0 where it has none."""
    value = e.values.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
