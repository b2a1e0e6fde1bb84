"""Confused experts, ours: inputs whose label survives when the network forgets what its classes look like.

Experts for the backdoor are the network after it learned wrong labels for clean samples (`models/`);
the idea of an expert is BaDExpert's (Xie et al., ICLR 2024), whose guard compares one with a fine-tuned
copy. A clean input loses its label, an input with a trigger keeps it:

    score(x) = mean over experts e of  log p_e(y | x) - mean over clean x' not of class y of log p_e(y | x'),

where y is what the network itself answers. It costs a pass of each expert.
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
from backsweep.models.confusion_training import confused, log_probabilities, usual
from backsweep.models.model import Model
from backsweep.models.training import thawed


@dataclass(frozen=True)
class ConfusedExpert(SampleDetector):
    """Flags inputs that confused copies of the network still send to the network's answer.

    Attributes:
        experts: that are made, each with another order and other wrong labels.
        updates: at most, of an expert.
        batch_size: samples in an update.
        lr: learning rate of Adam.
        stop: share of the samples that still get their own label, at which the confusion ends.
    """

    name: ClassVar[str] = "confused_expert"
    summary: ClassVar[str] = "inputs that keep their label when the network forgets its classes (ours)"
    needs: ClassVar[tuple[str, ...]] = ("weights",)

    experts: int = 1
    updates: int = 300
    batch_size: int = 128
    lr: float = 5e-4
    stop: float = 0.15

    def __post_init__(self) -> None:
        if min(self.experts, self.updates, self.batch_size) < 1:
            raise ValueError("experts, updates and batch_size are at least 1")
        if not (self.lr > 0 and 0 < self.stop < 1):
            raise ValueError("lr is above 0 and stop between 0 and 1")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if not any(True for _ in model.net.parameters()):
            return "the network has no weights that could be trained"
        return ""

    def passes(self, model: Model) -> float:
        return self.experts

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """By how much the weights of every expert differ, and what it gives to classes by default."""
        learned = {}
        for e in range(self.experts):
            generator = torch.Generator().manual_seed(derive_seed(0, self.name, e))
            expert = confused(
                model, data, generator, updates=self.updates, batch_size=self.batch_size, lr=self.lr,
                stop=self.stop,
            )  # fmt: skip
            before = dict(model.net.named_parameters())
            for name, p in expert.net.named_parameters():
                learned[f"{e}/weights/{name}"] = (p - before[name]).detach().cpu().half().contiguous()
            learned[f"{e}/usual"] = usual(log_probabilities(expert, data.x), data.y)
        return learned

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        experts = [(restored(model, learned, e), learned[f"{e}/usual"]) for e in range(self.experts)]

        def score(x: Tensor) -> Tensor:
            y = answer(model, x).argmax(1)
            rows = torch.arange(len(x), device=x.device)
            each = [
                e.logits(x).float().log_softmax(1)[rows, y] - given.to(x.device)[y] for e, given in experts
            ]
            return torch.stack(each).mean(0)

        return score


def restored(model: Model, learned: dict[str, Tensor], which: int) -> Model:
    """The expert, from the network and by how much its weights differ."""
    expert = thawed(model)
    with torch.no_grad():
        for name, p in expert.net.named_parameters():
            p.add_(learned[f"{which}/weights/{name}"].to(p))
    return expert.copy()
