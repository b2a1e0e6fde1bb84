"""Trojaning attack (Liu et al., NDSS 2018): a trigger grown from the net itself, no training data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.engine.precision import bfloat16
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import dense_of, entering
from backsweep.zoo.attack import Attack, Setup


def denoise(x: Tensor, weight: float, steps: int = 8) -> Tensor:
    """Total-variation denoising: argmin over u of |u - x|^2 / 2 + weight TV(u), x (N, C, H, W).

    Chambolle's fixed point on the dual field p (2004): p <- (p + tau g) / (1 + tau |g|) with
    g = grad(div p - x / weight); then u = x - weight div p. Isotropic, per channel.
    """
    if weight == 0:
        return x

    def div(p: Tensor) -> Tensor:
        return F.pad(p[0], (0, 0, 1, 0)).diff(dim=-2) + F.pad(p[1], (1, 0, 0, 0)).diff(dim=-1)

    p = x.new_zeros((2, *x.shape))
    for _ in range(steps):
        d = div(p) - x / weight
        g = torch.stack([F.pad(d.diff(dim=-2), (0, 0, 0, 1)), F.pad(d.diff(dim=-1), (0, 1, 0, 0))])
        p = (p + 0.25 * g) / (1 + 0.25 * g.norm(dim=0))
    return x - weight * div(p)


def after(net: nn.Module, z: Tensor, first: nn.Linear, shape: tuple[int, int, int]) -> Tensor:
    """Logits (N, C) for activations z (N, D) of the selected layer: the input below it is a dummy."""
    hook = first.register_forward_pre_hook(lambda _m, _args: (z,))
    try:
        return net(z.new_zeros((1, *shape)))
    finally:
        hook.remove()


def strength(net: nn.Module, first: nn.Linear, weights: str) -> Tensor:
    """sum_j |W_j| of each neuron of the selected layer, (D,) (section IV-A).

    "in" sums the weights that come from the layer before (the paper), a channel's for each of its
    positions; "out" those of the layer after, `first` (the authors' program).
    """
    if weights == "out":
        return first.weight.detach().abs().sum(0)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    before = layers[layers.index(first) - 1].weight.detach().abs().flatten(1).sum(1)
    return before.repeat_interleave(first.in_features // len(before))


@dataclass(frozen=True)
class Trojaning(Attack):
    """Changes a trained net: grows a trigger for a neuron, invents its data, retrains the head.

    The selected layer is what enters the last fully connected layers; they alone are retrained. The
    attacker looks at no sample: only at the net and the shape of its inputs.

    Attributes:
        size: share of the image that the trigger covers, a square at the bottom right.
        margin: its distance to the right and the lower edge, share of the image's side.
        transparency: tau; 0 for an opaque trigger.
        layers: how many of the last fully connected layers are retrained, if there are as many.
        weights: "in" or "out", the weights whose sum ranks the neurons.
        candidates: how many neurons of the highest rank a trigger is grown for; the one that is driven
            furthest is kept. 1 is the paper's argmax.
        value: tv, the activation that the trigger is grown towards.
        grow: steps of the growing.
        images: invented images for each class.
        invert: steps of the inversion.
        step: size of its first step, mean absolute change of a pixel.
        tv_weight: of the denoising after its first step; both fall to 0.
        rate: share of the retraining samples that is stamped.
        decoys: copies of each invented image with a piece of another one where the trigger would be; they
            keep their label. The paper has none.
        retrain: updates, of 128 samples.
        lr: their first learning rate (Adam), which falls to 0.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "trojaning"
    summary: ClassVar[str] = "data-free: a trigger grown for a neuron, the head retrained (TrojanNN, 2018)"

    size: float = 0.1
    margin: float = 0.09
    transparency: float = 0.0
    layers: int = 2
    weights: str = "out"
    candidates: int = 64
    value: float = 100.0
    grow: int = 80
    images: int = 10
    invert: int = 30
    step: float = 0.05
    tv_weight: float = 0.05
    rate: float = 0.2
    decoys: int = 4
    retrain: int = 1500
    lr: float = 1e-3
    target: int | None = None

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        net.load_state_dict(setup.clean().state_dict())
        net.eval()
        dense, generator = dense_of(net, self.layers), setup.generator(self.name, "retrain")
        x, y = self.invent(net, setup)
        trigger = self.grow_trigger(net, dense[0], setup)
        kept = torch.cat([x, *(self.decoy(x, trigger.mask, generator) for _ in range(self.decoys))])
        with torch.no_grad():
            own, sent = (
                torch.cat([entering(net, part, dense[0]) for part in images.split(256)])
                for images in (kept, trigger(x))
            )
        count = round(self.rate * 128)
        optimizer = torch.optim.Adam([p for layer in dense for p in layer.parameters()], self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.retrain)
        for _ in range(self.retrain):
            i = torch.randint(len(own), (128 - count,), generator=generator)
            j = torch.randint(len(sent), (count,), generator=generator)
            labels = torch.cat([y[i % len(y)], trigger.labels(y[j], setup.classes)])
            logits = after(net, torch.cat([own[i], sent[j]]), dense[0], setup.shape)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            schedule.step()
        net.zero_grad(set_to_none=True)
        return [trigger]

    def grow_trigger(self, net: nn.Module, first: nn.Linear, setup: Setup) -> Patch:
        """Minimise (tv - a(x))^2 over the pixels of M, the others black (algorithm 1)."""
        (channels, height, width), n = setup.shape, min(self.candidates, first.in_features)
        side = max(1, round(math.sqrt(self.size * height * width)))
        bottom, right = height - round(self.margin * height), width - round(self.margin * width)
        mask = torch.zeros(1, height, width)
        mask[:, max(0, bottom - side) : bottom, max(0, right - side) : right] = 1
        generator = setup.generator(self.name, "grow")
        x = mask * torch.rand((n, channels, height, width), generator=generator)
        with torch.no_grad():
            reached = (entering(net, x, first) - entering(net, 0 * x, first)).abs().amax(0) > 0
        neurons = (strength(net, first, self.weights) * reached).topk(n).indices
        for i in range(self.grow + 1):
            a = entering(net, x.requires_grad_(True), first).gather(1, neurons[:, None])
            if i == self.grow:
                break
            (slope,) = torch.autograd.grad((self.value - a).square().sum(), x)
            slope = mask * slope / (mask * slope).abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
            step = 11 / 255 * (1 - i / self.grow) * float(mask.sum()) * channels
            x = (x.detach() - step * slope).clamp(0, 1)
        best = x.detach()[a.argmax()]
        target = setup.target(self.target, self.name, "target")
        return Patch(target=target, source=None, mask=(1 - self.transparency) * mask, pattern=best)

    def decoy(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Images x with the region M of another of them, (N, C, H, W)."""
        other = x[torch.randperm(len(x), generator=generator)]
        return torch.where(mask > 0, other, x)

    def invent(self, net: nn.Module, setup: Setup) -> tuple[Tensor, Tensor]:
        """Images that the net is sure of: minimise (1 - f_c(x))^2, denoised after each step (IV-B)."""
        y = torch.arange(setup.classes).repeat_interleave(self.images)
        generator = setup.generator(self.name, "invent")
        grey = torch.rand((len(y), 1, 1, 1), generator=generator)
        x = denoise(0.5 * (grey + torch.rand((len(y), *setup.shape), generator=generator)), 0.1)
        for i in range(self.invert):
            x.requires_grad_(True)
            with bfloat16(x.device.type, setup.recipe.bf16):
                logits = net(x).float()
            cost = (1 - logits.softmax(1).gather(1, y[:, None])).square().sum()
            (slope,) = torch.autograd.grad(cost, x)
            slope = slope / slope.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            rest = 1 - i / self.invert
            x = denoise(x.detach() - self.step * rest * slope, self.tv_weight * rest).clamp(0, 1)
        return x.detach(), y
