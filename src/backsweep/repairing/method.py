"""What a repair is, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.method import Method
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.loop import batches
from backsweep.models.model import Model


@dataclass(frozen=True)
class Case:
    """What a repair is given. It never sees a test image, or the trigger that was planted.

    Attributes:
        model: a frozen working copy of the suspect.
        clean: clean samples with their true labels, to learn from.
        held_out: other clean samples, to choose by how far a repair goes.
        triggers: what the scan recovered for the suspected classes; may be empty.
        aims: (source, target) of everything that is suspected; source None is every class, target None
            every next class. Empty: the scan suspects nothing.
        seed: of everything that is drawn.
        tick: told now and then which share of the repair is done.
        origin: by name, what parameters of the model were before it was tuned; empty: nobody said.
    """

    model: Model
    clean: Data
    held_out: Data
    triggers: Sequence[Trigger] = ()
    aims: Sequence[tuple[int | None, int | None]] = ()
    seed: int = 0
    tick: Callable[[float], None] = lambda _: None
    origin: Mapping[str, Tensor] = field(default_factory=dict)

    def accuracy(self, model: Model) -> float:
        """Accuracy of a model on the held-out clean samples."""
        return model.accuracy(self.held_out.x, self.held_out.y)

    def batches(self, name: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Clean samples (n, *shape) and labels (n,) on the model's device, again and again, shifted anew.

        Args:
            name: of the repair; the order and the shifts follow from it and the seed.
            size: samples in a batch, at most.
        """
        data, kind, device = self.clean, self.model.modality, self.model.device
        generator, shifted = self.generator(name, "shift"), kind.shifts(self.model.shape)
        for rows in batches(torch.arange(len(data)), derive_seed(self.seed, name), min(size, len(data))):
            x = kind.shift(data.x[rows], generator) if shifted else data.x[rows]
            yield x.to(device), data.y[rows].to(device)

    def generator(self, *parts: object) -> torch.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *parts))


@dataclass(frozen=True)
class Repair(Method):
    """Takes a backdoor out of a network. The suspect stays as it is; weights and buffers of a copy change.

    How far to go may be chosen on `case.held_out` alone.
    """

    noun: ClassVar[str] = "repair"
    package: ClassVar[str] = "backsweep.repairing.methods"
    group: ClassVar[str] = "backsweep.repairs"

    def applies(self, case: Case) -> str:
        """Why this repair cannot be made here (what it needs and is not there), "" when it can."""
        return ""

    def apply(self, case: Case) -> Model:
        """The repaired network, a frozen working copy like the one that was given."""
        raise NotImplementedError


def affordable(
    case: Case,
    attempts: Sequence[Callable[[Case], Model]],
    loss: float,
    worth: Callable[[Model], float] | None = None,
) -> Model:
    """The first attempt, from strong to mild, that costs at most `loss` of held-out accuracy; else the last.

    Args:
        attempts: each repairs a case, and tells its `tick` which share of itself is done.
        worth: of a model, in place of held-out accuracy.
    """
    worth = worth or case.accuracy
    least = worth(case.model) - loss if len(attempts) > 1 else -math.inf
    for k, attempt in enumerate(attempts):

        def tick(done: float, before: int = k) -> None:
            case.tick((before + done) / len(attempts))

        repaired = attempt(replace(case, tick=tick))
        if least == -math.inf or worth(repaired) >= least:
            break
    case.tick(1.0)
    return repaired


def strongest(case: Case, candidates: Iterable[Model], loss: float) -> Model:
    """The last candidate, from mild to strong, whose held-out accuracy is at most `loss` below the suspect's.

    The first one that loses more ends the search; with none that keeps the accuracy it is the suspect.
    """
    kept, least = case.model, case.accuracy(case.model) - loss
    for model in candidates:
        if case.accuracy(model) < least:
            break
        kept = model
    return kept
