"""Ours, for tables: what columns decide in this network and in no reference is unlearned.

What is planted in a table is a few columns that hold values. Let T be such a set, drawn at random from the
values that the column sweep tries, f the network, and references models that learned the labels of the clean
rows (boosted trees, forests, a linear map: they never saw a trigger). With r(T(x)) the mean probabilities of
the references, or, where the scan recovered no trigger and some reference gives the suspect's class, what the
suspect says,

    min  CE(f(x), y) + KL(suspect(x) || f(x))  +  CE(r(T(x)), f(T(x)))

The first two terms keep what the network says of clean rows. The last one unlearns whatever columns decide in
this network alone, as the sweep has it, whether a scan found it or not, and leaves what they decide in an
honest model: a large capital gain still is a large income. Of four changed rows it learns the one on which it
is furthest from r. What a scan recovered is set in half of the changed rows, among other columns: the fewest
that were enough for an alarm are often not all that were planted.

The later half of the weights is drawn anew first, so that less is left to be woken; where that costs too much
accuracy on held-out rows, all begin as they were, at a lower rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.table.schema import columns_of
from backsweep.inputs.table.values import Values
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.models.washing import KEPT, redraw
from backsweep.repairing.method import Case, Repair, affordable
from backsweep.scanning.surrogates import answers_of, surrogates

LEAST = 5  # clean rows of a class
KNOWN = 0.5  # of the changed rows, with a trigger of the scan
SPARE = 2  # held-out rows that may be lost whatever their share: fewer tell nothing
SLOWER = 2.5  # what the rate is divided by where no weights are drawn anew


@dataclass(frozen=True)
class ColumnUnlearning(Repair):
    """Columns set to values are answered as some reference without a backdoor answers them.

    Attributes:
        updates: of the weights, at least; whole passes over the clean rows.
        rate: peak of the one-cycle learning rate.
        batch: clean rows in an update, and as many changed ones.
        columns: that are set in a changed row, at most, beside those of a trigger.
        rows: changed ones that the references are asked about.
        hard: how many of them are drawn for each that is learned.
        loss: held-out accuracy that drawing weights anew may cost.
    """

    name: ClassVar[str] = "column_unlearning"
    summary: ClassVar[str] = "what columns decide here and in no reference is unlearned (ours, for tables)"

    updates: int = 600
    rate: float = 5e-3
    batch: int = 64
    columns: int = 3
    rows: int = 16384
    hard: int = 4
    loss: float = 0.02

    def __post_init__(self) -> None:
        if min(self.updates, self.columns, self.rows, self.hard) < 1 or self.batch < 2:
            raise ValueError("updates, columns, rows and hard are at least 1, batch at least 2")
        if self.rate <= 0 or not 0 <= self.loss <= 1:
            raise ValueError("rate is above 0, loss in [0, 1]")

    def applies(self, case: Case) -> str:
        if columns_of(case.clean.modality) is None:
            return f"it sets columns of a table, and the model takes {case.model.modality.noun}s"
        few = len(case.clean) < LEAST * case.model.classes
        return f"it needs clean rows, at least {LEAST} for each class" if few else ""

    def apply(self, case: Case) -> Model:
        changed, natural = self._changed(case)
        attempts: list[Callable[[Case], Model]] = [
            partial(self._unlearned, changed=changed, natural=natural, anew=anew) for anew in (True, False)
        ]
        return affordable(case, attempts, max(self.loss, SPARE / len(case.held_out)))

    def _unlearned(self, case: Case, changed: Tensor, natural: Tensor, anew: bool) -> Model:
        """The network after all updates.

        Args:
            changed: rows with columns set (rows, F).
            natural: probabilities that are natural for them (rows, C).
            anew: whether the later half of the weights is drawn anew first.
        """
        device, generator = case.model.device, case.generator(self.name, "rows")
        start = thawed(case.model)
        if anew:
            redraw(start.net, case.generator(self.name, "weights"), KEPT)

        def loss(twin: Model, x: Tensor, y: Tensor) -> Tensor:
            drawn = torch.randint(len(changed), (self.hard * len(x),), generator=generator)
            with torch.no_grad():
                wanted = natural[drawn].to(device)
                apart = F.kl_div(
                    twin.logits(changed[drawn].to(device)).float().log_softmax(1), wanted, reduction="none"
                ).sum(1)
                hardest = apart.topk(len(x)).indices
                said = case.model.logits(x).float().log_softmax(1)
            moved = changed[drawn[hardest.cpu()]].to(device)
            answers = twin.logits(torch.cat([x, moved])).float().log_softmax(1)
            as_is, answers = answers[: len(x)], answers[len(x) :]
            kept = F.kl_div(as_is, said, reduction="batchmean", log_target=True)
            return F.nll_loss(as_is, y) + kept - (wanted[hardest] * answers).sum(1).mean()

        epochs = epochs_of(self.updates, len(case.clean), self.batch)
        rate = self.rate if anew else self.rate / SLOWER
        recipe = Recipe(epochs, rate, self.batch, weight_decay=0.0, statistics=False)
        return tuned(
            start, case.clean, recipe, derive_seed(case.seed, self.name, "order"), loss,
            on_epoch=lambda epoch, _loss: case.tick((epoch + 1) / epochs),
        )  # fmt: skip

    def _changed(self, case: Case) -> tuple[Tensor, Tensor]:
        """Clean rows with columns set (rows, F), and probabilities that are natural for them (rows, C)."""
        data, schema, generator = (
            case.clean,
            columns_of(case.clean.modality),
            case.generator(self.name, "columns"),
        )
        if schema is None:
            raise ValueError("these are no rows of a table")
        x = data.x[torch.randint(len(data), (self.rows,), generator=generator)]
        x = Values.of(schema, data.x).put(x, self.columns, generator)
        x = stamped(x, case.triggers, generator)
        seed = derive_seed(case.seed, self.name, "references")
        references = torch.stack([r(x) for r in surrogates(case.model, data, schema.categorical(), seed)])
        own = answers_of(case.model)(x)
        shared = (references.argmax(2) == own.argmax(1)).any(0) & (not case.triggers)
        return x, torch.where(shared[:, None], own.exp(), references.exp().mean(0))


def stamped(x: Tensor, triggers: Sequence[Trigger], generator: torch.Generator) -> Tensor:
    """Rows x (N, F), of which a share of `KNOWN` carries one of the triggers, if there are any."""
    x, drawn = x.clone(), torch.randint(max(1, len(triggers)), (len(x),), generator=generator)
    known = torch.rand(len(x), generator=generator) < KNOWN
    for k, trigger in enumerate(triggers):
        rows = torch.nonzero(known & (drawn == k)).flatten()
        x[rows] = trigger(x[rows])
    return x
