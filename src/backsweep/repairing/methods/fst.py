"""FST, feature shift tuning (Min et al., NeurIPS 2023): fine-tuning that is made to leave its features.

Where few samples were poisoned the features of the backdoor and those of the task hang together, and
plain fine-tuning keeps both. FST draws the head anew and pushes it away from the weights W_0 that it had, so
that the features have to move with it:

    min over theta, W of   CE(f(x), y) + alpha <W, W_0>       subject to   |W| = |W_0|

The norm is put back after every update; without that the second term would only make W larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.models.layers import set_mode
from backsweep.models.model import Model
from backsweep.models.neurons import head
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, affordable

# Passes over the samples, updates at least, and the attempts: alpha of each.
RECIPES: dict[str, tuple[int, int, tuple[float, ...]]] = {
    "standard": (10, 200, (0.2, 0.1)),
    "paper": (10, 1, (0.2,)),
}


@dataclass(frozen=True)
class Fst(Repair):
    """Feature shift tuning on clean samples.

    Attributes:
        preset: "paper" passes over the samples ten times. "standard" makes at least 200 updates, which
            few samples need, and starts again with half of alpha where that cost accuracy.
        alpha: how hard the head is pushed away from what it was; None: 0.2 (`standard`: 0.2, then 0.1).
        updates: gradient steps; None: those of the preset.
        rate: of SGD, falling to 0 along a cosine.
        batch_size: samples in an update.
        loss: how much held-out accuracy the first attempt may cost.
    """

    name: ClassVar[str] = "fst"
    summary: ClassVar[str] = "a new head, pushed away from the old one (FST, 2023)"

    preset: str = "standard"
    alpha: float | None = None
    updates: int | None = None
    rate: float = 0.01
    batch_size: int = 128
    loss: float = 0.03

    def __post_init__(self) -> None:
        if self.preset not in RECIPES:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(RECIPES)}")
        if self.batch_size < 1 or (self.updates is not None and self.updates < 1):
            raise ValueError("batch_size and updates are at least 1")
        if self.rate <= 0 or not 0 <= self.loss <= 1 or (self.alpha is not None and self.alpha < 0):
            raise ValueError("rate is above 0, loss between 0 and 1, alpha not negative")

    def applies(self, case: Case) -> str:
        if not head(case.model):
            return "it draws the head anew, and these logits do not come out of a head's weights"
        least = case.model.classes
        for some, why in ((case.clean, "to learn from"), (case.held_out, "to choose alpha by")):
            if len(some) < least and (some is case.clean or self.preset == "standard"):
                return f"needs a clean sample per class {why}: {least} at least, there are {len(some)}"
        return ""

    def apply(self, case: Case) -> Model:
        passes, least, attempts = RECIPES[self.preset]
        updates = self.updates or max(least, passes * math.ceil(len(case.clean) / self.batch_size))
        alphas = attempts if self.alpha is None else (self.alpha,)
        tries = [partial(self._tuned, updates=updates, alpha=alpha) for alpha in alphas]
        return affordable(case, tries, self.loss)

    def _tuned(self, case: Case, updates: int, alpha: float) -> Model:
        """The suspect with a new head, after so many updates."""
        twin, device = thawed(case.model), case.model.device
        weight, old = new_head(twin, case.generator(self.name, "head"))
        shown = case.batches(self.name, self.batch_size)
        optimizer = torch.optim.SGD(list(twin.net.parameters()), self.rate, 0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(case.seed, self.name))  # of dropout
            set_mode(twin.net, training=True)
            for step in range(updates):
                x, y = next(shown)
                optimizer.zero_grad(set_to_none=True)
                (F.cross_entropy(twin.logits(x).float(), y) + alpha * (weight * old).sum()).backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    weight.mul_(old.norm() / weight.norm().clamp_min(1e-12))
                case.tick((step + 1) / updates)
        return twin.copy()


@torch.no_grad()
def new_head(twin: Model, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw weight and bias of the head anew, uniform in +- 1 / sqrt(inputs); the weight and what it was."""
    parameters, name = dict(twin.net.named_parameters()), head(twin)
    weight = parameters[name]
    old, bound = weight.detach().clone(), 1 / math.sqrt(math.prod(weight.shape[1:]))
    stem = name.rpartition(".")[0]
    for p in (weight, parameters.get(f"{stem}.bias")):
        if p is not None:
            p.copy_(bound * (2 * torch.rand(p.shape, generator=generator) - 1))
    return weight, old
