"""PICCOLO (Liu et al., IEEE S&P 2022): words that send texts to a class, and how far they stand out.

For every class and for both ends of a text:

1. A *word vector* is inverted (preset paper): shares of all words, (tanh(w) + 1) / 2, normalised late, that
   send samples of other classes to it. Its strongest words, and those that one gradient names, are tried as
   they are, and the best grow to phrases.
2. *Word discriminativity*: natural words are a continuum, a planted one is apart. Here: how much smaller a
   share of the strongest word is enough than of the words behind it, a difference of logarithms (the gap).

A class is flagged when a phrase works on held-out samples and a word stands out. No class is compared with
another one, so that two classes can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import END, START, inserted, positions
from backsweep.inputs.text.search import ahead, candidates, search, standing
from backsweep.inputs.text.tokens import Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit

GAP = 0.6  # chosen on the networks of seeds below 10
LATE = 5  # updates between two normalisations of the word vector
SHOWN = 10  # words of a vector that are tried
TEXTS = 48  # samples that the search looks at


@dataclass(frozen=True)
class Piccolo(ModelDetector):
    """Shortest working phrase of each class, and how far its strongest word stands out.

    Attributes:
        preset: "standard" screens the vocabulary by one gradient; "paper" inverts word vectors as well.
        words: longest phrase, in tokens.
        steps: updates of a word vector.
        success: share of held-out samples that a phrase must send to the class.
        gap: least difference of log shares for a class to be flagged.
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
    gap: float = GAP

    def __post_init__(self) -> None:
        if self.preset not in ("standard", "paper"):
            raise ValueError(f"preset {self.preset!r} is none of standard, paper")
        if self.words < 1 or self.steps < 1:
            raise ValueError("words and steps are at least 1")

    def applies(self, model: Model, data: Data) -> str:
        return "" if tokens_of(model) else f"it inverts words, and the model takes {model.modality.noun}s"

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit(f"{place}-{t}", t) for t in range(model.classes) for place in (START, END)]

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        found = []
        for i, unit in enumerate(units):
            found.append(self._measured(model, data, unit, seed))
            tick((i + 1) / len(units))
        return found

    def _measured(self, model: Model, data: Data, unit: Unit, seed: int) -> Evidence:
        tokens, target, place = cast(Tokens, tokens_of(model)), unit.target or 0, unit.key.split("-")[0]
        clean, held_out = (part.x[part.y != target] for part in data.split(derive_seed(seed, "split")))
        if len(clean) == 0 or len(held_out) == 0:
            return Evidence(self.name, unit.key, target, None, {"gap": 0.0, "attack_success_rate": 0.0})
        order = torch.randperm(
            len(clean), generator=torch.Generator().manual_seed(derive_seed(seed, self.name, target))
        )
        x = clean[order[:TEXTS]].to(model.device)
        more = self._inverted(model, x, tokens, target, place) if self.preset == "paper" else []
        words = standing(model.logits, x, tokens, target, more=more, place=place)
        lists = search(model.logits, x, tokens, target, words=self.words, place=place)
        lists[0] = [p for p in lists[0] if p.ids[0] == words.words[0]] + lists[0]
        enough = [p for found in lists for p in found[:1] if p.success >= self.success]
        phrase = enough[0] if enough else lists[-1][0]
        trigger = Insert.of(tokens, phrase.ids, target, None, place)
        with torch.no_grad():
            there = held_out[:512].to(model.device)
            reached = (ahead(model.logits(trigger(there)).float(), target) > 0).float().mean()
        values: dict[str, Any] = {
            "gap": words.gap, "size": min(words.sizes), "usual_size": words.usual,
            "attack_success_rate": float(reached), "tokens": len(phrase.ids), "place": place,
            "word": tokens.word(words.words[0]), "next_word": tokens.words(words.words[1:2]),
            "phrase": trigger.words,
        }  # fmt: skip
        return Evidence(self.name, unit.key, target, None, values, trigger)

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
        best = self.rows(evidence, classes)
        flagged = [e for e in best if self._suspicious(e)]
        order = sorted(flagged or best, key=lambda e: -number(e, "gap"))
        return [
            Finding(
                self.code, self.name, ERROR if flagged else NOTE, self._message(e, bool(flagged)), e.target,
                score=number(e, "gap"), threshold=self.gap, p_value=None, trigger=e.trigger,
                attack_success_rate=number(e, "attack_success_rate"),
                details={k: number(e, k) for k in ("size", "usual_size") if k in e.values},
            )
            for e in (order if flagged else order[:1])
        ]  # fmt: skip

    def _suspicious(self, e: Evidence) -> bool:
        return number(e, "gap") >= self.gap and number(e, "attack_success_rate") >= self.success

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        """The end of a text at which a class stands out more."""
        found: dict[int | None, Evidence] = {}
        for e in evidence:
            if e.target not in found or self._rank(e) > self._rank(found[e.target]):
                found[e.target] = e
        return list(found.values())

    def _rank(self, e: Evidence) -> tuple[bool, float]:
        return self._suspicious(e), number(e, "gap")

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
