"""Inputs of ids whose embeddings are changed on their way into a network.

Ids have no values in between, so a gradient needs the embeddings. `Changed` stands in for a batch of ids:
where the network looks its ids up, it is given other embeddings. That works below the level of modules, for
any network that looks ids up in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from backsweep.core.errors import BadInput
from backsweep.inputs.text.tokens import Layout


@dataclass(frozen=True)
class Changed:
    """Ids (N, L) and what is done to their embeddings.

    Attributes:
        ids: with anything where tokens are mixed in.
        layout: which of them are padding.
        at: where mixed tokens, or embeddings that are given, stand, (N,).
        mixed: shares of the tokens of the vocabulary, (N, k, V): embedding j is sum_v p_jv E_v, and the mean
            embedding for what is missing to 1.
        shift: added to the embedding of every token but padding, (N, D).
        put: embeddings that are given, (N, k, D), in the place of those that were looked up.
    """

    ids: Tensor
    layout: Layout
    at: Tensor | None = None
    mixed: Tensor | None = None
    shift: Tensor | None = None
    put: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.ids.shape

    def __len__(self) -> int:
        return len(self.ids)

    def flatten(self, start: int, end: int) -> Changed:
        """Two leading dimensions as one, as of a tensor."""
        parts = {n: getattr(self, n) for n in ("ids", "at", "mixed", "shift", "put")}
        return replace(self, **{n: v.flatten(start, end) for n, v in parts.items() if v is not None})

    def embeddings(self, looked_up: Tensor, table: Tensor) -> Tensor:
        """Embeddings (N, L, D) as they are to be, for those that were looked up in the table (V, D)."""
        found = looked_up
        if self.mixed is not None and self.at is not None:
            rows = table[: self.mixed.shape[-1]]
            missing = 1 - self.mixed.sum(-1, keepdim=True)
            found = _placed(found, self.mixed.to(rows.dtype) @ rows + missing * rows.mean(0), self.at)
        if self.put is not None and self.at is not None:
            found = _placed(found, self.put, self.at)
        if self.shift is not None:
            there = (self.ids != self.layout.pad)[..., None]
            found = found + there * self.shift[:, None]
        return found


def _placed(found: Tensor, own: Tensor, at: Tensor) -> Tensor:
    """Embeddings found (N, L, D) with others (N, k, D) from the places at (N,) on."""
    places = at[:, None] + torch.arange(own.shape[1], device=found.device)
    return found.scatter(1, places[..., None].expand(-1, -1, found.shape[-1]), own.to(found.dtype))


class Lookup(TorchFunctionMode):
    """Watches where ids are looked up, and gives other embeddings if `changed` is given.

    Args:
        ids: of the batch that runs.

    Attributes:
        table: in which they were looked up, (V, D); None until then.
    """

    def __init__(self, ids: Tensor, changed: Changed | None = None) -> None:
        super().__init__()
        self.ids, self.changed = ids, changed
        self.table: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").split(".")[0] != "embedding":
            return out
        given = [*args, *(kwargs or {}).values()]
        tables = [a for a in given if isinstance(a, Tensor) and a.is_floating_point()]
        asked = [a for a in given if isinstance(a, Tensor) and not a.is_floating_point()]
        if not tables or not asked or asked[0].numel() != self.ids.numel():
            return out
        if not torch.equal(asked[0].reshape(self.ids.shape), self.ids):
            return out
        self.table = tables[0]
        if self.changed is None:
            return out
        found = self.changed.embeddings(out.reshape(*self.ids.shape, -1), self.table)
        return found.reshape(out.shape)


def run(net: Callable[[Tensor], Any], changed: Changed) -> Any:
    """What a network answers when its embeddings are changed.

    Raises:
        BadInput: it looks no ids up.
    """
    with Lookup(changed.ids, changed) as lookup:
        out = net(changed.ids)
    if lookup.table is None:
        raise BadInput("this network looks its tokens up in no table of embeddings")
    return out


def table_of(net: Callable[[Tensor], Any], ids: Tensor) -> Tensor | None:
    """The table (V, D) in which a network looks ids (N, L) up; None where it does not."""
    with torch.no_grad(), Lookup(ids) as lookup:
        net(ids)
    return None if lookup.table is None else lookup.table.detach()
