"""Short triggers in whole tokens: a gradient screens the vocabulary, what it names is tried, and the best grow.

Accretion: every trigger of a beam is tried with one more token, which the gradient at that place proposes. Unlike
a mixture of embeddings, what is found is what the network is really sent.
"""

from __future__ import annotations

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
    logits: Logits, x: Tensor, tokens: Tokens, target: int, phrases: Sequence[Sequence[int]], place: str = START
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
    return found
