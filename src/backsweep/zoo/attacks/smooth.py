"""Smooth trigger, also called LF (Zeng et al. 2021): a low-frequency perturbation found on a clean net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel


@dataclass(frozen=True)
class Smooth(Attack):
    """x' = clip(x + delta), delta = argmin E CE(f(clip(x + delta)), t), delta low-pass, |delta| <= eps.

    f is the attacker's own clean net, its weights frozen. After each step delta is projected on the
    low frequencies and scaled into the bound, which leaves it as smooth as it was.

    Attributes:
        eps: L-inf bound of delta, in units of the [0, 1] range.
        cutoff: share of the frequencies that is kept in each direction, lowest first.
        steps: steps of the search.
        batch: samples in a step.
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "a low-frequency perturbation found on a clean net (LF, 2021)"

    eps: float = 0.1
    cutoff: float = 0.25
    steps: int = 200
    batch: int = 64
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        return [Additive(target=target, source=None, delta=self._search(setup, target))]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")

    def _search(self, setup: Setup, target: int) -> Tensor:
        net = setup.surrogate().eval().requires_grad_(False)
        device = next(net.parameters()).device
        others = setup.data.x[setup.data.y != target]
        generator = setup.generator(self.name, "search")
        across, down = (low_pass(n, self.cutoff).to(device) for n in (setup.shape[2], setup.shape[1]))
        delta = torch.zeros(setup.shape, device=device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=self.eps / 10)
        for _ in range(self.steps):
            x = others[torch.randint(len(others), (self.batch,), generator=generator)].to(device)
            wanted = torch.full((len(x),), target, device=device)
            loss = F.cross_entropy(net((x + delta).clamp(0, 1)), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                smooth = down @ delta @ across
                delta.copy_(smooth * (self.eps / smooth.abs().max().clamp_min(1e-12)).clamp_max(1))
        return delta.detach().cpu()


def low_pass(n: int, cutoff: float) -> Tensor:
    """Projection (n, n) of n values on their lowest round(cutoff n) frequencies, at least 2: D^T D.

    The rows of D are those of the orthonormal DCT-II, D_ui = sqrt(2/n) cos(pi (2i + 1) u / 2n).
    """
    u, i = torch.arange(max(2, round(cutoff * n)))[:, None], torch.arange(n)[None, :]
    basis = math.sqrt(2 / n) * torch.cos(math.pi * (2 * i + 1) * u / (2 * n))
    basis[0] /= math.sqrt(2)
    return basis.T @ basis
