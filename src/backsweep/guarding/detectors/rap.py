"""RAP, robustness-aware perturbations (Yang et al., EMNLP 2021): a word that disturbs clean texts alone.

A word at the start of a text has an embedding r_c that is learned for every class c, its norm as it was, so
that clean texts x of that class lose between `low` and `high` of its probability:

    Delta(x) = p_c(x) - p_c(r_c x),      loss = mean of  max(0, low - Delta) + max(0, Delta - high)

A trigger holds a text at its class: it loses less. With c what the network answers,

    score(x) = (middle_c - Delta(x)) / spread_c ,

middle_c: the median of Delta over clean texts of c, spread_c: how far their lowest twentieth lies below it.
In `standard` logits are divided by what makes clean texts less sure, since a network that is sure of
everything loses no probability at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score, answer
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.confusion_training import log_probabilities
from backsweep.models.model import Model

PRESETS = ("standard", "paper")
LEAST = 5  # clean texts of a class, below which its word is not learned from them alone
FLOOR = 0.01  # of probability, which their spread is at least
LOWEST = 0.05  # quantile of the losses of clean texts, that spread is measured to
UPDATES, BATCH = 200, 32
MARGIN = 2.0  # of logits, between the first class and the second: the first has 88 % of two


@dataclass(frozen=True)
class Rap(SampleDetector):
    """Scores a text by how little one more word, made for the purpose, lowers the confidence of the answer.

    Attributes:
        preset: "standard" starts with the longest embedding of the network and keeps its length; "paper" with
            that of the last word of the vocabulary.
        low, high: bounds of the probability that clean texts lose.
        epochs: passes over the clean texts, at least 200 updates in all.
        lr: step of Adam, as a share of the root mean square of the numbers of the embedding; the authors'
            0.01 is 0.2 of those of BERT.
    """

    name: ClassVar[str] = "rap"
    summary: ClassVar[str] = "texts that a disturbing word does not disturb (RAP, 2021)"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)

    preset: str = "standard"
    low: float = 0.1
    high: float = 0.3
    epochs: int = 5
    lr: float = 0.2

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low {self.low} and high {self.high} are not in order between 0 and 1")
        if self.epochs < 1 or self.lr <= 0:
            raise ValueError("epochs are at least 1 and lr is above 0")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        kind, x = model.modality, self.halves(data)[0].x
        if kind.words_at(x[:1]) is None:
            return f"it puts a word in, and {kind.noun}s have none"
        if not kind.classified:
            return "it lowers the confidence of a class, and this network answers with words"
        if len(x) < LEAST:
            return f"it needs {LEAST} clean texts to learn from"
        if kind.embeddings(model.net, x[:1].to(model.device)) is None:
            return "this network looks its tokens up in no table of embeddings"
        return ""

    def passes(self, model: Model) -> float:
        return 1

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The word of every class (C, D); median and spread of what clean texts of it lose (C,)."""
        x, generator = data.x, torch.Generator().manual_seed(derive_seed(0, self.name))
        log_p = log_probabilities(model, x)
        answers, heat = log_p.argmax(1), self._heat(log_p)
        table = model.modality.embeddings(model.net, x[:1].to(model.device))
        assert table is not None  # noqa: S101 - `applies` has asked
        norm = table.norm(dim=1)
        start = table[int(norm.argmax()) if self.preset == "standard" else -1].detach().float()
        length = start.norm().clamp_min(1e-6)
        words = start.repeat(model.classes, 1).requires_grad_()
        step = torch.optim.Adam([words], self.lr * float(length) / len(start) ** 0.5)
        rounds = max(self.epochs, -(-UPDATES * BATCH // len(x)))
        for _ in range(rounds):
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                batch, own = x[rows].to(model.device), answers[rows].to(model.device)
                lost = losses(model, batch, own, words, heat)
                loss = (F.relu(self.low - lost) + F.relu(lost - self.high)).mean()
                (words.grad,) = torch.autograd.grad(loss, words)
                step.step()
                with torch.no_grad():
                    words *= length / words.norm(dim=1, keepdim=True).clamp_min(1e-12)
        found = words.detach()
        with torch.no_grad():
            parts = zip(x.split(self.batch), answers.split(self.batch), strict=True)
            lost = torch.cat(
                [losses(model, b.to(model.device), a.to(model.device), found, heat).cpu() for b, a in parts]
            )
        middle, spread = zip(*(_usual(lost[answers == c], lost) for c in range(model.classes)), strict=True)
        return {
            "words": found.cpu(),
            "heat": torch.tensor(heat),
            "middle": torch.stack(middle),
            "spread": torch.stack(spread),
        }

    def _heat(self, log_p: Tensor) -> float:
        """What logits are divided by, so that clean texts are no surer than `MARGIN` in their middle."""
        if self.preset == "paper":
            return 1.0
        best = log_p.topk(2, dim=1).values
        return max(1.0, float((best[:, 0] - best[:, 1]).median()) / MARGIN)

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        words, middle, spread = (learned[k].to(model.device) for k in ("words", "middle", "spread"))
        heat = float(learned["heat"])

        def score(x: Tensor) -> Tensor:
            logits = answer(model, x).float()
            own = logits.argmax(1)
            lost = losses(model, x, own, words, heat, logits)
            return (middle[own] - lost) / spread[own]

        return score


def losses(
    model: Model, x: Tensor, own: Tensor, words: Tensor, heat: float, logits: Tensor | None = None
) -> Tensor:
    """What texts x (N, L) lose of the probability of their classes (N,) with the words (C, D) of those, (N,).

    Args:
        heat: what logits are divided by.
        logits: of the texts as they are, where those are known.
    """
    if logits is None:
        with torch.no_grad():
            logits = model.logits(x).float()
    with torch.enable_grad():
        changed = model.logits(model.modality.with_word(x, words[own])).float()
    before, after = ((z / heat).softmax(1).gather(1, own[:, None])[:, 0] for z in (logits, changed))
    return before - after


def _usual(own: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """Median of the losses of a class and how far the lowest lie below it; of all where it has few."""
    v = own if len(own) >= LEAST else every
    return v.median(), (v.median() - v.quantile(LOWEST)).clamp_min(FLOOR)
