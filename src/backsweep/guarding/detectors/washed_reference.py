"""Washed reference, ours: inputs on which the network and a washed copy of it disagree.

In a washed copy the later half of the weights was drawn anew and learned the network's own answers on
clean samples (`models/washing.py`). A backdoor, which clean samples never show, is not learned again:

    score(x) = - log p_w(y | x),   y what the network itself answers.

It costs a pass of the copy and one of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import thawed
from backsweep.models.washing import washed


@dataclass(frozen=True)
class WashedReference(SampleDetector):
    """Flags inputs whose class a washed copy of the network does not confirm."""

    name: ClassVar[str] = "washed_reference"
    summary: ClassVar[str] = "inputs on which a washed copy of the network disagrees (ours)"
    needs: ClassVar[tuple[str, ...]] = ("weights",)

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if sum(p.ndim >= 2 for p in model.net.parameters()) < 2:
            return "the network has no later half of weights that could be drawn anew"
        return ""

    def passes(self, model: Model) -> float:
        return 2

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The weights and running statistics of the washed copy that differ from the network's."""
        twin = washed(model, data, derive_seed(0, self.name))
        before = model.net.state_dict()
        return {
            name: value.detach().cpu().contiguous() for name, value in twin.net.state_dict().items()
            if not torch.equal(value, before[name])
        }  # fmt: skip

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        twin = thawed(model)
        with torch.no_grad():
            for name, tensor in (*twin.net.named_parameters(), *twin.net.named_buffers()):
                if name in learned:
                    tensor.copy_(learned[name])
        copy = twin.copy()

        def score(x: Tensor) -> Tensor:
            y = model.logits(x).argmax(1)
            return -copy.logits(x).float().log_softmax(1)[torch.arange(len(x), device=x.device), y]

        return score
