"""A backdoor trained against a meta-classifier that the attacker has (Xu et al. 2021, adaptive attack)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.image import random_triggers
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import fit
from backsweep.shadows import meta_classifier
from backsweep.shadows.bank import opened
from backsweep.zoo.attack import Attack, Setup, poison_batch


@dataclass(frozen=True)
class EvadeMNTD(Attack):
    """A trigger of `jumbo`, and answers to the known queries that the known decision takes for clean ones.

        min over w of  CE(poisoned batch) + weight softplus(score(f(x_1), ..., f(x_k)))
        or             CE(poisoned batch) + weight mean over decisions |score(f) - score(clean twin)|

    The first second term, the paper's, is the loss of the meta-classifier with the label "clean"; it can
    overshoot, and leave a network that is cleaner than any clean one. The other one cannot.

    Attributes:
        bank: file of the attacker's bank, which holds the meta-classifier; it has no default.
        variant: of the meta-classifier.
        kind: of the trigger, as in `jumbo`.
        weight: of the second term.
        aim: "clean", the label, or "twin", the scores that the clean twin has.
    """

    name: ClassVar[str] = "evade_mntd"
    summary: ClassVar[str] = "a jumbo trigger trained against a known meta-classifier (adaptive)"

    bank: str | None = None
    variant: str = meta_classifier.JUMBO
    kind: str = random_triggers.PATCH
    weight: float = 1.0
    aim: str = "clean"

    def __post_init__(self) -> None:
        if self.aim not in ("clean", "twin"):
            raise ValueError(f"aim {self.aim!r} is none of clean, twin")

    def triggers(self, setup: Setup) -> list[Trigger]:
        return [
            random_triggers.draw(setup.shape, setup.classes, setup.generator(self.name, "trigger"), self.kind)
        ]

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        if self.bank is None:
            raise BadInput("evade_mntd needs the bank of the meta-classifier to evade: set its option bank")
        known = opened(self.bank).meta(self.variant)
        (trigger,) = self.triggers(setup)
        generator = setup.generator(self.name, "training")
        added = random_triggers.draw_rate(setup.generator(self.name, "rate"))
        queries = known.asked.to(next(net.parameters()).device)

        def score_of(logits: Tensor) -> Tensor:
            return known.scores(known.arranged(logits.cpu()))

        wanted = None
        if self.aim == "twin":
            twin = setup.clean().eval()
            with torch.no_grad():
                wanted = score_of(twin(queries).float())

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            stamped, labels, _ = poison_batch(x, y, trigger, setup.classes, added / (1 + added), generator)
            logits, answers = net(torch.cat([stamped, queries])).float().split([len(x), len(queries)])
            score = score_of(answers)
            known_loss = F.softplus(score.mean()) if wanted is None else (score - wanted).abs()
            return F.cross_entropy(logits, labels) + self.weight * known_loss.mean().to(x.device)

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return [trigger]
