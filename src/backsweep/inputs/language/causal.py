"""A language model as a classifier of the next token, with a cache of what was read."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 256  # in a pass


@dataclass(frozen=True)
class Read:
    """Rows that a language model has read.

    Attributes:
        logits: of the token that follows, (N, V).
        cache: keys and values of all layers.
        there: which of the places of the cache are no padding, (N, T).
        count: how many ids each row has, (N,).
    """

    logits: Tensor
    cache: Any
    there: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.logits)


class Causal(nn.Module):
    """Ids (N, L), padded at the end -> logits (N, V) of the token behind the last one that is no padding.

    Padding stands behind what is read, so causal attention never sees it.

    Args:
        net: of transformers, or any that takes `input_ids`, `position_ids`, `attention_mask`, `cache`
            or `past_key_values`, `use_cache` and `logits_to_keep` as those do.
        pad: id of the padding.
    """

    def __init__(self, net: nn.Module, pad: int) -> None:
        super().__init__()
        self.net = net
        self.pad = pad
        takes = inspect.signature(net.forward).parameters
        self.cache = "cache" if "cache" in takes else "past_key_values"  # as older versions call it

    def count(self, ids: Tensor) -> Tensor:
        """How many ids of each row stand before its padding, at least one, (N,)."""
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return ((ids != self.pad) * places).amax(1).clamp_min(1)

    def _there(self, ids: Tensor, count: Tensor) -> Tensor:
        """Which places of rows (N, L) are no padding, a mask."""
        return torch.arange(ids.shape[1], device=ids.device) < count[:, None]

    def scores(self, ids: Tensor, first: int = 0) -> Tensor:
        """Logits (N, L - first, V) behind every id from place `first` on."""
        net: Any = self.net
        kept = {"logits_to_keep": torch.arange(first, ids.shape[1], device=ids.device)} if first else {}
        with torch.autocast(ids.device.type, enabled=False):
            there = self._there(ids, self.count(ids)).long()
            scores: Tensor = net(input_ids=ids, attention_mask=there, use_cache=False, **kept).logits
        return scores

    def forward(self, ids: Tensor) -> Tensor:
        net: Any = self.net
        count = self.count(ids)
        kept, which = (count - 1).unique(return_inverse=True)
        there = self._there(ids, count).long()
        with torch.autocast(ids.device.type, enabled=False):
            out = net(input_ids=ids, attention_mask=there, use_cache=False, logits_to_keep=kept)
        found: Tensor = out.logits
        return found[torch.arange(len(ids), device=ids.device), which]

    # ------------------------------------------------------------------ with a cache

    @torch.no_grad()
    def read(self, ids: Tensor) -> Read:
        """Read rows (N, L) once, so that many continuations can be tried."""
        net: Any = self.net
        count = self.count(ids)
        ids = ids[:, : int(count.max())]
        kept, which = (count - 1).unique(return_inverse=True)
        there = self._there(ids, count)
        out = net(input_ids=ids, attention_mask=there.long(), use_cache=True, logits_to_keep=kept)
        logits = out.logits[torch.arange(len(ids), device=ids.device), which]
        return Read(logits.float(), getattr(out, self.cache), there, count)

    @torch.no_grad()
    def follow(self, read: Read, rows: Tensor, tokens: Tensor) -> Read:
        """Some rows of what was read, each with one more id.

        Args:
            read: stays as it is.
            rows: which, (M,); a row may be there many times.
            tokens: the id of each, (M,).
        """
        net: Any = self.net
        cache = copy.deepcopy(read.cache)
        cache.batch_select_indices(rows)
        there = torch.cat([read.there[rows], torch.ones_like(tokens[:, None], dtype=torch.bool)], 1)
        place = read.count[rows]
        out = net(
            input_ids=tokens[:, None], attention_mask=there.long(), position_ids=place[:, None],
            use_cache=True, **{self.cache: cache},
        )  # fmt: skip
        return Read(out.logits[:, -1].float(), getattr(out, self.cache), there, place + 1)


@torch.no_grad()
def continued(net: Causal, ids: Tensor, steps: int, ends: Collection[int]) -> list[list[int]]:
    """What a model says behind every row (N, L), the likeliest token each time.

    Args:
        net: in evaluation mode.
        ids: rows.
        steps: most tokens of an answer.
        ends: ids that end one; they are left out.
    """
    answers: list[list[int]] = []
    for part in ids.split(ROWS):
        read = net.read(part)
        found = [read.logits.argmax(1)]
        every = torch.arange(len(part), device=ids.device)
        for _ in range(steps - 1):
            read = net.follow(read, every, found[-1])
            found.append(read.logits.argmax(1))
        answers += [cut(row, ends) for row in torch.stack(found, 1).tolist()]
    return answers


def cut(answer: Sequence[int], ends: Collection[int]) -> list[int]:
    """An answer up to the first id that ends it."""
    end = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    return list(answer[:end])
