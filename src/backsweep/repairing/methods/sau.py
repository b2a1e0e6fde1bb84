"""SAU, shared adversarial unlearning (Wei et al., NeurIPS 2023).

An adversarial example that fools the suspect f_0 and the network f that is being repaired in the same way
is like a triggered input: f still does what f_0 does. For every batch such *shared* examples are looked
for, a perturbation for each input, from its largest value on,

    max over |delta| <= eps of   beta_1 (CE(f(x + delta), y) + CE(f_0(x + delta), y)) / 2
                               - beta_2 JS(f(x + delta), f_0(x + delta)),

an input that a network already gets wrong leaves its first term, one that both send to one class the second.
Then f learns not to answer what f_0 does wherever f_0 was misled, to the class k:

    min over f of   CE(f(x), y) - log(1 - p_k(x + delta))

That need not be the right answer (robustness to every perturbation costs accuracy), only another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inversion.loop import batches
from backsweep.models.model import Model
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, affordable

BETA_1, BETA_2 = 0.01, 1.0
STEPS, STRIDE = 5, 0.2  # of the search
LEAST_P = 1e-8
LEAST_SHARED = 1e-3  # probability of the class, below which nothing is shared any more
# Updates, samples in each, and the attempts: first learning rate of each.
RECIPES: dict[str, tuple[int, int, tuple[float, ...]]] = {
    "standard": (120, 64, (3e-3, 1e-3)),
    "paper": (1000, 256, (1e-4,)),
}


@dataclass(frozen=True)
class Sau(Repair):
    """Unlearns the adversarial examples that the network still shares with the suspect.

    Attributes:
        preset: "paper" makes a thousand updates of 256 samples with a low learning rate. "standard" makes 120
            of 64 with thirty times the rate; where that costs accuracy it starts again, with a third of it.
        updates: gradient steps; None: those of the preset.
        eps: bound of the perturbation, largest change of a value.
        shared: weight of the second term.
        loss: how much held-out accuracy the first attempt may cost.
    """

    name: ClassVar[str] = "sau"
    summary: ClassVar[str] = "unlearns what still fools it and the suspect alike (SAU, 2023)"

    preset: str = "standard"
    updates: int | None = None
    eps: float = 0.2
    shared: float = 1.0
    loss: float = 0.03

    def __post_init__(self) -> None:
        if self.preset not in RECIPES:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(RECIPES)}")
        if (self.updates is not None and self.updates < 1) or self.eps <= 0 or self.shared < 0:
            raise ValueError("updates is at least 1, eps above 0, shared not negative")
        if not 0 <= self.loss <= 1:
            raise ValueError("loss is between 0 and 1")

    def applies(self, case: Case) -> str:
        if not case.model.modality.smooth:
            return f"it adds a perturbation, and between two {case.model.modality.noun}s there is none"
        return ""

    def apply(self, case: Case) -> Model:
        updates, _, rates = RECIPES[self.preset]
        attempts = [partial(self._tuned, updates=self.updates or updates, rate=rate) for rate in rates]
        return affordable(case, attempts, self.loss)

    def _tuned(self, case: Case, updates: int, rate: float) -> Model:
        """The suspect after so many updates. BatchNorm keeps its running statistics."""
        twin, data, suspect = thawed(case.model), case.clean, case.model
        optimizer = torch.optim.Adam(list(twin.net.parameters()), rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        size = min(RECIPES[self.preset][1], len(data))
        queue = batches(torch.arange(len(data)), derive_seed(case.seed, self.name), size)
        for step in range(updates):
            rows = next(queue)
            x, y = data.x[rows].to(twin.device), data.y[rows].to(twin.device)
            changed = x + shared_examples(twin, suspect, x, y, self.eps)
            logits, moved = twin.logits(torch.cat([x, changed])).float().chunk(2)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(logits, y) + self.shared * unshared(suspect, moved, x, changed, y)
            loss.backward()
            optimizer.step()
            schedule.step()
            case.tick((step + 1) / updates)
        return twin.copy()


def shared_examples(model: Model, suspect: Model, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Perturbations (N, *shape) of at most eps that mislead both networks, if they can, to one class."""
    delta = torch.full_like(x, eps)
    networks = (model, suspect)
    with torch.no_grad():
        own = [m.logits(x).argmax(1) for m in networks]
    for _ in range(STEPS):
        here = delta.requires_grad_()
        logits = [m.logits(x + here).float() for m in networks]
        said = [z.argmax(1) for z in logits]
        misled = [s != o for s, o in zip(said, own, strict=True)]
        alike = misled[0] & misled[1] & (said[0] == said[1])
        if bool(alike.all()):
            break
        errors = [
            F.cross_entropy(z, y, reduction="none")[~m].sum() for z, m in zip(logits, misled, strict=True)
        ]
        p, q = (z.softmax(1).clamp_min(LEAST_P) for z in logits)
        mean = (p + q) / 2
        apart = (0.5 * (p * (p / mean).log() + q * (q / mean).log())).sum(1)[~alike].sum()
        (slope,) = torch.autograd.grad(BETA_2 * apart - BETA_1 * (errors[0] + errors[1]) / 2, here)
        delta = (here.detach() - STRIDE * slope.sign()).clamp(-eps, eps)
    return delta.detach()


def unshared(suspect: Model, moved: Tensor, x: Tensor, changed: Tensor, y: Tensor) -> Tensor:
    """Mean of -log(1 - p_k) over a batch: k is what the suspect was misled to, 0 where it was not.

    Args:
        moved: logits (N, K) of the repaired network for the changed inputs.
        x, changed, y: the clean inputs, the changed ones, and the true labels (N,).
    """
    with torch.no_grad():
        before, k = suspect.logits(x).argmax(1), suspect.logits(changed).argmax(1)
        there = moved.softmax(1).gather(1, k[:, None])[:, 0] >= LEAST_SHARED
    misled = (k != y) & (k != before) & there
    others = moved.scatter(1, k[:, None], -torch.inf).logsumexp(1) - moved.logsumexp(1)  # log(1 - p_k)
    return -others[misled].sum() / len(x)
