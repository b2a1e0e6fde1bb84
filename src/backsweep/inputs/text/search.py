"""Short triggers in whole tokens: a gradient screens the vocabulary, what it names is tried, the best grow.

Accretion: every trigger of a beam is tried with one more token, which the gradient at that place proposes.
Unlike a mixture of embeddings, what is found is what the network is really sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import START, inserted, positions
from backsweep.inputs.text.tokens import Tokens

PASS = 256  # texts in a pass
ENTRIES = 2**24  # shares of tokens that are held at once
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Phrase:
    """Tokens that were tried.

    Attributes:
        ids: the tokens.
        success: share of the texts that they send to the target.
        margin: mean of how far the target's logit is then above all others.
    """

    ids: tuple[int, ...]
    success: float
    margin: float


def candidates(tokens: Tokens) -> Tensor:
    """Tokens that a trigger may hold, a mask (V,): no special ones, and none that nobody can see."""
    known = torch.tensor([bool(w.strip()) for w in tokens.vocabulary])
    known[sorted(i for i in tokens.specials if i < len(known))] = False
    return known


def ahead(logits: Tensor, target: int) -> Tensor:
    """How far the target's logit is above the best other one, (N,)."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.amax(1)


def gains(
    logits: Logits, x: Tensor, tokens: Tokens, target: int, before: Sequence[int] = (), place: str = START
) -> Tensor:
    """What a first share of each token, put behind `before`, lowers the loss by, to first order (V,)."""
    count = len(before) + 1
    at = positions(x, tokens.layout, place, count)
    ids = inserted(x, torch.tensor([*before, tokens.plain], device=x.device), at, tokens.layout)
    share = torch.zeros((1, 1, len(tokens)), device=x.device, requires_grad=True)
    changed = Changed(ids, tokens.layout, at + len(before), share.expand(len(x), -1, -1))
    with torch.enable_grad():
        loss = F.softplus(-ahead(logits(cast(Tensor, changed)).float(), target)).mean()
        (grad,) = torch.autograd.grad(loss, share)
    return -grad[0, 0]


