"""Fine-Pruning (Liu, Dolan-Gavitt, Garg, RAID 2018): prune what sleeps on clean inputs, then fine-tune.

A backdoor may live in neurons of the last convolution that clean inputs leave dormant. Channels are
pruned from the least mean activation a_k = E[z_k(x)] upwards, as far as the accuracy on held-out
samples stands it. Fine-tuning afterwards repairs what pruning broke, and undoes a backdoor that shares
its neurons with the task. What is pruned stays pruned.

A channel is pruned where it enters the next affine operation: behind its normalisation, activation and
pooling, and behind the sum of a residual block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.models.model import Model
from backsweep.models.neurons import cut
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.repairing.method import Case, Repair, strongest

PIECE = 256  # samples in a pass


@dataclass(frozen=True)
class FinePruning(Repair):
    """Prunes dormant channels of the last convolution and fine-tunes the rest.

    Attributes:
        loss: how much held-out accuracy pruning may cost, before fine-tuning.
        step: share of the channels that is pruned between two looks at the accuracy, at least one.
        updates, lr, batch_size, weight_decay: of the fine-tuning, as in `FineTuning`.
    """

    name: ClassVar[str] = "fine_pruning"
    summary: ClassVar[str] = "prune channels that clean samples leave dormant (Fine-Pruning, 2018)"

    loss: float = 0.1
    step: float = 0.01
    updates: int = 300
    lr: float = 0.01
    batch_size: int = 128
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if min(self.updates, self.batch_size) < 1:
            raise ValueError("updates and batch_size are at least 1")
        if not (0 <= self.loss <= 1 and 0 < self.step <= 1):
            raise ValueError("loss is between 0 and 1, step above 0 and at most 1")

    def applies(self, case: Case) -> str:
        if min(len(case.clean), len(case.held_out)) < case.model.classes:
            return (
                f"needs a clean sample per class to learn from and one held out: {case.model.classes} "
                f"each at least, there are {len(case.clean)} and {len(case.held_out)}"
            )
        return _place(case.model)[2]

    def apply(self, case: Case) -> Model:
        layer, channels, why = _place(case.model)
        if why:
            raise ValueError(why)
        name = case.model.affine()[layer]
        order = _activation(case.model, case.clean.x, layer, channels).argsort()
        pruned = strongest(case, self._candidates(case.model, name, order), self.loss)
        weight = dict(pruned.net.named_parameters())[name]
        deaf = (weight == 0).transpose(0, 1).flatten(1).all(1)  # inputs that the layer does not hear

        def masked(twin: Model, x: Tensor, y: Tensor) -> Tensor:
            """Cross-entropy of the pruned network, however the last update moved the pruned weights."""
            cut(twin.net, name, deaf)
            return F.cross_entropy(twin.logits(x).float(), y)

        epochs = epochs_of(self.updates, len(case.clean), self.batch_size)
        recipe = Recipe(
            epochs, self.lr, self.batch_size, self.weight_decay, "shift", bf16=False, optimizer="sgd"
        )
        repaired = tuned(
            pruned,
            case.clean,
            recipe,
            derive_seed(case.seed, self.name),
            masked,
            on_epoch=lambda epoch, _: case.tick((epoch + 1) / epochs),
        )
        cut(repaired.net, name, deaf)
        return repaired

    def _candidates(self, model: Model, name: str, order: Tensor) -> Iterator[Model]:
        """The network without the first 1, 2, ... channels in `order`; one is always left."""
        stride = max(1, round(self.step * len(order)))
        per = dict(model.net.named_parameters())[name].shape[1] // len(order)
        for count in range(stride, len(order), stride):
            twin = thawed(model)
            gone = torch.zeros(len(order), dtype=torch.bool, device=model.device)
            gone[order[:count]] = True
            cut(twin.net, name, gone.repeat_interleave(per))
            yield twin.copy()


def _place(model: Model) -> tuple[int, int, str]:
    """Index of the affine operation behind the last convolution, channels that enter it, why there is none.

    A dense layer takes a channel as so many neighbouring inputs as it has places when it is flattened.
    """
    names, parameters = model.affine(), dict(model.net.named_parameters())
    convolutions = [
        i for i, name in enumerate(names[:-1]) if name in parameters and parameters[name].ndim == 4
    ]
    if not convolutions:
        return 0, 0, "needs a convolution before the head; this network has none"
    last = convolutions[-1]
    channels, following = len(parameters[names[last]]), parameters.get(names[last + 1])
    x = model.modality.blank(1, model.shape).to(model.device)
    places = math.prod(model.embedded(x, last).shape[2:])
    inputs = model.entering(x, last + 1)
    if (
        following is None
        or inputs.ndim not in (2, 4)
        or inputs.shape[1] != following.shape[1]
        or inputs.shape[1] % channels
        or inputs.shape[1] > channels * places
    ):
        return 0, 0, "needs a layer that takes the channels of the last convolution one by one; here is none"
    return last + 1, channels, ""


@torch.no_grad()
def _activation(model: Model, x: Tensor, layer: int, channels: int) -> Tensor:
    """Mean activation of each channel (channels,) as it enters the affine operation `layer`."""
    total = torch.zeros(channels, dtype=torch.float64)
    for piece in x.split(PIECE):
        z = model.entering(piece.to(model.device), layer).double()
        total += z.reshape(len(z), channels, -1).mean(2).sum(0).cpu()
    return total / len(x)
