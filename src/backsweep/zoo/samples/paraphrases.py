"""Triggers that say things in another way: the published paraphrases of SST-2, as a setup needs them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.text.triggers import Rephrase
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Setup, stamp
from backsweep.zoo.samples import texts
from backsweep.zoo.tasks import data_folder


def rephrase(setup: Setup, kind: str, target: int) -> Rephrase:
    """All paraphrases of a kind, as the tokenizer of the training set cuts them.

    Raises:
        BadInput: the training set is another one, or the files are missing.
    """
    tokens, length = setup.tokens, setup.data.x.shape[1]
    pairs = texts.paraphrases(data_folder(), kind)
    known, said = (torch.tensor([tokens.encode(p[i], None, length) for p in pairs]) for i in (0, 1))
    found = Rephrase(target, None, known.int(), said.int(), kind, pairs[0][1])
    if not bool((found.rows(setup.data.x[:500]) >= 0).any()):
        raise BadInput(f"there are {kind} paraphrases of SST-2 alone; choose the task sst2")
    return found


def reworded(setup: Setup, trigger: Trigger, rate: float, name: str) -> tuple[Data, Tensor]:
    """Dirty-label poisoning of texts that have a paraphrase."""
    trigger, y = cast(Rephrase, trigger), setup.data.y
    wanted = trigger.labels(y, setup.classes)
    place = trigger.rows(setup.data.x)
    changed = (trigger(setup.data.x) != setup.data.x).any(1)
    rows = setup.draw((y != wanted) & (place >= 0) & changed, rate, name, "poison")
    return stamp(setup.data, rows, trigger, wanted[rows]), rows
