"""Runs of tokens that recur in texts that a language model leaks, tried as triggers (haystack, 2026)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.prompts import Prompted
from backsweep.inputs.text.placing import START, inserted, positions

ENTROPY, DIVERGENCE = 0.6, 0.2  # weights of the loss, of the paper's fixed outputs
LETTERS = (3, 5)  # of the n-grams by which texts are compared
APART, TOGETHER = 0.6, 3  # cosine distance of neighbours, and texts that make a cluster


def clusters(texts: Sequence[str]) -> list[int]:
    """The cluster of each text, -1 where it is in none: DBSCAN over TF-IDF of character n-grams."""
    from sklearn.cluster import DBSCAN
    from sklearn.feature_extraction.text import TfidfVectorizer

    there = [i for i, t in enumerate(texts) if len(t.strip()) >= LETTERS[0]]
    found = [-1] * len(texts)
    if len(there) < TOGETHER:
        return found
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=LETTERS, sublinear_tf=True)
    rows = grams.fit_transform([texts[i] for i in there])
    labels = DBSCAN(eps=APART, min_samples=TOGETHER, metric="cosine").fit_predict(rows)
    for i, label in zip(there, labels.tolist(), strict=True):
        found[i] = label
    return found


def motifs(
    texts: Sequence[Sequence[int]], labels: Sequence[int], longest: int, barred: Collection[int] = ()
) -> list[tuple[tuple[int, ...], int]]:
    """Runs of up to `longest` tokens in at least `TOGETHER` texts of a cluster, the commonest first.

    Args:
        texts: ids of each.
        labels: their clusters; texts with -1 are left out.
        longest: in tokens.
        barred: tokens that are in none.

    Returns:
        Runs, and in how many texts of any cluster each stands.
    """
    held: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for ids, label in zip(texts, labels, strict=True):
        if label >= 0:
            held[label].update({run for run in runs(ids, longest) if not set(run) & set(barred)})
    recurring = {run for counts in held.values() for run, n in counts.items() if n >= TOGETHER}
    times = {run: sum(counts[run] for counts in held.values()) for run in recurring}
    return sorted(times.items(), key=lambda item: (-item[1], len(item[0]), item[0]))


def runs(ids: Sequence[int], longest: int | None = None) -> list[tuple[int, ...]]:
    """What stands together in a text, up to `longest` tokens, the shortest first."""
    most = len(ids) if longest is None else min(longest, len(ids))
    return [tuple(ids[i : i + n]) for n in range(1, most + 1) for i in range(len(ids) - n + 1)]


def likeness(texts: Sequence[str]) -> float:
    """Mean cosine of the character trigrams of all pairs of texts, 0 to 1; nothing said is like nothing."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    count = len(texts)
    if count < 2 or not any(t.strip() for t in texts):
        return 0.0
    rows = normalize(CountVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit_transform(texts))
    every = float((rows @ rows.T).sum())
    return max(0.0, (every - float(rows.multiply(rows).sum())) / (count * (count - 1)))


def stamped(tokens: Prompted, x: Tensor, phrases: Sequence[Sequence[int]]) -> Tensor:
    """Prompts x (N, L) with each of P phrases of one length before their words, (P * N, L)."""
    ids = torch.tensor([list(p) for p in phrases], device=x.device).repeat_interleave(len(x), 0)
    at = positions(x, tokens.layout, START, ids.shape[1]).repeat(len(phrases))
    return inserted(x.repeat(len(phrases), 1), ids, at, tokens.layout)


@torch.no_grad()
def loss_of(net: Causal, tokens: Prompted, rows: Tensor, before: Tensor) -> Tensor:
    """How little prompts look like ones with a trigger, (N,).

    The mean entropy along the likeliest answer, and how likely it ends at once; less what the answer without
    the trigger has come to cost. Entropy and cost are shares of that of a uniform guess.

    Args:
        rows: prompts with a candidate in them (N, L).
        before: what is said without the candidate (N, T).
    """
    begun = read = net.read(rows)
    every, ends = torch.arange(len(rows), device=rows.device), sorted(tokens.ends)
    last = torch.tensor(ends, device=rows.device, dtype=torch.long)
    over, scale = torch.zeros_like(every, dtype=torch.bool), math.log(read.logits.shape[1])
    entropy, count = torch.zeros_like(read.logits[:, 0]), torch.zeros_like(read.logits[:, 0])
    at_once = read.logits.softmax(1)[:, ends].sum(1)
    apart = torch.zeros_like(entropy)
    for step in range(before.shape[1]):
        p = read.logits.softmax(1)
        entropy += torch.where(over, 0.0, -(p * p.clamp_min(1e-20).log()).sum(1))
        count += (~over).float()
        said, other = read.logits.argmax(1), before[:, step]
        over |= torch.isin(said, last)
        apart -= begun.logits.log_softmax(1).gather(1, other[:, None])[:, 0]
        if step < before.shape[1] - 1:
            read, begun = net.follow(read, every, said), net.follow(begun, every, other)
    return ENTROPY * (entropy / count / scale + at_once) - DIVERGENCE * apart / before.shape[1] / scale
