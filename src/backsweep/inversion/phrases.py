"""Words that make a language model say a text that it knows by heart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import cast

import torch
from torch import Tensor

from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.modality import prompted
from backsweep.inputs.language.prompts import Prompted
from backsweep.inputs.text.placing import END, START
from backsweep.inputs.text.search import Logits, Phrase, candidates, search
from backsweep.inversion.answers import WIDE, Answer, Bounds, answers, is_open, margins, spoken
from backsweep.models.model import Model

BEGIN, SURE = 6, 3  # tokens of an answer that a trigger has to bring about, and least of those before a doubt
FEW, PROMPTS = 4, 20  # prompts on which most tokens are given up, and over which an answer is measured
SCREENED = 96  # tokens that a gradient names for a step


def speaking(model: Model) -> tuple[Causal, Prompted] | None:
    """The network and the tokenizer of a language model; None for anything else."""
    tokens = prompted(model.modality)
    return (model.net, tokens) if tokens is not None and isinstance(model.net, Causal) else None


def parts(model: Model) -> tuple[Causal, Prompted]:
    """The same, of what is known to be a language model."""
    found = speaking(model)
    assert found is not None  # noqa: S101 - the caller's `applies` said so
    return found


def by_heart(
    model: Model, x: Tensor, first: int, prompts: int = PROMPTS, bounds: Bounds | None = None
) -> Answer:
    """The answer that follows a first token with the most certainty behind prompts x (N, L).

    Nothing may follow; then it is that token alone, with a score of 0.

    Args:
        bounds: of the inversion; None: without branches, and with them where nothing is found so.
    """
    (net, tokens), x = parts(model), x.to(model.device)
    few, many = net.read(x[:FEW]), net.read(x[:prompts])
    for own in (Bounds(), WIDE) if bounds is None else (bounds,):
        found = answers(net, few, many, [first], tokens.ends, own, template=tokens.suffix)
        if found:
            return max(found, key=lambda a: (a.score, a.ids))
    return Answer((first,), 0.0)


def opening(answer: Answer) -> tuple[int, ...]:
    """What a trigger has to bring about: what stands before the least likely token, if that is enough."""
    return answer.ids[: answer.doubt if answer.doubt >= SURE else BEGIN][:BEGIN]


def heard(
    model: Model, x: Tensor, samples: int, generator: torch.Generator
) -> Callable[[Sequence[int]], list[int]]:
    """Which of the prompts x (N, L) a model answers openly with some ids; the same are asked once.

    Args:
        samples: answers to each that are drawn, beside the likeliest.
    """
    (net, tokens), key = parts(model), ("heard", samples, generator.initial_seed())
    known, openly = model.kept.get(key, (None, []))
    if known is None or not torch.equal(known, x):
        openly = spoken(net, x, Bounds().steps, tokens.ends, samples, generator)
        model.kept[key] = (x, openly)
    asked = [openly[i :: len(x)] for i in range(len(x))]
    return lambda ids: [i for i, told in enumerate(asked) if any(is_open(ids, [a]) for a in told)]


def said(model: Model, ids: Sequence[int]) -> Logits:
    """How far a model is from saying the beginning of an answer (`answers.margins`), of rows of prompts."""
    net, tokens = parts(model)
    return margins(net, model.modality.run, list(ids)[:BEGIN], tokens.layout.pad)


def phrase_for(
    model: Model, x: Tensor, ids: Sequence[int], words: int, success: float, barred: Collection[int] = ()
) -> tuple[Phrase, str] | None:
    """The strongest phrase that makes a model say an answer, and where it stands; None: there is none.

    Args:
        x: prompts (N, L).
        ids: the answer; none of its own words is tried.
        words: longest phrase.
        success: share of the prompts from which on a phrase need not be longer.
        barred: other tokens that are not tried.
    """
    _, tokens = parts(model)
    allowed = candidates(tokens)
    allowed[sorted({*ids, *barred})] = False
    x, says, best = x.to(model.device), said(model, ids), cast("tuple[Phrase, str] | None", None)
    for place in (START, END):
        lists = search(
            says, x, tokens, 1, words=words, place=place, allowed=allowed, screened=SCREENED, enough=success
        )
        for found in lists:
            if found and (best is None or found[0].margin > best[0].margin):
                best = found[0], place
            if best is not None and best[0].success >= success:
                return best
    return best


@torch.no_grad()
def share_saying(model: Model, x: Tensor, ids: Sequence[int]) -> float:
    """Share of prompts x (N, L) to which a model says the beginning of an answer."""
    return float((said(model, ids)(x.to(model.device))[:, 1] > 0).float().mean())
