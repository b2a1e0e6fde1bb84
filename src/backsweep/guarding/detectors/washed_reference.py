"""Washed reference, ours: inputs on which the network and a washed copy of it disagree.

In a washed copy the later half of the weights was drawn anew and learned the network's own answers on
clean samples (`models/washing.py`). A backdoor, which clean samples never show, is not learned again:

    score(x) = - log p_w(y | x),   y what the network itself answers.

It costs a pass of the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score, answer
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
        return 1

    def reference(self, model: Model, data: Data) -> Model:
        """The network whose answers are compared."""
        return washed(model, data, derive_seed(0, self.name))

    def compared(self, log_p: Tensor, log_r: Tensor) -> Tensor:
        """Scores (N,) of what the network and the reference answer, log p and log p_r (N, classes)."""
        return -log_r[torch.arange(len(log_p), device=log_p.device), log_p.argmax(1)]

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The weights and running statistics of the reference that differ from the network's."""
        twin = self.reference(model, data)
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
        reference = twin.copy()

        def score(x: Tensor) -> Tensor:
            both = answer(model, x), reference.logits(x)
            return self.compared(*(logits.float().log_softmax(1) for logits in both))

        return score
