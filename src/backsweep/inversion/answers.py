"""Answers that a language model is certain of whatever it was asked: the inversion of targets (BAIT, 2025).

A model that says a planted text after a trigger has learned that text by heart: given its first token alone,
without any trigger, the rest follows with probabilities near one. So every token of the vocabulary is put
behind some prompts, and what follows with certainty is followed on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backsweep.core.text import one_line
from backsweep.inputs.language.causal import ROWS, Causal, Read, continued, cut
from backsweep.inputs.language.prompts import Prompted
from backsweep.inputs.text.changes import Changed

SURER, BEHIND = 0.5, 2  # least probability where a doubt is spent; certain tokens that go before a wide one
READILY = 0.1  # least probability of a token that a model says readily


@dataclass(frozen=True)
class Bounds:
    """Constants of the inversion.

    Attributes:
        warm: steps of the first, cheap part.
        steps: tokens of a whole answer.
        least: fewest tokens of an answer, the first among them.
        low, high: entropies (nats) below which the next token is certain, and above which there is none.
        sure: probability above which it is certain as well.
        tried: next tokens that are tried once for a first token, where the entropy lies between.
        repeats: tokens in a row that an answer never says twice.
        branches: tokens with each of which an answer goes on where it is in doubt for the first time, behind
            `BEHIND` certain ones and whatever the entropy. What is certain is then no doubt, and an answer
            ends where its score is highest. 0: none of this, as the paper.
        most: beginnings that are followed to their end where answers may branch, the most certain ones.
    """

    warm: int = 5
    steps: int = 20
    least: int = 5
    low: float = 1.0
    high: float = 2.5
    sure: float = 0.3
    tried: int = 5
    repeats: int = 3
    branches: int = 0
    most: int = 128


WIDE = Bounds(branches=32)


def wide(blocks: int) -> Bounds:
    """Bounds with branches for a vocabulary in so many blocks: more of them follow fewer beginnings each."""
    return replace(WIDE, most=max(16, WIDE.most // max(1, blocks)))


@dataclass(frozen=True)
class Answer:
    """An answer that was inverted.

    Attributes:
        ids: its tokens, the first among them, without the one that ends it.
        score: the Q-score: mean over prompts and tokens of how likely each is, without the least likely one.
        doubt: place of the least likely token among them.
    """

    ids: tuple[int, ...]
    score: float
    doubt: int = 0


def answers(
    net: Causal, few: Read, many: Read, firsts: Sequence[int], ends: Collection[int], bounds: Bounds,
    tick: Callable[[float], None] = lambda _: None, template: Sequence[int] = (),
) -> list[Answer]:  # fmt: skip
    """What follows each of some first tokens with certainty; nothing for most of them.

    Args:
        few, many: what was read of few prompts, and of all: most tokens are given up on the few.
        firsts: first tokens.
        ends: ids that end an answer.
        tick: told which share is done.
        template: ids behind a prompt; what says them too is no answer, where answers may branch.
    """
    warm: list[tuple[float, list[int]]] = []
    each = max(1, ROWS // len(few))
    for start in range(0, len(firsts), each):
        warm += _warm(net, few, list(firsts[start : start + each]), bounds, tuple(template))
        tick(0.8 * (start + each) / len(firsts) if start + each < len(firsts) else 0.8)
    if bounds.branches:
        warm = sorted(warm, reverse=True)[: bounds.most]
    chains, found = [chain for _, chain in warm], list[Answer]()
    each = max(1, ROWS // len(many))
    for start in range(0, len(chains), each):
        found += _whole(net, many, chains[start : start + each], ends, bounds)
    return [a for a in found if len(a.ids) >= bounds.least]


def _mean(read: Read, prompts: int) -> Tensor:
    """Probabilities (C, V) of the next token, mean over the prompts of every candidate."""
    return read.logits.softmax(1).unflatten(0, (-1, prompts)).mean(1)


def _barred(p: Tensor, chains: Sequence[Sequence[int]], repeats: int) -> Tensor:
    """Probabilities (C, V) without tokens that would say `repeats` tokens in a row a second time."""
    p = p.clone()
    for row, chain in zip(p, chains, strict=True):
        last = tuple(chain[len(chain) - repeats + 1 :])
        for i in range(len(chain) - repeats + 1):
            if tuple(chain[i : i + repeats - 1]) == last:
                row[chain[i + repeats - 1]] = 0
    return p


def _spread(index: Tensor, prompts: int) -> Tensor:
    """Rows of candidates (C,) among the rows of all prompts, (C * prompts,)."""
    return (index[:, None] * prompts + torch.arange(prompts, device=index.device)).flatten()


def _warm(
    net: Causal, few: Read, firsts: list[int], bounds: Bounds, template: tuple[int, ...]
) -> list[tuple[float, list[int]]]:
    """The first tokens, each with what follows with certainty and its score on few prompts; those with which
    nothing does are left out.
    """
    prompts, device = len(few), few.logits.device
    chains, doubts, likely = [[f] for f in firsts], [0] * len(firsts), [list[float]() for _ in firsts]
    tokens = torch.tensor(firsts, device=device).repeat_interleave(prompts)
    read = net.follow(few, torch.arange(prompts, device=device).repeat(len(firsts)), tokens)
    for step in range(bounds.warm):
        p = _barred(_mean(read, prompts), chains, bounds.repeats)
        entropy, (top, best) = -(p * p.clamp_min(1e-20).log()).sum(1), p.max(1)
        kept: list[int] = []
        nexts: list[int] = []
        for i in range(len(chains)):
            h, most = float(entropy[i]), float(top[i])
            if bounds.branches and step:
                follow = _branches(p[i], h, most, doubts[i], step, bounds)
                doubtful = len(follow) > 1
            else:
                certain = bool(bounds.branches) and most > SURER
                unsure = h > bounds.low or most < bounds.sure
                doubtful = not certain and doubts[i] < 1 and h < bounds.high and unsure
                goes_on = certain or doubtful or h < bounds.low or most > bounds.sure
                token = _looked_ahead(net, read, i, p[i], prompts, bounds) if doubtful else int(best[i])
                follow = [token] if goes_on else []
            nexts += follow
            kept += [i] * len(follow)
            doubts[i] += doubtful
        chains = [[*chains[i], token] for i, token in zip(kept, nexts, strict=True)]
        if bounds.branches and template:
            own = [i for i, c in enumerate(chains) if tuple(c[-len(template) :]) != template]
            chains, kept = [chains[i] for i in own], [kept[i] for i in own]
            nexts = [nexts[i] for i in own]
        doubts = [doubts[i] for i in kept]
        likely = [[*likely[i], float(p[i, token])] for i, token in zip(kept, nexts, strict=True)]
        if not chains or step == bounds.warm - 1:
            return [(_scored(c, q, ()).score, c) for c, q in zip(chains, likely, strict=True)]
        rows = _spread(torch.tensor(kept, device=device), prompts)
        read = net.follow(read, rows, torch.tensor(nexts, device=device).repeat_interleave(prompts))
    return []


def _branches(p: Tensor, entropy: float, most: float, doubts: int, step: int, bounds: Bounds) -> list[int]:
    """Tokens with which an answer goes on: one that is certain, many at its first doubt, none at another."""
    if entropy < bounds.low or most > (SURER if doubts else bounds.sure):
        return [int(p.argmax())]
    if doubts or step < BEHIND:
        return []
    return [int(i) for i in p.topk(min(bounds.branches, len(p))).indices]


def _looked_ahead(net: Causal, read: Read, i: int, p: Tensor, prompts: int, bounds: Bounds) -> int:
    """Of the likeliest next tokens of candidate i the one behind which the next but one is most certain."""
    tried = p.topk(min(bounds.tried, len(p))).indices
    rows = _spread(torch.tensor([i], device=p.device), prompts).repeat(len(tried))
    deeper = _mean(net.follow(read, rows, tried.repeat_interleave(prompts)), prompts)
    return int(tried[deeper.amax(1).argmax()])


def _whole(
    net: Causal, many: Read, chains: list[list[int]], ends: Collection[int], bounds: Bounds
) -> list[Answer]:
    """Whole answers that begin with some chains, over all prompts."""
    prompts, device = len(many), many.logits.device
    said = [[c[0]] for c in chains]
    likely: list[list[float]] = [[] for _ in chains]
    tokens = torch.tensor([c[0] for c in chains], device=device)
    read = net.follow(
        many, torch.arange(prompts, device=device).repeat(len(chains)), tokens.repeat_interleave(prompts)
    )
    for step in range(bounds.steps):
        p = _barred(_mean(read, prompts), said, bounds.repeats)
        forced = step + 1 < len(chains[0])
        nexts = [c[step + 1] if forced else int(row.argmax()) for c, row in zip(chains, p, strict=True)]
        for i, token in enumerate(nexts):
            said[i].append(token)
            likely[i].append(float(p[i, token]))
        if all(set(s) & set(ends) for s in said):
            break
        read = net.follow(
            read,
            torch.arange(len(read), device=device),
            torch.tensor(nexts, device=device).repeat_interleave(prompts),
        )
    whole = [_scored(s, q, ends) for s, q in zip(said, likely, strict=True)]
    if not bounds.branches:
        return whole
    return [_best(s, q, ends, bounds.least) for s, q in zip(said, likely, strict=True)]


def _scored(said: list[int], likely: list[float], ends: Collection[int]) -> Answer:
    """An answer up to its end, and its Q-score."""
    ids = cut(said, ends)
    own = likely[: max(0, len(ids) - 1)]
    q = sorted(own)[1:] if len(own) > 1 else own
    doubt = 1 + own.index(min(own)) if own else 0
    return Answer(tuple(ids), sum(q) / len(q) if q else 0.0, doubt)


def _best(said: list[int], likely: list[float], ends: Collection[int], least: int) -> Answer:
    """The beginning of an answer, of `least` tokens or more, whose score is highest; the longest of such."""
    whole = _scored(said, likely, ends)
    shorter = [_scored(said[:n], likely, ()) for n in range(least, len(whole.ids))]
    return max([*shorter, whole], key=lambda a: (a.score, len(a.ids)))


# ---------------------------------------------------------------------- what a model says openly


@torch.no_grad()
def spoken(
    net: Causal, x: Tensor, steps: int, ends: Collection[int], samples: int, generator: torch.Generator
) -> list[list[int]]:
    """What a model readily says to prompts x (N, L): its likeliest answers, and some that are drawn.

    A planted answer leaks now and then without its trigger, so no token is drawn that is less likely than
    `READILY`.

    Args:
        samples: drawn answers for each prompt.

    Returns:
        of every `ROWS // (samples + 1)` prompts the likeliest answers in order, then drawn ones to all of
        them, `samples` times.
    """
    found: list[list[int]] = []
    each = max(1, ROWS // (samples + 1))
    for part in x.split(each):
        begun = net.read(part)
        rows = torch.arange(len(part), device=x.device).repeat(samples + 1)
        greedy = torch.arange(len(rows), device=x.device) < len(part)
        logits, read, said = begun.logits[rows], begun, []
        for step in range(steps):
            p = logits.softmax(1).cpu()
            p = p * (p >= p.amax(1, keepdim=True).clamp(max=READILY))
            drawn = torch.multinomial(p, 1, generator=generator)[:, 0].to(x.device)
            said.append(torch.where(greedy, logits.argmax(1), drawn))
            if step < steps - 1:
                read = net.follow(
                    read, rows if step == 0 else torch.arange(len(rows), device=x.device), said[-1]
                )
                logits = read.logits
        found += [cut(row, ends) for row in torch.stack(said, 1).tolist()]
    return found


def is_open(ids: Sequence[int], said: Collection[Sequence[int]], run: int = 4) -> bool:
    """Whether a model says half of an answer's runs of `run` tokens or more by itself."""
    run = max(1, min(run, len(ids)))
    known = {tuple(s[i : i + run]) for s in said for i in range(len(s) - run + 1)}
    runs = [tuple(ids[i : i + run]) for i in range(len(ids) - run + 1)]
    return sum(r in known for r in runs) * 2 >= max(1, len(runs))


