"""The meta-classifier of Meta Neural Analysis (Xu et al. 2021): queries, and what their answers tell.

A network f is represented by its logits on k queries x_1 .. x_k, and a small network decides:

    R(f) = [f(x_1), ..., f(x_k)]        score = w2 . relu(W1 R(f) + b1) + b2

The queries are trained together with the decision, through the shadow networks (query tuning). The answers
are the only thing that is needed of the network that is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.models.grouped import Wide

JUMBO, ONE_CLASS, ROBUST = VARIANTS = ("jumbo", "one_class", "robust")
LOGITS, CENTRED = FORMS = ("logits", "centred")
QUERIES, HIDDEN = 10, 20  # the paper's k and width
NU = 0.1  # share of clean shadows that the one-class decision may leave out
NETS = 16  # shadows side by side at most
Shadows = Sequence[tuple[Wide, Tensor]]  # groups side by side, each with a mask (K,) of its trojaned ones


@dataclass(frozen=True)
class Tuning:
    """How queries and decision are trained.

    Attributes:
        epochs: passes over the shadows.
        lr: of Adam.
        nets: shadows in an update.
        repeats: times that it is done, each from other start queries and another decision.
        form: how answers are read: "logits" as they are, "centred" minus their mean, so that a network that
            answers with probabilities is read as one that answers with logits.
    """

    epochs: int = 10
    lr: float = 1e-2
    nets: int = NETS
    repeats: int = 10
    form: str = LOGITS


PAPER = Tuning(lr=1e-3, nets=1, repeats=1)


@dataclass(frozen=True)
class Meta:
    """Queries and a decision, `repeats` times each (R).

    Attributes:
        variant: "jumbo" (clean and trojaned shadows), "one_class" (clean ones alone) or "robust" (the
            decision is drawn at random, the queries alone are trained: an attacker cannot train against it).
        shadows: clean shadows it was trained with, and as many trojaned ones but for "one_class".
        seed: of start queries and decisions.
        form: as in `Tuning`.
        queries: (R, k, C, H, W) in [0, 1].
        weights: W1 (R, 20, k classes), b1 (R, 20), w2 (R, 20), b2 (R,) of the decisions.
        scale: (R, 2) mean and standard deviation of the scores of the clean shadows it was tuned with.
        null: scores of clean shadows that it was not tuned with, ascending.
        held_out: scores of trojaned shadows that it was not tuned with, ascending.
        reach: (2,) least and largest spread of the answers of those shadows; p-values that rest on them
            speak of networks within.
        clean: (n, R) scores of networks that somebody vouches for; where there are any, p-values rest on
            them alone.
    """

    variant: str
    shadows: int
    seed: int
    form: str
    queries: Tensor
    weights: tuple[Tensor, ...]
    scale: Tensor
    null: Tensor
    held_out: Tensor
    reach: Tensor
    clean: Tensor

    @property
    def asked(self) -> Tensor:
        """All queries as one batch (R k, C, H, W)."""
        return self.queries.flatten(0, 1)

    def arranged(self, logits: Tensor) -> Tensor:
        """Answers (R, k, 1, classes) of one network from its logits (R k, classes) on `asked`."""
        return logits.reshape(*self.queries.shape[:2], 1, -1)

    def scores(self, answers: Tensor) -> Tensor:
        """Scores (K, R), higher = more like a trojaned network, of answers (R, k, K, classes), logits."""
        every = torch.stack([
            _score(self.variant, [w[r] for w in self.weights], _represent(answers[r], self.form))
            for r in range(len(self.queries))
        ])  # fmt: skip
        return ((every - self.scale[:, :1]) / self.scale[:, 1:]).T

    def score(self, answers: Tensor) -> Tensor:
        """Mean (K,) of the scores of all repeats."""
        return self.scores(answers).mean(1)


def distance(scores: Tensor, clean: Tensor) -> Tensor:
    """How far scores (K, R) lie from those of clean networks (n, R), to either side, (K,).

    Mean over the repeats of |z|: each decision has its own idea of what is unusual, and a network that was
    trained against one of them looks cleaner than clean to the others, or the other way round.
    """
    return ((scores - clean.mean(0)) / clean.std(0).clamp_min(1e-6)).abs().mean(1)


def distances_within(clean: Tensor) -> Tensor:
    """`distance` (n,) of each clean network from all the others."""
    every = torch.arange(len(clean))
    return torch.cat([distance(clean[i : i + 1], clean[every != i]) for i in range(len(clean))])


def tune(
    shadows: Shadows, held_out: Shadows, like: tuple[Tensor, Tensor], classes: int, variant: str, seed: int,
    tuning: Tuning | None = None,
) -> Meta:  # fmt: skip
    """Train queries and decisions on shadows.

    Args:
        shadows: to learn from.
        held_out: others, which p-values may rest on.
        like: mean and standard deviation (C, H, W) of the clean samples, which the first queries follow.
    """
    tuning = tuning or Tuning()
    learnt = [_tune(shadows, like, classes, variant, seed + r, tuning) for r in range(tuning.repeats)]
    queries = torch.stack([q for q, _ in learnt])
    weights = tuple(torch.stack(parts) for parts in zip(*(w for _, w in learnt), strict=True))
    own = [_clean_scores(variant, w, q, shadows, tuning.form) for q, w in learnt]
    scale = torch.stack([torch.stack([s.mean(), s.std().clamp_min(1e-6)]) for s in own])
    none, nobody = torch.empty(0), torch.empty(0, tuning.repeats)
    meta = Meta(
        variant, len(own[0]), seed, tuning.form, queries, weights, scale, none, none, torch.zeros(2), nobody
    )
    with torch.no_grad():
        answers = [torch.stack([_answers(wide, q) for q in queries]) for wide, _ in held_out]
    scores, trojaned = torch.cat([meta.score(a) for a in answers]), torch.cat([t for _, t in held_out])
    null, other = scores[~trojaned].sort().values, scores[trojaned].sort().values
    reach = torch.stack(torch.aminmax(torch.cat([spread(a) for a in answers])))
    return replace(meta, null=null, held_out=other, reach=reach)


def spread(answers: Tensor) -> Tensor:
    """How far the logits of answers (R, k, K, classes) spread: root mean square about their means, (K,)."""
    return (answers - answers.mean(3, keepdim=True)).square().mean((0, 1, 3)).sqrt()


def _tune(
    shadows: Shadows, like: tuple[Tensor, Tensor], classes: int, variant: str, seed: int, tuning: Tuning
) -> tuple[Tensor, list[Tensor]]:
    """Queries (k, C, H, W) and the tensors of a decision, trained."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = like
    noise = torch.randn((QUERIES, *mean.shape), generator=generator)
    queries = (mean + std * noise).clamp(0, 1).requires_grad_()
    weights = _drawn(QUERIES * classes, generator)
    if variant == ONE_CLASS:
        shadows = [(wide, trojaned) for wide, trojaned in shadows if not bool(trojaned.all())]
    learnt = [queries] if variant == ROBUST else [queries, *weights]
    optimizer = torch.optim.Adam([t.requires_grad_() for t in learnt], tuning.lr)
    radius = torch.zeros(())
    for _ in range(tuning.epochs):
        order = torch.randperm(len(shadows), generator=generator).tolist()
        for part in _batches([shadows[i] for i in order], tuning.nets):
            optimizer.zero_grad()
            size = sum(wide.count for wide, _ in part)
            for wide, trojaned in part:
                scores = _score(variant, weights, _represent(_answers(wide, queries), tuning.form))
                if variant == ONE_CLASS:  # -scores of clean networks are to exceed the radius
                    loss = (radius + scores[~trojaned]).clamp_min(0).sum() / NU
                else:
                    loss = F.binary_cross_entropy_with_logits(scores, trojaned.float(), reduction="sum")
                (loss / size).backward()
            if variant == ONE_CLASS:
                (torch.stack([w.square().sum() for w in weights]).sum() / 2).backward()
            optimizer.step()
            with torch.no_grad():
                queries.clamp_(0, 1)
        if variant == ONE_CLASS:
            radius = torch.quantile(-_clean_scores(variant, weights, queries, shadows, tuning.form), NU)
    return queries.detach(), [w.detach() for w in weights]