@torch.no_grad()
def tried(
    logits: Logits,
    x: Tensor,
    tokens: Tokens,
    target: int,
    phrases: Sequence[Sequence[int]],
    place: str = START,
) -> list[Phrase]:
    """Phrases of one length, each put into all texts x (N, L)."""
    if not phrases:
        return []
    ids = torch.tensor([list(p) for p in phrases], device=x.device)
    at = positions(x, tokens.layout, place, ids.shape[1])
    each = max(1, PASS // len(x))
    found: list[Phrase] = []
    for part in ids.split(each):
        rows = x.repeat(len(part), 1)
        stamped = inserted(rows, part.repeat_interleave(len(x), 0), at.repeat(len(part)), tokens.layout)
        margins = ahead(logits(stamped).float(), target).reshape(len(part), len(x))
        found += [
            Phrase(tuple(p), float((m > 0).float().mean()), float(m.mean()))
            for p, m in zip(part.tolist(), margins, strict=True)
        ]
    return found


def best(found: Sequence[Phrase], count: int) -> list[Phrase]:
    """The strongest phrases by their margin."""
    return sorted(found, key=lambda p: (-p.margin, p.ids))[:count]


def search(
    logits: Logits,
    x: Tensor,
    tokens: Tokens,
    target: int,
    *,
    words: int = 3,
    screened: int = 128,
    beam: int = 4,
    few: int = 12,
    place: str = START,
    allowed: Tensor | None = None,
    enough: float = math.inf,
) -> list[list[Phrase]]:
    """The strongest phrases of 1 .. `words` tokens, a list for each length.

    Args:
        logits: of a network, differentiable.
        x: texts (N, L) that should go to the target.
        screened: tokens that the gradient names for a step, of which all are tried.
        beam: phrases that grow.
        few: texts on which all are tried; the best are tried on all.
        place: where they stand.
        allowed: tokens that may be used, a mask (V,).
        enough: success of the strongest from which on no longer ones are tried.
    """
    allowed = (candidates(tokens) if allowed is None else allowed).to(x.device)
    stems: list[tuple[int, ...]] = [()]
    found: list[list[Phrase]] = []
    for _ in range(words):
        grown: list[tuple[int, ...]] = []
        for stem in stems:
            gain = gains(logits, x[: 4 * few], tokens, target, stem, place).masked_fill(~allowed, -torch.inf)
            count = min(max(8, screened // len(stems)), int(allowed.sum()))
            grown += [(*stem, i) for i in gain.topk(count).indices.tolist()]
        short = best(tried(logits, x[:few], tokens, target, sorted(set(grown)), place), 4 * beam)
        found.append(best(tried(logits, x, tokens, target, [p.ids for p in short], place), beam))
        stems = [p.ids for p in found[-1]]
        if found[-1] and found[-1][0].success >= enough:
            break
    return found


SHARES = tuple(0.05 * 1.5**k for k in range(10))  # of a word, at which its effect is looked at: .05 to 1.9
LEADERS, USUAL = 4, 20  # words that may all be planted, and words by which the usual is told
SEEN, LIKELIER = 3, 3.0  # clean texts that hold a word, and how much more often those of the class do


@dataclass(frozen=True)
class Standing:
    """How far the strongest word of a target stands out from the next ones.

    Natural words form a continuum: the strongest is hardly stronger than the next. A planted one is apart.

    Attributes:
        words: the strongest words, most so first.
        sizes: log share of each at which texts are won, mean over texts, relative to the smallest share.
    """

    words: tuple[int, ...]
    sizes: tuple[float, ...]

    @property
    def usual(self) -> float:
        """Median size of the words behind the first few: several planted ones do not hide each other."""
        rest = sorted(self.sizes)[LEADERS:] or self.sizes
        return rest[len(rest) // 2]

    @property
    def gap(self) -> float:
        """How much smaller the strongest is than usual, a difference of logarithms."""
        return self.usual - min(self.sizes)


@torch.no_grad()
def sizes(
    logits: Logits, x: Tensor, tokens: Tokens, target: int, words: Sequence[int], place: str = START
) -> list[float]:
    """For each word the mean over texts x of the log share at which it wins them."""
    pace = math.log(SHARES[1] / SHARES[0])
    at = positions(x, tokens.layout, place, 1)
    rows = inserted(x, torch.tensor([tokens.plain], device=x.device), at, tokens.layout)
    each = max(1, min(PASS // len(x), ENTRIES // (len(tokens) * len(x))))
    lost = torch.zeros(len(words))
    for share in SHARES:
        for start in range(0, len(words), each):
            part = torch.tensor(words[start : start + each], device=x.device)
            mixed = torch.zeros((len(part), 1, 1, len(tokens)), device=x.device)
            mixed[torch.arange(len(part)), 0, 0, part] = share
            changed = Changed(
                rows.repeat(len(part), 1), tokens.layout, at.repeat(len(part)),
                mixed.expand(-1, len(x), -1, -1).flatten(0, 1),
            )  # fmt: skip
            margins = ahead(logits(cast(Tensor, changed)).float(), target).reshape(len(part), len(x))
            lost[start : start + each] += (margins <= 0).float().mean(1).cpu()
    return (pace * lost).tolist()


def standing(
    logits: Logits,
    x: Tensor,
    tokens: Tokens,
    target: int,
    *,
    more: Sequence[int] = (),
    screened: int = 256,
    few: int = 12,
    place: str = START,
) -> Standing:
    """The strongest words for a target, of those that the gradient names and of `more`.

    Args:
        x: texts (N, L) of other classes.
        screened: words that are tried on `few` texts.
    """
    gain = gains(logits, x[: 4 * few], tokens, target, (), place)
    allowed = candidates(tokens).to(x.device)
    count = min(screened, int(allowed.sum()))
    named = gain.masked_fill(~allowed, -torch.inf).topk(count).indices.tolist()
    pool = sorted({*named, *(int(i) for i in more if bool(allowed[i]))})
    leading = best(tried(logits, x[:few], tokens, target, [(i,) for i in pool], place), USUAL)
    words = [p.ids[0] for p in leading]
    found = sizes(logits, x[:few], tokens, target, words, place)
    order = sorted(range(len(words)), key=lambda i: (found[i], words[i]))
    return Standing(tuple(words[i] for i in order), tuple(found[i] for i in order))


def explained(x: Tensor, y: Tensor, target: int, words: Sequence[int]) -> list[bool]:
    """Whether the labels of clean texts say why a word stands for a class: it is natural, not planted.

    So where `SEEN` texts or more hold it, and one of the class is `LIKELIER` times as likely to as another.

    Args:
        x, y: clean texts (N, L) and their labels (N,).
    """
    own, found = y == target, []
    rest = ~own
    for word in words:
        holds = (x == word).any(1)
        inside, outside = int((holds & own).sum()), int((holds & rest).sum())
        likelier = (inside + 0.5) / (int(own.sum()) + 1) / ((outside + 0.5) / (int(rest.sum()) + 1))
        found.append(inside + outside >= SEEN and likelier >= LIKELIER)
    return found
