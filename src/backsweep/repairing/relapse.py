"""The re-tuning check: does a handful of poisoned samples bring a removed backdoor back?

Most repaired networks relapse: what the backdoor needs is still in their weights, and some updates on a few
samples that carry the trigger turn it on again (Min et al. 2024, "Superficial safety"). A network that
never had the backdoor learns next to nothing from so little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.model import Model
from backsweep.models.training import Recipe, tuned

POISONS, UPDATES, BATCH, RATE = 5, 20, 64, 1e-3


def retuned(model: Model, data: Data, trigger: Trigger, seed: int) -> Model:
    """A copy of `model` after `UPDATES` updates on clean batches with the same `POISONS` poisoned samples.

    Args:
        model: a frozen working copy.
        data: clean samples; some of those that the trigger acts on are stamped, and labelled as it wants.
        trigger: the trigger.
        seed: of the samples and their order.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "re-tuning"))
    rows = torch.nonzero(acted_on(trigger, data.y, model.classes)).flatten()
    rows = rows[torch.randperm(len(rows), generator=generator)[:POISONS]]
    poison, wanted = trigger(data.x[rows]), trigger.labels(data.y[rows], model.classes)

    def loss(twin: Model, x: Tensor, y: Tensor) -> Tensor:
        together = torch.cat([x, poison.to(x)])
        return F.cross_entropy(twin.logits(together).float(), torch.cat([y, wanted.to(y)]))

    part = data.sample(UPDATES * BATCH, derive_seed(seed, "re-tuning", "clean"))
    epochs = max(1, round(UPDATES * BATCH / len(part)))
    recipe = Recipe(epochs=epochs, lr=RATE, batch_size=BATCH, statistics=False)
    return tuned(model, part, recipe, derive_seed(seed, "re-tuning", "order"), loss)
