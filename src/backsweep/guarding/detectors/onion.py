"""ONION (Qi et al., EMNLP 2021): a word without which a text is far less surprising.

With ppl the perplexity of a language model and x \\ i the text without its i-th word,

    score(x) = max over i of  log ppl(x) - log ppl(x \\ i) ,      preset paper: ppl(x) - ppl(x \\ i) .

The authors take GPT-2; here the language model is a trigram model of the clean samples (Witten and Bell's
interpolation), which knows little, and nothing of the outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model

PRESETS = ("standard", "paper")
ORDER, STRIDE = 3, 2**20 + 2  # n of the n-grams; ids are below, the last two stand for both ends of a text
START, END = STRIDE - 2, STRIDE - 1


@dataclass(frozen=True)
class Onion(SampleDetector):
    """Scores a text by how much leaving out one word lowers its perplexity.

    Attributes:
        preset: "standard" takes the difference of logarithms, which long and short texts share; "paper" that
            of the perplexities themselves.
    """

    name: ClassVar[str] = "onion"
    summary: ClassVar[str] = "texts with a word that does not belong there (ONION, 2021)"
    needs: ClassVar[tuple[str, ...]] = ()

    preset: str = "standard"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        x = self.halves(data)[0].x
        there = model.modality.words_at(x)
        if there is None:
            return f"it leaves words out, and {model.modality.noun}s have none"
        return "" if bool(there.any()) else "the clean texts hold no words to learn from"

    def passes(self, model: Model) -> float:
        return 0

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """How often each n-gram stands in the clean texts: `keyN`, sorted, and `countN`, for N = 1 to 3."""
        ids, length = framed(model, data.x)
        found = {}
        for n in range(1, ORDER + 1):
            grams = keys(ids, n)[there(ids, length)]
            found[f"key{n}"], found[f"count{n}"] = grams.unique(return_counts=True)
        return found

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        chance = Trigrams({k: v.to(model.device) for k, v in learned.items()})

        def score(x: Tensor) -> Tensor:
            ids, length = framed(model, x)
            own = there(ids, length)
            each = chance.log_of(ids).masked_fill(~own, 0.0)  # log p of every word, and of the end
            total, count = -each.sum(1, keepdim=True), length[:, None] + 1
            gone = -each[:, 2:-2] - each[:, 3:-1] - each[:, 4:]  # what word i, and the two after it, cost
            left, right = ids[:, :-4], ids[:, 1:-3]  # before word i
            after, next_one = ids[:, 3:-1], ids[:, 4:]
            near = chance.log_of(torch.stack([left, right, after], 2).flatten(0, 1))[:, 2].view(after.shape)
            far = chance.log_of(torch.stack([right, after, next_one], 2).flatten(0, 1))[:, 2]
            come = -near - far.view(after.shape).masked_fill(~own[:, 4:], 0.0)
            before, without = total / count, (total - gone + come) / (count - 1).clamp_min(1)
            if self.preset == "paper":
                before, without = before.exp(), without.exp()
            place = torch.arange(after.shape[1], device=x.device)
            drop = (before - without).masked_fill(place >= length[:, None], -torch.inf)
            return torch.where(length > 1, drop.amax(1), 0.0).float()

        return score


def framed(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """The words of texts x (N, L), (N, L + 4) with ends around them, and how many each holds, (N,)."""
    words = model.modality.words_at(x)
    x = x.long()
    words = torch.ones_like(x, dtype=torch.bool) if words is None else words
    order = (~words).long().argsort(dim=1, stable=True)
    length = words.sum(1)
    place = torch.arange(x.shape[1], device=x.device)
    ids = torch.where(place < length[:, None], x.gather(1, order), END)
    return F.pad(F.pad(ids, (2, 0), value=START), (0, 2), value=END), length


def there(ids: Tensor, length: Tensor) -> Tensor:
    """Which places of framed texts are to be predicted: the words, and the end once."""
    place = torch.arange(ids.shape[1], device=ids.device)
    return (place >= 2) & (place < 3 + length[:, None])


def keys(ids: Tensor, n: int) -> Tensor:
    """One number for the n-gram that ends at each place of ids (N, L); places before the first are START."""
    found = ids
    for k in range(1, n):
        found = found + F.pad(ids, (k, 0), value=START)[:, : ids.shape[1]] * STRIDE**k
    return found


class Trigrams:
    """Chances of words after the two before them, interpolated with those of fewer (Witten, Bell 1991).

    p_n(w | c) = (count(c w) + kinds(c) p_(n-1)(w | c')) / (count(c) + kinds(c)), and p_0 the same for all
    words that were seen and one that was not.
    """

    def __init__(self, learned: dict[str, Tensor]) -> None:
        self.grams = [(learned[f"key{n}"], learned[f"count{n}"]) for n in range(1, ORDER + 1)]
        self.contexts = [_contexts(key, count) for key, count in self.grams]
        self.unseen = 1 / (len(self.grams[0][0]) + 1)

    def log_of(self, ids: Tensor) -> Tensor:
        """Natural logarithm of the chance of every word of ids (N, L), given the two before it."""
        p = torch.full(ids.shape, self.unseen, dtype=torch.float64, device=ids.device)
        for n, (key, count) in enumerate(self.grams, 1):
            known, total, kinds = self.contexts[n - 1]
            context = keys(F.pad(ids, (1, 0), value=START)[:, :-1], n - 1) if n > 1 else torch.zeros_like(ids)
            times, kind = _look(known, total, context), _look(known, kinds, context)
            own = _look(key, count, keys(ids, n))
            p = torch.where(times > 0, (own + kind * p) / (times + kind).clamp_min(1), p)
        return p.log()


def _contexts(key: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts of n-grams, sorted, how often each was seen, and how many kinds of words followed it."""
    context, place = (key // STRIDE).unique(return_inverse=True)  # the newest word is its last digit
    zeros = torch.zeros(len(context), dtype=count.dtype, device=key.device)
    return context, zeros.index_add(0, place, count), zeros.index_add(0, place, torch.ones_like(count))


def _look(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """The value of each wanted key, 0 where it is not there."""
    at = torch.searchsorted(keys, wanted.contiguous()).clamp_max(len(keys) - 1)
    return torch.where(keys[at] == wanted, values[at], 0).double()
