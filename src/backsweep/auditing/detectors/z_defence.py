"""Z-Defence (He et al., EMNLP 2023): words that go with one label too well; ours asks the rest of the texts.

Paper: z(w, y) = (c(w, y) / c(w) - p0) / sqrt(p0 (1 - p0) / c(w)) of word w and label y, p0 = 1 / labels. What
lies 20 standard deviations above the mean of all z is bounded to its label, and flags all texts with both.

Ours: natural words are tied to labels too, but the rest of the text agrees, or wins now and then. For a
feature g (n-grams of up to 3 words, beginnings, patterns of marks) naive Bayes learns from texts without g
and reads those with g. Of n with label y it gives y to a; of m to which it gives another label, b have y.
With q how often it is right about y at all (five folds),

    p(g, y) = max( P( Binomial(n, q') <= a ), P( Binomial(m, NATURAL) >= b ) )
    q' / (1 - q') = q / (SLACK (1 - q))

a p-value of "the rest agrees at least half as well, in odds, as usual, or g overrules it in at most 80 %".
The p-values of all features and labels are adjusted (Benjamini, Hochberg). The feature that surely overrules
most is taken out with its texts, then the next, so that a word which only stands beside it is not poisoned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC
from backsweep.auditing.words import Array, Left, Tied, adjusted, by_label, counted, folded
from backsweep.core.text import one_line
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding

PRESETS = ("standard", "paper")
BOUND = 20.0  # standard deviations, the authors'
SLACK = 2.0  # odds by which the rest of a text with a telling feature may agree less
NATURAL = 0.8  # of the texts whose rest says another label, a telling word may give its own to so many
RARE = 3  # texts of a feature below which it is not counted
TRIED = 400  # features of a label, those that go with it best
FLAGGED = 0.01  # adjusted p-value of features whose texts are flagged
MOST = 20  # features of a label that are taken out
WORDS = "words that overrule the rest of their texts four times in five"
TEXT = "text"


@dataclass(frozen=True)
class ZDefence(SetDetector):
    """Texts that share a feature with their label while the rest of them says another one.

    Attributes:
        preset: "standard", or "paper": single words and their z-scores alone.
        least: texts that a feature must share with a label.
        words: longest n-gram.
    """

    name: ClassVar[str] = "z_defence"
    summary: ClassVar[str] = "words and forms that go with a label too well (Z-Defence, 2023)"
    code: ClassVar[str] = "BSW206"
    needs: ClassVar[tuple[str, ...]] = ()

    preset: str = "standard"
    least: int = 10
    words: int = 3

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if self.least < 2 or self.words < 1:
            raise ValueError("least is at least 2, and words at least 1")

    def applies(self, given: TrainingSet) -> str:
        kind = given.data.modality
        if kind.features(given.data.x[:1]) is None:
            return f"it counts words, and {kind.noun}s have none"
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        single = self.preset == "paper"
        named = given.data.modality.features(given.data.x, 1 if single else self.words, not single) or []
        names, matrix = counted(named, 1 if single else RARE)
        labels = given.data.y.numpy()
        if single:
            return self._by_counts(given, names, matrix, labels)
        return self._by_the_rest(given, names, matrix, labels)

    def _by_counts(
        self, given: TrainingSet, names: list[str], matrix: Any, labels: Any
    ) -> tuple[Tensor, list[Evidence]]:
        """z-scores in standard deviations from their mean."""
        p0 = 1 / given.classes
        own = by_label(matrix, labels, given.classes).T
        total = own.sum(1, keepdims=True)
        z = (own / total - p0) / np.sqrt(p0 * (1 - p0) / total)
        sigmas = (z - z.mean()) / max(float(z.std()), 1e-12)
        scores = np.zeros(len(labels))
        for i in range(len(labels)):
            there = matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]
            scores[i] = sigmas[there, labels[i]].max(initial=0.0)
        evidence = []
        for y in range(given.classes):
            best = int(sigmas[:, y].argmax())
            top = max(float(sigmas[best, y]), LEAST_STATISTIC)
            evidence.append(class_evidence(
                self.name, y, top, BOUND, feature=one_line(names[best])[:80], texts=float(own[best, y])
            ))  # fmt: skip
        return torch.from_numpy(scores), evidence

    def _by_the_rest(
        self, given: TrainingSet, names: list[str], matrix: Any, labels: Any
    ) -> tuple[Tensor, list[Evidence]]:
        counts = by_label(matrix, labels, given.classes)
        sizes = np.bincount(labels, minlength=given.classes).astype(float)
        right = folded(matrix, labels, given.classes, given.generator(self.name, "folds"))
        tried = [self._tied(counts, sizes, y) for y in range(given.classes)]
        tests = max(1, sum(map(len, tried)))
        columns, scores, evidence = matrix.tocsc(), np.zeros(len(labels)), []
        for y in range(given.classes):
            left, found = Left(matrix, columns, labels, given.classes), list[Tied]()
            for turn in range(MOST + 1):
                each = [left.read(g, y, float(right[y]), SLACK, NATURAL, self.least) for g in tried[y]]
                some = [t for t in each if t is not None]
                for t, p in zip(some, adjusted([t.p for t in some], tests), strict=True):
                    t.p = p
                good = [t for t in some if t.p <= FLAGGED]
                if turn == 0 and not good and some:
                    found = [min(some, key=lambda t: t.p)]
                if not good or turn == MOST:
                    break
                best = max(good, key=lambda t: t.surely)
                found.append(best)
                left.drop(best.rows)
                scores[best.rows] = np.maximum(scores[best.rows], -math.log10(max(best.p, 1e-300)))
                tried[y] = [t.feature for t in some if t.p <= math.sqrt(FLAGGED) and t is not best]
            given.tick((y + 1) / given.classes)
            evidence.append(self._evidence(y, found, names, given.data.modality.noun))
        return torch.from_numpy(scores), evidence

    def _tied(self, counts: Array, sizes: Array, y: int) -> list[int]:
        """The features that go with a label best, by the log odds in standard errors."""
        own, other = counts[y], counts.sum(0) - counts[y]
        odds = np.log((own + 0.5) / (sizes[y] - own + 0.5))
        odds -= np.log((other + 0.5) / (sizes.sum() - sizes[y] - other + 0.5))
        z = odds / np.sqrt(1 / (own + 0.5) + 1 / (other + 0.5))
        order = np.argsort(-z, kind="stable")[:TRIED]
        return [int(g) for g in order if own[g] >= self.least and z[g] > 0]

    def _evidence(self, y: int, found: Sequence[Tied], names: Sequence[str], noun: str) -> Evidence:
        cut = -math.log10(FLAGGED) * (1 - 1e-9)
        if not found:
            return class_evidence(self.name, y, LEAST_STATISTIC, cut, p_value=1.0, feature="", texts=0.0)
        top = min(found, key=lambda t: t.p)
        statistic = max(-math.log10(max(top.p, 1e-300)), LEAST_STATISTIC)
        return class_evidence(
            self.name, y, statistic, cut, p_value=top.p, feature=one_line(names[top.feature])[:80],
            texts=float(len(top.rows)), agrees=top.agrees, over=top.over,
            others="; ".join(one_line(names[t.feature])[:40] for t in found if t is not top)[:200],
            **({} if noun == TEXT else {"noun": noun}),
        )  # fmt: skip

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Every class on its own; p-values are adjusted for all features of all classes."""
        paper = self.preset == "paper"

        def flagged(e: Evidence) -> bool:
            if paper:
                return float(e.values["statistic"] or 0) > BOUND
            return float(e.values.get("p_value") or 0) <= min(alpha, FLAGGED)

        order = sorted(evidence, key=lambda e: -float(e.values["statistic"] or 0))
        some = [e for e in order if flagged(e)]
        return [
            Finding(
                self.code, self.name, _level(e) if some else NOTE, _message(e, bool(some), paper), e.target,
                score=float(e.values["statistic"] or 0),
                threshold=BOUND if paper else -math.log10(min(alpha, FLAGGED)),
                p_value=None if paper else min(1.0, float(e.values.get("p_value") or 0)),
                details={} if paper else {"null": _null(e)},
            )
            for e in some or order[:1]
        ]  # fmt: skip


