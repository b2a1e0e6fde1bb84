"""Fine-tuning: train on with a few clean samples, and hope that the backdoor is forgotten.

The plainest repair and the yardstick of the others. min over w of E[CE(f_w(x), y)] on clean samples
asks nothing about triggers: as long as no clean sample shows one, nothing pushes against it but the
drift of weights that it shares with the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backsweep.core.seeds import derive_seed
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, tuned
from backsweep.repairing.method import Case, Repair


@dataclass(frozen=True)
class FineTuning(Repair):
    """Stochastic gradient descent on the clean samples alone.

    Attributes:
        updates: gradient steps, rounded up to whole passes over the samples.
        lr: peak of the one-cycle learning rate; momentum is 0.9.
        batch_size: samples in an update.
        weight_decay: pulls all weights towards 0.
    """

    name: ClassVar[str] = "fine_tuning"
    summary: ClassVar[str] = "train on with clean samples, the yardstick of the others"

    updates: int = 300
    lr: float = 0.01
    batch_size: int = 128
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if min(self.updates, self.batch_size) < 1:
            raise ValueError("updates and batch_size are at least 1")

    def applies(self, case: Case) -> str:
        if len(case.clean) < case.model.classes:
            return (
                f"needs a clean sample per class to learn from: {case.model.classes} at least, "
                f"there are {len(case.clean)}"
            )
        return ""

    def apply(self, case: Case) -> Model:
        epochs = epochs_of(self.updates, len(case.clean), self.batch_size)
        recipe = Recipe(
            epochs, self.lr, self.batch_size, self.weight_decay, "shift", bf16=False, optimizer="sgd"
        )
        return tuned(
            case.model,
            case.clean,
            recipe,
            derive_seed(case.seed, self.name),
            on_epoch=lambda epoch, _: case.tick((epoch + 1) / epochs),
        )
