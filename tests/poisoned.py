"""Digits with poison among them, and a network that learned from them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from backsweep.auditing.detectors.cross_confusion import CrossConfusion
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS

DIGITS = TASKS["digits"]
GENTLE = CrossConfusion(lr=2e-4)  # so small a network forgets too fast otherwise


@lru_cache(maxsize=2)
def poisoned_digits(size: int = 3, rate: float = 0.05) -> tuple[Model, Data, Tensor, int]:
    """A network trained on poisoned digits, those digits, the poisoned samples (a mask), their label."""
    train, _ = DIGITS.load()
    attack, setup = BadNets(size=size, margin=0, rate=rate), DIGITS.setup(train, 0)
    (trigger,) = attack.triggers(setup)
    data, rows = attack.poison(setup, [trigger])
    bad = torch.zeros(len(data), dtype=torch.bool)
    bad[rows] = True
    net = fit(DIGITS.net(0), data, DIGITS.recipe, 0)
    assert trigger.target is not None
    return Model(net, DIGITS.shape, DIGITS.classes), data, bad, trigger.target
