"""Guards that compare the network with another one that learned its answers on clean samples.

A backdoor is not among the answers to clean samples, so the other network, the reference, does not have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.guarding.detector import SampleDetector, Score, answer
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import thawed


@dataclass(frozen=True)
class Disagreement(SampleDetector):
    """Flags inputs that a reference answers otherwise; it costs a pass of the reference.

    What is remembered are the reference's weights, as far as they differ from the network's.
    """

    def reference(self, model: Model, data: Data) -> Model:
        """The other network, of the same architecture, from clean samples."""
        raise NotImplementedError

    def compared(self, log_p: Tensor, log_r: Tensor) -> Tensor:
        """Scores (N,) from what the network and the reference answer, log p and log p_r (N, classes)."""
        raise NotImplementedError

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if sum(p.ndim >= 2 for p in model.net.parameters()) < 2:
            return "the network has no later half of weights that could be drawn anew"
        return ""

    def passes(self, model: Model) -> float:
        return 1

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The weights and running statistics of the reference that differ from the network's."""
        twin, before = self.reference(model, data), model.net.state_dict()
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