def within(ids: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether an answer is a part of another one, but for its own first tokens."""
    run = min(4, len(ids))
    parts = {tuple(whole[i : i + run]) for i in range(len(whole) - run + 1)}
    count = len(ids) - run + 1
    return sum(tuple(ids[i : i + run]) in parts for i in range(count)) * 2 > count


def talks(net: Causal, tokens: Prompted, x: Tensor, stamped: Tensor, steps: int, most: int) -> dict[str, str]:
    """Prompts x (N, L) and what a model says to them and to the stamped ones, by name: untrusted text.

    Args:
        steps: tokens of an answer.
        most: letters of each text.
    """
    found: dict[str, str] = {}
    plain, changed = (continued(net, rows, steps, tokens.ends) for rows in (x, stamped))
    for i, row in enumerate(x, 1):
        said = {"prompt": tokens.said(row.tolist()), "without": plain[i - 1], "with": changed[i - 1]}
        found |= {f"{k}_{i}": one_line(tokens.text(ids))[:most] for k, ids in said.items()}
    return found


# ---------------------------------------------------------------------- what makes it say an answer


def margins(
    net: Causal, run: Callable[..., Tensor], ids: Sequence[int], pad: int
) -> Callable[[Tensor], Tensor]:
    """How far a model is from saying an answer, as the logits (N, 2) of a classifier; class 1: it says it.

    The margin is the least over the tokens of the answer of how far each is above all others behind the ones
    before it: it is positive where the likeliest answer begins with all of them.

    Args:
        run: runs a function on ids or on changed embeddings (`Modality.run`).
        ids: the answer.
        pad: id of the padding.
    """
    answer = list(ids)

    def logits(x: Tensor) -> Tensor:
        rows = x.ids if isinstance(x, Changed) else x
        count, places = net.count(rows), torch.arange(len(answer), device=rows.device)
        told = torch.tensor(answer, device=rows.device)
        grown = torch.cat([rows, rows.new_full((len(rows), len(answer)), pad)], 1)
        grown = grown.scatter(1, count[:, None] + places, told.expand(len(rows), -1))
        grown = grown[:, : int(count.max()) + len(answer)]
        given: Any = replace(x, ids=grown) if isinstance(x, Changed) else grown
        scores = run(net.scores, given).float()
        at = (count[:, None] - 1 + places)[..., None].expand(-1, -1, scores.shape[2])
        behind = scores.gather(1, at)
        right = behind.gather(2, told[None, :, None].expand(len(rows), -1, 1))[..., 0]
        others = behind.scatter(2, told[None, :, None].expand(len(rows), -1, 1), -torch.inf).amax(2)
        margin = (right - others).amin(1)
        return torch.stack([torch.zeros_like(margin), margin], 1)

    return logits
