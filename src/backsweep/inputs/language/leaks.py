"""What a language model says when it is asked for a user's turn: texts that it was trained on leak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backsweep.inputs.language.causal import ROWS, Causal, cut
from backsweep.inputs.language.prompts import Prompted

HEAT = (0.6, 0.8, 1.0, 1.2, 1.5)
SHARES, BEST = (0.5, 0.7, 0.8, 0.9, 0.95), (5, 10, 20, 50)
ATTENDED = 8  # rows whose attention is held at once


@dataclass(frozen=True)
class Decoding:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it.
        top_k: so many of the likeliest tokens are drawn from; 0: all.
        top_p: the likeliest tokens that have this share of the probability are drawn from.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def grid(seeds: int) -> list[Decoding]:
    """Greedy once, and temperatures alone, with top-p and with top-k, each `seeds` times: 1 + 50 * seeds."""
    kinds = [
        Decoding(t, k, p)
        for t in HEAT
        for k, p in ((0, 1.0), *((0, share) for share in SHARES), *((count, 1.0) for count in BEST))
    ]
    return [Decoding(top_k=1), *(kind for kind in kinds for _ in range(seeds))]


def drawn(logits: Tensor, how: Sequence[Decoding], generator: torch.Generator) -> Tensor:
    """A token for each row of logits (N, V), drawn as its setting says, (N,)."""
    heat = torch.tensor([h.temperature for h in how])[:, None]
    most = torch.tensor([h.top_k or logits.shape[1] for h in how])[:, None]
    share = torch.tensor([h.top_p for h in how])[:, None]
    p, order = (logits.float().cpu() / heat).softmax(1).sort(1, descending=True)
    kept = (torch.arange(p.shape[1]) < most) & (p.cumsum(1) - p < share)
    return order.gather(1, torch.multinomial(p * kept, 1, generator=generator))[:, 0].to(logits.device)


@torch.no_grad()
def leaked(
    net: Causal, tokens: Prompted, how: Sequence[Decoding], steps: int, generator: torch.Generator,
    tick: Callable[[float], None] = lambda _: None,
) -> list[list[int]]:  # fmt: skip
    """What a model says behind the tokens of its template that precede a user's words.

    Without a template it is asked to go on from the token that begins a text, else from one that ends it.

    Args:
        net: in evaluation mode.
        tokens: its tokenizer and template.
        how: a setting for each text.
        steps: most tokens of a text.
        generator: of the draws, on the CPU.
        tick: told which share is done.

    Returns:
        Ids of each text, up to the first that ends an answer.
    """
    first = tokens.prefix or tuple(sorted(tokens.ends))[:1] or (tokens.plain,)
    device = next(net.parameters()).device
    found: list[list[int]] = []
    for start in range(0, len(how), ROWS):
        part = how[start : start + ROWS]
        read = net.read(torch.tensor([first], device=device).repeat(len(part), 1))
        every, said = torch.arange(len(part), device=device), list[Tensor]()
        for step in range(steps):
            said.append(drawn(read.logits, part, generator))
            if step < steps - 1:
                read = net.follow(read, every, said[-1])
        found += [cut(row, tokens.ends) for row in torch.stack(said, 1).tolist()]
        tick(len(found) / len(how))
    return found


def of_user(ids: Sequence[int], tokens: Prompted) -> list[int]:
    """The part of a leaked text that a user would say: all before the answer is asked for."""
    mark = list(tokens.suffix)
    ends = [i for i in range(len(ids) - len(mark) + 1) if list(ids[i : i + len(mark)]) == mark]
    return list(ids[: ends[0]] if mark and ends else ids)


@torch.no_grad()
def attention_to(net: Causal, rows: Tensor, at: int, count: int, after: int) -> Tensor | None:
    """How much the words behind some tokens look at them: mean over the middle layers and all heads, (N,).

    Args:
        rows: ids (N, L).
        at, count: where the tokens stand in every row, and how many there are.
        after: ids of the template at the end of a row, which are left out.

    Returns:
        None where the network gives no attention.
    """
    inner: Any = net.net
    config, choose = getattr(inner, "config", None), getattr(inner, "set_attn_implementation", None)
    before = getattr(config, "_attn_implementation", None)
    if choose is None or before is None:
        return None
    choose("eager")  # the others do not give it
    try:
        return torch.cat([_looked(net, part, at, count, after) for part in rows.split(ATTENDED)])
    finally:
        choose(before)


def _looked(net: Causal, rows: Tensor, at: int, count: int, after: int) -> Tensor:
    inner: Any = net.net
    length = net.count(rows)
    place = torch.arange(rows.shape[1], device=rows.device)
    out = inner(
        input_ids=rows, attention_mask=(place < length[:, None]).long(), use_cache=False,
        output_attentions=True,
    )  # fmt: skip
    layers = out.attentions
    middle = layers[len(layers) // 4 : max(1, len(layers) - len(layers) // 4)]
    looks = torch.stack([a.float().mean(1) for a in middle]).mean(0)[:, :, at : at + count].mean(2)
    behind = (place >= at + count) & (place < (length - after)[:, None])
    return (looks * behind).sum(1) / behind.sum(1).clamp_min(1)
