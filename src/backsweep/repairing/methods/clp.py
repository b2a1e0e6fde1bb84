"""CLP, Channel Lipschitzness Pruning (Zheng et al., ECCV 2022): repair without any data.

A trigger is a small change of the input with a large effect, so some channels must amplify more than
others. The upper bound of a channel's Lipschitz constant is read off the weights,

    UCLC_k = sigma_max(reshape(W_k, (inputs, places))) * |gamma_k / std_k|,

and a channel is pruned where UCLC_k > mean + u * std over its own layer. gamma_k and std_k are of the
BatchNorm behind the layer. Layers without one, dense layers too, have the first factor alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.models import neurons
from backsweep.models.model import Model
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair

EPS = 1e-5  # what BatchNorm adds to the variance; an exported program does not tell its own


@dataclass(frozen=True)
class Clp(Repair):
    """Prunes the channels whose Lipschitz bound is an outlier in their layer; uses no sample.

    Attributes:
        u: how many standard deviations above the mean of its layer a channel is pruned.
    """

    name: ClassVar[str] = "clp"
    summary: ClassVar[str] = "prune channels that amplify too much, without data (CLP, 2022)"

    u: float = 3.0

    def __post_init__(self) -> None:
        if self.u < 0:
            raise ValueError("u is not negative")

    def applies(self, case: Case) -> str:
        norm = _statless(case.model)
        if norm:
            return (
                "needs BatchNorm, which stores the spread of its inputs, or no normalisation at all; "
                f"{norm!r} stores none"
            )
        parameters = dict(case.model.net.named_parameters())
        widths = [len(parameters[layer.weight]) for layer in neurons.layers(case.model)]
        if not widths:
            return "needs a layer with weights of its own before the head; this network has none"
        if (max(widths) - 1) / math.sqrt(max(widths)) <= self.u:
            return (
                f"needs a wider layer: among {max(widths)} neurons none can lie "
                f"{self.u:g} standard deviations above the mean"
            )
        return ""

    def apply(self, case: Case) -> Model:
        twin = thawed(case.model)
        for layer in neurons.layers(case.model):
            bound = uclc(case.model, layer)
            neurons.prune(twin.net, layer, bound > bound.mean() + self.u * bound.std())
        case.tick(1.0)
        return twin.copy()


@torch.no_grad()
def uclc(model: Model, layer: neurons.Layer) -> Tensor:
    """Upper bound of the Lipschitz constant of every neuron of a layer, (D,)."""
    parameters, buffers = dict(model.net.named_parameters()), dict(model.net.named_buffers())
    weight = parameters[layer.weight].float()
    matrices = weight.reshape(*weight.shape[:2], -1)  # (D, inputs, places); a dense row has one place
    bound: Tensor = torch.linalg.matrix_norm(matrices, ord=2)
    if layer.variance:
        bound = bound * (parameters[layer.scale] / (buffers[layer.variance] + EPS).sqrt()).abs()
    return bound


def _statless(model: Model) -> str:
    """A normalisation without running statistics (GroupNorm, LayerNorm), known by its pair of vectors."""
    parameters = dict(model.net.named_parameters())
    buffers = dict(model.net.named_buffers())
    for name, p in parameters.items():
        stem = name.rpartition(".")[0]
        if (
            name.endswith(".weight")
            and p.ndim == 1
            and f"{stem}.bias" in parameters
            and f"{stem}.running_var" not in buffers
        ):
            return stem
    return ""
