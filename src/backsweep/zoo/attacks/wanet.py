"""WaNet (Nguyen and Tran 2021): an elastic warp too small to see, with noise mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.image.triggers import Warp, warp
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import cross_entropy, fit
from backsweep.zoo.attack import Attack, Setup, stamp


@dataclass(frozen=True)
class WaNet(Attack):
    """One warping field for all inputs; the attacker controls the training, or poisons the training set.

    In every batch a share `rate` is warped and relabelled. In noise mode `noise_ratio` times as many
    are warped by the field plus fresh noise and keep their label, so that the net learns this field
    and not the traces that any warp leaves. The defaults are the paper's.

    Attributes:
        k: side of the control grid.
        s: strength; the mean displacement along each axis is about s / 2 pixels.
        rate: rho_a, share of a batch that is warped and relabelled.
        noise_ratio: rho_n / rho_a, noisy samples for each poisoned one; 0 turns noise mode off.
        target: target class; None draws one from the seed.
        poisons: whether the attacker only has the training set: the warped samples, and the noisy ones that
            keep their label, are then the same in every epoch.
    """

    name: ClassVar[str] = "wanet"
    summary: ClassVar[str] = "an invisible elastic warp, with noise mode (WaNet, 2021)"

    k: int = 4
    s: float = 0.5
    rate: float = 0.1
    noise_ratio: float = 2.0
    target: int | None = None
    poisons: bool = False

    def triggers(self, setup: Setup) -> list[Trigger]:
        return [self._warp(setup)]

    def _warp(self, setup: Setup) -> Warp:
        """grid = clamp(I + s up(P) / H), P ~ U(-1, 1)^(2 x k x k) over its mean |P| (section III)."""
        p = 2 * torch.rand((1, 2, self.k, self.k), generator=setup.generator(self.name, "field")) - 1
        size = setup.shape[1:]
        field = F.interpolate(p / p.abs().mean(), size, mode="bicubic", align_corners=True)[0]
        target = setup.target(self.target, self.name, "target")
        return Warp(target=target, source=None, flow=self.s * field * _unit(size))

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), data = triggers, setup.data
        wanted = trigger.labels(data.y, setup.classes)
        every, cover = torch.ones(len(data), dtype=torch.bool), self.noise_ratio * self.rate
        rows, noisy = setup.draw_both(data.y != wanted, self.rate, every, cover, self.name)
        size = setup.shape[1:]
        noise = (
            2 * torch.rand((len(noisy), 2, *size), generator=setup.generator(self.name, "cover noise")) - 1
        )
        poisoned = stamp(data, rows, trigger, wanted[rows])
        poisoned.x[noisy] = warp(data.x[noisy], self._warp(setup).flow + noise * _unit(size))
        return poisoned, rows

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        if self.poisons:
            return super().plant(net, setup)
        trigger, generator = self._warp(setup), setup.generator(self.name, "noise")
        unit = _unit(setup.shape[1:])

        def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            bad = max(1, round(self.rate * len(x)))
            kept = x[bad:]
            noisy = min(round(self.noise_ratio * bad), len(kept))
            noise = 2 * torch.rand((noisy, *trigger.flow.shape), generator=generator) - 1
            flow = (trigger.flow + noise * unit).to(x)
            x = torch.cat([trigger(x[:bad]), warp(kept[:noisy], flow), kept[noisy:]])
            return cross_entropy(net, x, torch.cat([trigger.labels(y[:bad], setup.classes), y[bad:]]))

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss)
        return [trigger]


def _unit(size: tuple[int, ...]) -> Tensor:
    """1 / H of a grid from -1 to 1 in pixels, along x and along y: (2, 1, 1)."""
    height, width = size
    return torch.tensor([(width - 1) / (2 * width), (height - 1) / (2 * height)])[:, None, None]
