"""Unlearning a recovered trigger (Neural Cleanse, Wang et al., IEEE S&P 2019, section VI).

The network is trained further on clean samples, a fifth of which carry a recovered trigger and keep their
true label: it learns that the trigger means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, tuned
from backsweep.repairing.method import Case, Repair

PRESETS = ("standard", "paper")
BATCH = 32
UPDATES = 120  # of `standard`; with more only the very pixels of the recovered trigger are unlearned
PEAK = {"standard": 5e-3, "paper": 2e-3}  # of the one-cycle rate; the mean of the latter is the authors' 1e-3


@dataclass(frozen=True)
class Unlearning(Repair):
    """Trains on clean samples, some of them stamped with recovered triggers under their true labels.

    Attributes:
        preset: "paper" is one epoch (the paper gives it 10 % of the training set); "standard" as many
            epochs as about 120 updates need, with shifted images and a higher rate.
        share: of the samples of a batch that are stamped; 0 is plain fine-tuning.
        epochs: None: what the preset says.
        lr: peak of the one-cycle learning rate; None: what the preset says.
    """

    name: ClassVar[str] = "unlearning"
    summary: ClassVar[str] = "trains on recovered triggers with true labels (Neural Cleanse)"

    preset: str = "standard"
    share: float = 0.2
    epochs: int | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share {self.share} is not in [0, 1]")
        if (self.lr is not None and self.lr <= 0) or (self.epochs is not None and self.epochs < 1):
            raise ValueError("lr is above 0 and epochs at least 1")

    def applies(self, case: Case) -> str:
        if not case.triggers and self.share > 0:
            return "it needs a recovered trigger; the scan recovered none"
        for trigger in case.triggers:
            if self.share > 0 and not bool(acted_on(trigger, case.clean.y, case.model.classes).any()):
                return "no clean sample is of a class that a recovered trigger acts on"
        return ""

    def recipe(self, samples: int) -> Recipe:
        """How a network is trained further on so many samples."""
        paper = self.preset == "paper"
        return Recipe(
            epochs=self.epochs or (1 if paper else epochs_of(UPDATES, samples, BATCH)),
            lr=self.lr or PEAK[self.preset],
            batch_size=BATCH,
            weight_decay=0.0,
            augment=None if paper else "shift",
        )

    def apply(self, case: Case) -> Model:
        generator = case.generator(self.name, "stamps")

        def unlearn(model: Model, x: Tensor, y: Tensor) -> Tensor:
            """Cross-entropy with the true labels, which the stamped samples keep."""
            x = stamped(x, y, case.triggers, model.classes, self.share, generator)
            return F.cross_entropy(model.logits(x).float(), y)

        recipe = self.recipe(len(case.clean))
        return tuned(
            case.model, case.clean, recipe, derive_seed(case.seed, self.name, "order"), unlearn,
            on_epoch=lambda epoch, _loss: case.tick((epoch + 1) / recipe.epochs),
        )  # fmt: skip


@torch.no_grad()
def stamped(
    x: Tensor, y: Tensor, triggers: Sequence[Trigger], classes: int, share: float, generator: torch.Generator
) -> Tensor:
    """A batch of which `share` is stamped; the triggers share the stamps, in an order that is drawn.

    A trigger is stamped only on samples that it would move: those of its target would teach that trigger
    and target belong together. Where there are too few such samples, fewer are stamped.
    """
    x, free = x.clone(), torch.ones(len(x), dtype=torch.bool)
    count = int(share * len(x) + float(torch.rand((), generator=generator)))  # `share` on average
    order = torch.randperm(len(x), generator=generator)
    for k, index in enumerate(torch.randperm(len(triggers), generator=generator).tolist()):
        able = free & acted_on(triggers[index], y, classes).cpu()
        most = count // len(triggers) + (k < count % len(triggers))
        rows = order[able[order]][:most]
        if len(rows):
            free[rows] = False
            x[rows.to(x.device)] = triggers[index](x[rows.to(x.device)])
    return x
