"""The neurons of a network, by the names of its weights: what pruning takes away and noise shakes.

A neuron is an output of a fully connected or convolutional layer, together with its place in the
normalisation that follows. Names of parameters tell layers also where there are no modules, as in an
exported program.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from backsweep.models.model import Model
from backsweep.models.training import thawed

GROWTH = 1.25  # of the number of neurons, from one candidate for pruning to the next


@dataclass(frozen=True)
class Layer:
    """One layer of neurons; names of parameters and buffers, "" where there is none.

    Attributes:
        weight, bias: of the layer, (D, ...) and (D,).
        scale, shift: gamma and beta of the BatchNorm or GroupNorm that follows, (D,).
        variance: running variance of a BatchNorm.
    """

    weight: str
    bias: str
    scale: str
    shift: str
    variance: str

    @property
    def gains(self) -> tuple[str, str]:
        """What a neuron is weighed and moved by: gamma and beta, else the layer's own weight and bias."""
        return (self.scale, self.shift) if self.scale else (self.weight, self.bias)


def layers(model: Model) -> list[Layer]:
    """The layers of neurons before the head, in the order in which they run, each weight once."""
    parameters = dict(model.net.named_parameters())
    buffers, modules = dict(model.net.named_buffers()), dict(model.net.named_modules())
    order = list(parameters)
    found: dict[str, Layer] = {}
    for weight in model.affine()[:-1]:
        if not weight or weight in found:
            continue
        count = len(parameters[weight])
        stem = weight.rpartition(".")[0]
        bias = f"{stem}.bias" if f"{stem}.bias" in parameters else ""
        after = order[order.index(bias or weight) + 1 :][:1]
        scale = after[0] if after and parameters[after[0]].shape == (count,) else ""
        norm = scale.rpartition(".")[0]
        if f"{norm}.running_var" not in buffers and not isinstance(modules.get(norm), nn.GroupNorm):
            scale = norm = ""  # a LayerNorm stands before its layer as often as behind it
        found[weight] = Layer(
            weight, bias, scale,
            f"{norm}.bias" if scale and f"{norm}.bias" in parameters else "",
            f"{norm}.running_var" if scale and f"{norm}.running_var" in buffers else "",
        )  # fmt: skip
    return list(found.values())


def head(model: Model) -> str:
    """Name of the head's weight, (classes, D); "" where the logits do not come out of a parameter."""
    return model.affine()[-1]


@torch.no_grad()
def prune(net: nn.Module, layer: Layer, neurons: Tensor) -> None:
    """Silence neurons (indices, or a boolean mask) in place: whatever they answered, they answer 0.

    Where a normalisation follows, that is where they are silenced: it would bring back a constant.
    """
    parameters = dict(net.named_parameters())
    for name in layer.gains:
        if name:
            parameters[name][neurons] = 0.0


@torch.no_grad()
def cut(net: nn.Module, weight: str, inputs: Tensor) -> None:
    """Make a layer deaf to some of its inputs (indices, or a boolean mask), in place."""
    dict(net.named_parameters())[weight][:, inputs] = 0.0


def pruned(model: Model, masks: Mapping[Layer, Tensor]) -> Iterator[Model]:
    """The network with the neurons of m < threshold silenced, for thresholds from small to large.

    A threshold is the mask of a neuron, so that each takes a quarter more neurons than the one before.
    """
    values = torch.cat([m.cpu() for m in masks.values()]).sort().values
    values = torch.cat([values[values < 1], torch.ones(1)])
    count, before = 1, 0
    while count < len(values):
        threshold = values[count].item()
        silent = int((values < threshold).sum())
        if silent > before:
            before, twin = silent, thawed(model)
            for layer, mask in masks.items():
                prune(twin.net, layer, mask < threshold)
            yield twin.copy()
        count = math.ceil(GROWTH * count) if count > 1 else 2


def with_weights(model: Model, weights: dict[str, Tensor]) -> Model:
    """The model running with other tensors in the place of some parameters, which may carry gradients."""
    twin = copy.copy(model)
    twin.net = _Changed(model.net, weights)
    return twin


class _Changed(nn.Module):
    """A network that runs with other tensors in the place of some parameters."""

    def __init__(self, net: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.net, self.weights = net, weights

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.net, self.weights, (x,))
