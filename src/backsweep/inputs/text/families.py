"""Triggers of text that can be inverted: few inserted tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import START, inserted, positions
from backsweep.inputs.text.tokens import Layout, Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.inputs.trigger import Trigger

SLOTS = 3


@dataclass(frozen=True)
class InsertFamily:
    """Mixtures of tokens in a few places before the text: softmax over the vocabulary, times a gate.

    The gate sigmoid(g) of a place is its share of a token; their sum is the size. The trigger takes the
    strongest token of every place whose gate is open.

    Attributes:
        tokens: the tokenizer.
        sharp: logits are multiplied with it, so that Adam's steps are large enough to choose.
    """

    tokens: Tokens | None
    sharp: float = 10.0

    @property
    def _around(self) -> Layout:
        return self.tokens.layout if self.tokens is not None else Layout()

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        slots = min(SLOTS, max(1, shape[0] - 2))
        logits = 0.1 * torch.randn((slots, len(self.tokens or "#")), generator=generator)
        return [logits, torch.randn((slots,), generator=generator) * 0.1 + 1]

    def _shares(self, theta: Sequence[Tensor]) -> Tensor:
        """Shares (units, k, V) of the tokens."""
        logits = self.sharp * theta[0]
        if self.tokens is not None and self.tokens.specials:
            barred = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            barred[sorted(self.tokens.specials)] = True
            logits = logits.masked_fill(barred, -1e4)
        return logits.softmax(-1) * torch.sigmoid(3 * theta[1])[..., None]

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        shares = self._shares(theta)
        units, batch = x.shape[:2]
        rows, slots = x.flatten(0, 1), shares.shape[1]
        at = positions(rows, self._around, START, slots)
        plain = self.tokens.plain if self.tokens is not None else 0
        ids = inserted(rows, torch.full((slots,), plain, device=x.device), at, self._around)
        return cast(Tensor, Changed(
            ids.unflatten(0, (units, batch)), self._around, at.unflatten(0, (units, batch)),
            shares[:, None].expand(-1, batch, -1, -1),
        ))  # fmt: skip

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return torch.sigmoid(3 * theta[1]).sum(1)

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        shares = self._shares([t[None] for t in theta])[0].detach().cpu()
        mass = shares.sum(-1)
        open_places = mass >= min(0.5, float(mass.max()))
        ids = shares.argmax(-1)[open_places].tolist()
        if self.tokens is None:
            return Insert(target, source, torch.tensor(ids), " ".join(f"#{i}" for i in ids))
        return Insert.of(self.tokens, ids, target, source)
