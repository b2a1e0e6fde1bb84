"""BABI (Li et al., arXiv 2509.16203, 2025): phrases grown token by token, with an implicit blacklist.

For every class t and both ends of a text, a phrase w is grown greedily from the strongest single tokens by

    J_t(w) = mean over x of other classes of m_t(x + w)  -  weight * S_t * cos_t(w)

where m_t = logit_t - max of the other logits, S_t is the mean margin of clean samples of t, and cos_t(w) says
how much w alone looks like the class: the mean cosine of its penultimate activations with those of clean
samples of t, both from the mean over all clean samples. A word that naturally means the class pays for it; a
planted one has its effect by another way. (CSO, arXiv 2512.08129, is the same thought for images.)

Suspected is a class to which a phrase sends nearly all held-out samples, about as surely as its own are told:
the margin that nine of ten exceed, over the usual one of clean samples of t. Three natural words reach that
in small networks, one does not; so the standard preset judges single tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import END, START, inserted, positions
from backsweep.inputs.text.search import Phrase, ahead, candidates, gains, tried
from backsweep.inputs.text.tokens import Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.calibration import threshold_of
from backsweep.scanning.detector import ModelDetector, Unit

PRESETS = ("standard", "paper")
MOST = 0.9  # share of the held-out samples whose margin counts
TEXTS, FEW, CLEAN, HELD_OUT = 48, 12, 50, 256  # for trying; for the first try; of the class; to judge on
USUAL = {"standard": 0.6, "paper": 0.9}  # least score of a flagged class where no clean networks are known


@dataclass(frozen=True)
class Babi(ModelDetector):
    """Grows phrases that send texts to a class and do not look like it, and judges how surely they do.

    Attributes:
        preset: "paper" tries every token of the vocabulary as the first one and scores the share of samples
            times the confidence; "standard" tries those that one gradient names, and scores the margin that
            nine of ten samples exceed.
        words: longest phrase, in tokens; None: 3 and 1.
        beam: phrases that grow.
        screened: tokens that are tried at each step, of those that a gradient names.
        weight: of the penalty.
        success: share of held-out samples that a phrase has to send to the class.
        least: least score of a flagged class; None: what a network of another kind exceeds with chance alpha,
            where clean networks of many kinds are known, else `USUAL`, and an alarm is "cannot tell".
    """

    name: ClassVar[str] = "babi"
    summary: ClassVar[str] = "phrases grown with a penalty on what means the class (BABI, 2025)"
    code: ClassVar[str] = "BSW132"
    threads: ClassVar[bool] = True

    preset: str = "standard"
    words: int | None = None
    beam: int = 4
    screened: int = 128
    weight: float = 1.0
    success: float = 0.9
    least: float | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if min(self.longest, self.beam, self.screened) < 1 or self.weight < 0:
            raise ValueError("words, beam and screened are at least 1, and the weight is at least 0")

    @property
    def longest(self) -> int:
        """Of a phrase, in tokens."""
        return (3 if self.preset == "paper" else 1) if self.words is None else self.words

    @property
    def cautious(self) -> bool:
        return self.least is None

    def applies(self, model: Model, data: Data) -> str:
        return "" if _tokens(model) else f"it inverts words, and the model takes {model.modality.noun}s"

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit(f"{place}-{t}", t) for t in range(model.classes) for place in (START, END)]

    def probe_one(self, model: Model, data: Data, unit: Unit, seed: int) -> Evidence:
        tokens, target, place = cast(Tokens, _tokens(model)), unit.target or 0, unit.key.split("-")[0]
        clean, held_out = data.split(derive_seed(seed, "split"))
        x, there = (part.x[part.y != target][:count].to(model.device)
                    for part, count in ((clean, TEXTS), (held_out, HELD_OUT)))  # fmt: skip
        own = clean.x[clean.y == target]
        own = own[model.predict(own) == target][:CLEAN].to(model.device)
        labels = {"labels": data.labelled}
        if min(len(x), len(there), len(own)) == 0:
            return Evidence(self.name, unit.key, target, None, {**labels, "score": None})
        like = _Likeness(model, own, x, tokens, target)
        lists = self._grown(model, x, tokens, target, place, like)
        # the shortest that works on the samples of the search, else the strongest of the longest
        enough = [p for found in lists for p in found[:1] if p.success >= self.success]
        best = (enough or lists[-1])[0]
        trigger = Insert.of(tokens, best.ids, target, None, place)
        with torch.no_grad():
            logits = model.logits(trigger(there)).float()
        margins = ahead(logits, target)
        won = margins > 0
        rate = float(won.float().mean())
        sure = float(logits.softmax(1)[won, target].mean()) if bool(won.any()) else 0.0
        surer = float(margins.quantile(1 - MOST)) / max(like.usual, 1e-6)
        score = rate * sure if self.preset == "paper" else surer
        values: dict[str, Any] = {
            **labels, "score": score, "attack_success_rate": rate, "confidence": sure, "surer": surer,
            "likeness": float(like([best.ids])[0]), "usual_margin": like.usual, "tokens": len(best.ids),
            "place": place, "phrase": trigger.words,
        }  # fmt: skip
        return Evidence(self.name, unit.key, target, None, values, trigger)

    def _grown(
        self, model: Model, x: Tensor, tokens: Tokens, target: int, place: str, like: _Likeness
    ) -> list[list[Phrase]]:
        """Phrases of 1 .. `longest` tokens, a list for each length, the best by J first."""
        allowed = candidates(tokens).to(x.device)
        stems: list[tuple[int, ...]] = [()]
        found: list[list[Phrase]] = []
        for _ in range(self.longest):
            grown: set[tuple[int, ...]] = set()
            for stem in stems:
                count = min(max(8, self.screened // len(stems)), int(allowed.sum()))
                if self.preset == "paper" and not stem:
                    grown |= {(i,) for i in torch.nonzero(allowed).flatten().tolist()}
                    continue
                gain = gains(model.logits, x, tokens, target, stem, place).masked_fill(~allowed, -torch.inf)
                grown |= {(*stem, i) for i in gain.topk(count).indices.tolist()}
            few = tried(model.logits, x[:FEW], tokens, target, sorted(grown), place)
            short = self._best(few, like, 4 * self.beam)
            whole = tried(model.logits, x, tokens, target, [p.ids for p in short], place)
            found.append(self._best(whole, like, self.beam))
            stems = [p.ids for p in found[-1]]
        return found

    def _best(self, found: Sequence[Phrase], like: _Likeness, count: int) -> list[Phrase]:
        """The best phrases by J."""
        penalty = (self.weight * like.usual * like([p.ids for p in found])).tolist()
        worth = {p.ids: p.margin - cost for p, cost in zip(found, penalty, strict=True)}
        return sorted(found, key=lambda p: (-worth[p.ids], p.ids))[:count]

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        if all(e.values.get("score") is None for e in evidence):
            text = "cannot tell: there are no samples of other classes, or none of the class is told"
            return [Finding(self.code, self.name, WARNING, text)]
        order = sorted(self.rows(evidence, classes), key=_score, reverse=True)
        limit = threshold_of(self, evidence, classes, alpha, self.least, USUAL[self.preset])
        flagged = [
            e for e in order if number(e, "attack_success_rate") >= self.success and limit.passed(_score(e))
        ]
        level = WARNING if limit.doubt else ERROR if flagged else NOTE
        return [
            Finding(
                self.code, self.name, level, limit.doubt or _message(e, bool(flagged)), e.target,
                score=_score(e), threshold=limit.at, trigger=e.trigger,
                p_value=limit.p_value(_score(e)),
                attack_success_rate=number(e, "attack_success_rate"),
                details=limit.details | {k: number(e, k) for k in ("surer", "confidence", "likeness")},
            )
            for e in (flagged or order[:1])
        ]  # fmt: skip

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        """The end of a text at which a class scores more."""
        found: dict[int | None, Evidence] = {}
        for e in evidence:
            if e.target not in found or _score(e) > _score(found[e.target]):
                found[e.target] = e
        return list(found.values())

    def measured(self, evidence: Sequence[Evidence], classes: int) -> Mapping[str, Any]:
        keys = ("score", "surer", "confidence", "likeness", "attack_success_rate", "tokens")
        return {e.unit: {k: round(number(e, k), 4) for k in keys} for e in evidence}


class _Likeness:
    """How much phrases alone look like a class, and how sure the network is of clean samples of it.

    Args:
        own, others: clean samples of the class and of other classes (N, L).
    """

    def __init__(self, model: Model, own: Tensor, others: Tensor, tokens: Tokens, target: int) -> None:
        self.model, self.tokens = model, tokens
        with torch.no_grad():
            logits, z = model.logits_and_embedded(torch.cat([own, others]), None)
            self.usual = max(0.0, float(ahead(logits[: len(own)].float(), target).median()))
        centres = torch.stack([z[: len(own)].mean(0), z[len(own) :].mean(0)])
        self.middle = centres.mean(0)
        self.own = F.normalize((z[: len(own)] - self.middle).float(), dim=1)
        self.blank = model.modality.blank(1, model.shape).to(own.device)

    @torch.no_grad()
    def __call__(self, phrases: Sequence[Sequence[int]]) -> Tensor:
        """Mean cosine of the activations of each phrase with those of clean samples of the class, (N,)."""
        ids = torch.tensor([list(p) for p in phrases], device=self.own.device)
        rows = self.blank.expand(len(ids), -1)
        at = positions(rows, self.tokens.layout, START, ids.shape[1])
        alone = inserted(rows, ids, at, self.tokens.layout)
        z = torch.cat([self.model.features(part) for part in alone.split(256)]).float()
        return (F.normalize(z - self.middle, dim=1) @ self.own.T).mean(1).cpu()


def _tokens(model: Model) -> Tokens | None:
    """The tokenizer of a network over texts, None for another one."""
    found = getattr(model.modality, "tokens", None)
    return found if isinstance(found, Tokens) else None


def _score(e: Evidence) -> float:
    """Of a class; lowest where nothing could be tried."""
    return number(e, "score") if e.values.get("score") is not None else -10.0


def number(e: Evidence, key: str) -> float:
    """A figure of a record, 0 where it has none."""
    value = e.values.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _message(e: Evidence, flagged: bool) -> str:
    """What is found about a class, in a sentence; the phrase is untrusted text."""
    said = (
        f"{e.values.get('phrase')!r} at the {e.values.get('place')} of a text sends "
        f"{number(e, 'attack_success_rate'):.0%} of held-out samples to this class"
    )
    surer = f"nine of ten with {number(e, 'surer'):.2f} times the usual margin of clean samples of it"
    return f"{said}, {surer}" if flagged else f"no phrase stands out; {said}, {surer}"
