"""Neuron pruning with a recovered trigger (Neural Cleanse, Wang et al., IEEE S&P 2019, section VI).

A recovered trigger shows which neurons carry the backdoor: those that answer it much more strongly than a
clean input. They are silenced, the most raised one first, until the trigger does nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.inputs.trigger import acted_on
from backsweep.models.model import Model
from backsweep.models.neurons import cut
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, strongest

LAYERS = ("conv", "penultimate")
BATCH = 256


@dataclass(frozen=True)
class Site:
    """Where neurons are silenced: the operation that reads them becomes deaf to them.

    Attributes:
        operation: index of the affine operation that reads the neurons.
        weight: name of its weight, (D, inputs, ...).
        group: inputs that come from one neuron; a convolution's feature map is often flattened.
    """

    operation: int
    weight: str
    group: int


@dataclass(frozen=True)
class NeuronPruning(Repair):
    """Silences the neurons that recovered triggers raise most.

    Attributes:
        layer: "conv" (the channels of the last convolution, which the paper reports to cost less accuracy)
            or "penultimate" (the paper's first choice: the neurons that the head reads).
        step: share of the neurons that is silenced at a time, at least one neuron.
        stop: success rate on held-out samples at which a recovered trigger counts as dead.
        loss: most accuracy on held-out samples that may be lost.
    """

    name: ClassVar[str] = "neuron_pruning"
    summary: ClassVar[str] = "silences the neurons that recovered triggers raise (Neural Cleanse)"

    layer: str = "conv"
    step: float = 0.01
    stop: float = 0.01
    loss: float = 0.05

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ValueError(f"layer {self.layer!r} is none of {', '.join(LAYERS)}")
        if not 0 < self.step <= 1 or not 0 <= self.stop < 1 or not 0 <= self.loss <= 1:
            raise ValueError("step is in (0, 1], stop in [0, 1), loss in [0, 1]")

    def applies(self, case: Case) -> str:
        if not case.triggers:
            return "it needs a recovered trigger; the scan recovered none"
        for trigger in case.triggers:
            for part, data in (("clean", case.clean), ("held-out", case.held_out)):
                if not bool(acted_on(trigger, data.y, case.model.classes).any()):
                    return f"no {part} sample is of a class that a recovered trigger acts on"
        if self.site(case.model) is None:
            return {
                "penultimate": "the head of this network is not a layer whose inputs can be cut",
                "conv": "no layer that can be cut reads the last convolution; try layer=penultimate",
            }[self.layer]
        return ""

    def apply(self, case: Case) -> Model:
        site = self.site(case.model)
        if site is None:
            raise ValueError(self.applies(case))
        return strongest(case, self._pruned(case, site), self.loss)

    def site(self, model: Model) -> Site | None:
        """Where this network's neurons are silenced, None where that cannot be done."""
        weights, parameters = model.affine(), dict(model.net.named_parameters())
        operation = len(weights) - 1
        if self.layer == "conv":
            convolutions = [i for i, w in enumerate(weights[:-1]) if w and parameters[w].ndim == 4]
            if not convolutions:
                return None
            operation = convolutions[-1] + 1
        if not weights[operation]:
            return None
        z = model.entering(model.modality.blank(1, model.shape).to(model.device), operation)
        inputs = parameters[weights[operation]].shape[1]
        if inputs != z.shape[-1 if z.ndim == 3 else 1]:
            return None  # of a grouped convolution, or a matrix that is stored transposed
        if self.layer != "conv":
            return Site(operation, weights[operation], 1)
        channels = parameters[weights[convolutions[-1]]].shape[0]
        if z.ndim == 3 or inputs % channels:
            return None
        return Site(operation, weights[operation], inputs // channels)

    def _pruned(self, case: Case, site: Site) -> Iterator[Model]:
        """The network with more and more neurons silenced, until all triggers are dead."""
        twin, gaps = thawed(case.model), activation_gap(case, site)
        order = gaps.argsort(descending=True, stable=True)
        order = order[gaps[order] > 0]  # the others do not carry the backdoor
        for k, part in enumerate(parts := order.split(max(1, round(self.step * len(gaps))))):
            inputs = part[:, None] * site.group + torch.arange(site.group)
            cut(twin.net, site.weight, inputs.flatten().to(case.model.device))
            model = twin.copy()
            yield model
            if all(model.success_rate(t, case.held_out) <= self.stop for t in case.triggers):
                return
            case.tick((k + 1) / len(parts))


def activation_gap(case: Case, site: Site) -> Tensor:
    """Mean activation with the trigger minus without it, (neurons,), over the samples that it acts on.

    Several triggers count at once: a neuron's gap is that of the trigger that raises it most.
    """
    gaps = []
    for trigger in case.triggers:
        x = case.clean.x[acted_on(trigger, case.clean.y, case.model.classes)]
        total = sum(
            activations(case.model, trigger(b), site).sum(0) - activations(case.model, b, site).sum(0)
            for b in x.split(BATCH)
        )
        gaps.append(torch.as_tensor(total) / len(x))
    return torch.stack(gaps).amax(0)


def activations(model: Model, x: Tensor, site: Site) -> Tensor:
    """What the neurons answer, (N, neurons) on the CPU: the mean over all places of a feature map."""
    z = model.entering(x.to(model.device), site.operation)
    if z.ndim == 4:
        z = z.mean((2, 3))
    elif z.ndim == 3:
        z = z.mean(1)
    return z.unflatten(1, (-1, site.group)).mean(2).double().cpu()