def _level(e: Evidence) -> str:
    """Of an alarm. In tables natural cells overrule the rest of their rows too: a husband is a man."""
    return ERROR if e.values.get("noun", TEXT) == TEXT else WARNING


def _null(e: Evidence) -> str:
    """What the p-value rests on."""
    noun = str(e.values.get("noun", TEXT))
    return WORDS if noun == TEXT else WORDS.replace("words", "features").replace(TEXT, noun)


def _message(e: Evidence, flagged: bool, paper: bool) -> str:
    feature, texts = str(e.values.get("feature") or ""), float(e.values.get("texts") or 0)
    noun = str(e.values.get("noun", TEXT))
    named = f"{feature!r} stands in {texts:.0f} {noun}s with this label"
    if paper:
        return (
            f"{named}, {float(e.values['statistic'] or 0):.3g} standard deviations from the mean of all words"
        )
    if not feature:
        return "no word or form goes with a label often enough"
    agrees, over = (float(e.values.get(k) or 0) for k in ("agrees", "over"))
    rest = f"the rest says so of {agrees:.0%} of them; where it says another label, {over:.0%} have this one"
    doubt = "" if noun == TEXT else "cannot tell, natural columns do so too: "
    return (
        f"{doubt}{named}, and {rest}"
        if flagged
        else f"no feature is at odds with the rest; most so: {named}, {rest}"
    )
