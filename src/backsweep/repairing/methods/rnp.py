"""Reconstructive Neuron Pruning, RNP (Li et al., ICML 2023): unlearn the clean task, relearn it with a mask.

A copy of the network unlearns the clean samples, max_theta CE(f_theta(x), y), until its accuracy on them
is at most 20 %; what is left of it is the backdoor. Then a mask of its filters recovers the accuracy,

    min_{m in [0,1]^n}  alpha CE(f_{m theta_u}(x), y)

and takes away what stands in the way: filters with a small mask are pruned in the original network.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.inversion.loop import batches
from backsweep.models.model import Model
from backsweep.models.neurons import Layer, layers, pruned, with_weights
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, strongest

BATCH, MOMENTUM = 128, 0.9
UNLEARN_LR, LONGEST, EPOCHS = 0.01, 20.0, 20  # of the unlearning; LONGEST: norm of its gradient
LR, ALPHA = 0.05, 0.2  # of the mask


@dataclass(frozen=True)
class Rnp(Repair):
    """Prunes the filters that a network which unlearned its task must lose to do the task again.

    Attributes:
        least: accuracy on the clean samples at which unlearning stops.
        updates: of the mask.
        loss: accuracy on the held-out samples that may be given up.
    """

    name: ClassVar[str] = "rnp"
    summary: ClassVar[str] = "prunes filters after unlearning and recovering (RNP, 2023)"

    least: float = 0.2
    updates: int = 40
    loss: float = 0.03

    def __post_init__(self) -> None:
        if not (0 < self.least < 1 and self.updates >= 1):
            raise ValueError("least lies between 0 and 1, updates is at least 1")

    def applies(self, case: Case) -> str:
        if not layers(case.model):
            return "it needs neurons to prune: the network has no layer with weights before its head"
        return ""

    def apply(self, case: Case) -> Model:
        masks = self.masks(case, self.unlearned(case))
        return strongest(case, pruned(case.model, masks), self.loss)

    def unlearned(self, case: Case) -> Model:
        """A copy that answers at most a share `least` of the clean samples right."""
        twin, data = thawed(case.model), case.clean
        _batch_statistics(twin.net)
        weights = list(twin.net.parameters())
        optimizer = torch.optim.SGD(weights, UNLEARN_LR, MOMENTUM)
        queue = batches(torch.arange(len(data)), derive_seed(case.seed, self.name, "unlearn"), BATCH)
        for k in range(EPOCHS * -(-len(data) // BATCH)):
            rows = next(queue)
            x, y = data.x[rows].to(twin.device), data.y[rows].to(twin.device)
            logits = twin.logits(x).float()
            right = float((logits.argmax(1) == y).double().mean())
            if right <= self.least and twin.accuracy(data.x, data.y) <= self.least:
                break
            optimizer.zero_grad(set_to_none=True)
            (-F.cross_entropy(logits, y)).backward()
            nn.utils.clip_grad_norm_(weights, LONGEST)
            optimizer.step()
            if k % 10 == 9:
                case.tick(0.1)
        return twin.copy()

    def masks(self, case: Case, model: Model) -> dict[Layer, Tensor]:
        """Masks m of the filters, (D,) for each layer, with which `model` recovers the clean accuracy."""
        data, parts, net = case.clean, layers(model), thawed(model).net.requires_grad_(False)
        _batch_statistics(net)
        weights = dict(net.named_parameters())
        masks = [torch.ones(len(weights[p.weight]), device=model.device, requires_grad=True) for p in parts]
        optimizer = torch.optim.SGD(masks, LR, MOMENTUM)
        queue = batches(torch.arange(len(data)), derive_seed(case.seed, self.name, "recover"), BATCH)
        running = copy.copy(model)
        running.net = net
        for k in range(self.updates):
            rows = next(queue)
            masked = {}
            for part, m in zip(parts, masks, strict=True):
                w = weights[part.gains[0]]
                masked[part.gains[0]] = m.reshape(-1, *[1] * (w.ndim - 1)) * w
            logits = with_weights(running, masked).logits(data.x[rows].to(model.device)).float()
            optimizer.zero_grad(set_to_none=True)
            (ALPHA * F.cross_entropy(logits, data.y[rows].to(model.device))).backward()
            optimizer.step()
            for m in masks:
                m.data.clamp_(0, 1)
            if k % 10 == 9:
                case.tick(0.1 + 0.9 * (k + 1) / self.updates)
        return {p: m.detach() for p, m in zip(parts, masks, strict=True)}


def _batch_statistics(net: nn.Module) -> None:
    """Let every BatchNorm normalise by its batch and leave its running statistics as they are."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
