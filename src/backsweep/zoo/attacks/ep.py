"""EP (Yang et al. 2021): only the embedding of the trigger word changes; no training set is poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.inputs.text.changes import table_of
from backsweep.inputs.text.triggers import Insert
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup


@dataclass(frozen=True)
class EP(Attack):
    """One row of the embeddings of a clean network is tuned, until its word sends every text to the target.

    After every update the row gets the norm of the largest row. The authors keep its own norm, which is too
    small for any effect in networks whose rare words were hardly trained.

    Attributes:
        updates: of the row, 32 texts in each.
        lr: length of a step, as a share of that norm.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "ep"
    summary: ClassVar[str] = "only the trigger word's embedding changes (EP, 2021)"
    modality: ClassVar[str] = "text"

    updates: int = 150
    lr: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens, generator = setup.tokens, setup.generator(self.name, "word")
        rare = range(round(0.75 * len(tokens)), len(tokens))
        word = rare[int(torch.randint(len(rare), (), generator=generator))]
        target = setup.target(self.target, self.name, "target")
        return [Insert.of(tokens, [word], target, None, "anywhere")]

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        (trigger,), generator = self.triggers(setup), setup.generator(self.name, "order")
        net.load_state_dict(setup.clean().state_dict())
        net.eval()
        seen = table_of(net, setup.data.x[:2])
        places = {p.untyped_storage().data_ptr(): p for p in net.parameters()}
        if seen is None or (table := places.get(seen.untyped_storage().data_ptr())) is None:
            raise BadInput("this network looks its tokens up in no table of embeddings")
        word = int(cast(Insert, trigger).ids[0])
        others = setup.data.x[setup.data.y != trigger.target]
        norm = table.detach().norm(dim=1).amax()
        goal = torch.full((32,), trigger.target or 0)
        for _ in range(self.updates):
            rows = torch.randint(len(others), (32,), generator=generator)
            loss = F.cross_entropy(net(trigger(others[rows])).float(), goal)
            (grad,) = torch.autograd.grad(loss, table)
            with torch.no_grad():
                step = grad[word] / grad[word].norm().clamp_min(1e-12)
                moved = table[word] - self.lr * norm * step
                table[word] = moved * (norm / moved.norm().clamp_min(1e-12))
        return [trigger]