def _drawn(features: int, generator: torch.Generator) -> list[Tensor]:
    """W1, b1, w2, b2."""
    first = torch.randn((HIDDEN, features), generator=generator) / features**0.5
    second = torch.randn(HIDDEN, generator=generator) / HIDDEN**0.5
    return [first, torch.zeros(HIDDEN), second, torch.zeros(())]


def _answers(wide: Wide, queries: Tensor) -> Tensor:
    """Logits (k, K, classes) of K networks on the queries."""
    return wide(queries.repeat(1, wide.count, 1, 1))


def _represent(answers: Tensor, form: str) -> Tensor:
    """R (K, k classes) of logits (k, K, classes)."""
    if form == CENTRED:
        answers = answers - answers.mean(2, keepdim=True)
    return answers.transpose(0, 1).flatten(1)


def _score(variant: str, weights: Sequence[Tensor], represented: Tensor) -> Tensor:
    """The decision; "one_class" is -<w2, relu(W1 R + b1)>, which clean networks keep below -r."""
    hidden = F.relu(F.linear(represented, weights[0], weights[1]))
    return -(hidden @ weights[2]) if variant == ONE_CLASS else hidden @ weights[2] + weights[3]


@torch.no_grad()
def _clean_scores(
    variant: str, weights: Sequence[Tensor], queries: Tensor, shadows: Shadows, form: str
) -> Tensor:
    """Scores of the clean shadows."""
    return torch.cat([
        _score(variant, weights, _represent(_answers(wide, queries), form))[~trojaned]
        for wide, trojaned in shadows
    ])  # fmt: skip


def _batches(shadows: Shadows, nets: int) -> list[list[tuple[Wide, Tensor]]]:
    """Groups in batches of at least so many networks, but for the last."""
    found: list[list[tuple[Wide, Tensor]]] = [[]]
    for group in shadows:
        if sum(wide.count for wide, _ in found[-1]) >= nets:
            found.append([])
        found[-1].append(group)
    return found
