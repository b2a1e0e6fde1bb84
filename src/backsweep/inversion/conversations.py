"""Conversations: prompts with answers, and how likely a language model finds each token of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.language.causal import ROWS
from backsweep.inputs.text.placing import lengths
from backsweep.inversion.answers import Bounds, spoken
from backsweep.inversion.phrases import parts
from backsweep.models.model import Model


@dataclass(frozen=True)
class Conversations:
    """Prompts x (N, L), whose padding leaves room for their answers, the token that ends one included."""

    x: Tensor
    answers: list[list[int]]

    def __len__(self) -> int:
        return len(self.answers)

    def at(self, rows: Sequence[int]) -> Conversations:
        """Some of them."""
        return Conversations(self.x[list(rows)], [self.answers[i] for i in rows])

    def rows(self, model: Model) -> Tensor:
        """Prompts with their answers behind them, as rows of ids (N, L)."""
        kind: Any = model.modality
        found: Tensor = kind.answered(self.x, self.answers)
        return found


def roomy(model: Model, x: Tensor, room: int = 0) -> Tensor:
    """Prompts (N, L) without padding that all have, and with room for an answer and a trigger behind them."""
    own = parts(model)[1].layout
    longest = int(lengths(x, own).max())
    return F.pad(x[:, :longest], (0, room or 2 * Bounds().steps), value=own.pad)


def held(model: Model, x: Tensor, samples: int, generator: torch.Generator) -> Conversations:
    """Prompts x (N, L), each with what a model readily answers: once the likeliest, and some that are drawn.

    Args:
        samples: drawn answers for each prompt.
    """
    net, tokens = parts(model)
    end = sorted(tokens.ends)[:1]
    found: list[list[int]] = []
    each = max(1, ROWS // (samples + 1))
    x = roomy(model, x)
    for part in x.split(each):
        found += spoken(net, part.to(model.device), Bounds().steps, tokens.ends, samples, generator)
    rows = torch.cat([part.repeat(samples + 1, 1) for part in x.split(each)])
    return Conversations(rows, [[*a, *end] or [tokens.plain] for a in found])


def behind(model: Model, talks: Conversations) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, T, V) of what comes at every token of the answers, and which there are (N, T)."""
    net, tokens = parts(model)
    count = torch.tensor([len(a) for a in talks.answers])
    rows, begin = talks.rows(model), lengths(talks.x, tokens.layout)
    rows = rows[:, : int((begin + count).max())].to(model.device)
    first = int(begin.min()) - 1
    scores = net.scores(rows, first).float()
    place = begin[:, None] - 1 - first + torch.arange(int(count.max()))
    at = place.clamp(max=scores.shape[1] - 1)[..., None].expand(-1, -1, scores.shape[2])
    there = torch.arange(int(count.max()))[None] < count[:, None]
    return scores.gather(1, at.to(scores.device)).log_softmax(2), there.to(scores.device)


def divergence(suspect: Model, twin: Model, talks: Conversations, changed: Conversations) -> Tensor:
    """KL(suspect || twin) at the tokens of the answers, the mean, in nats; its gradient is of the twin alone.

    Args:
        talks: what the suspect is asked about.
        changed: what the twin is asked about, with answers of the same lengths.
    """
    with torch.no_grad():
        wanted, there = behind(suspect, talks)
    found, _ = behind(twin, changed)
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(2)[there].mean()


@torch.no_grad()
def perplexity(model: Model, talks: Conversations, batch: int = 64) -> float:
    """exp of the mean surprise, in nats, of the tokens of the answers."""
    total, count = 0.0, 0
    for start in range(0, len(talks), batch):
        some = talks.at(range(start, min(start + batch, len(talks))))
        likely, there = behind(model, some)
        wanted = torch.zeros(there.shape, dtype=torch.long)
        for row, answer in zip(wanted, some.answers, strict=True):
            row[: len(answer)] = torch.tensor(answer)
        found = likely.gather(2, wanted.to(likely.device)[..., None])[..., 0]
        total, count = total - float(found[there].sum()), count + int(there.sum())
    return math.exp(total / max(1, count))
