"""CatBack (Tajalli et al. 2025): one small shift of all columns, optimised on a surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.table.modality import Table
from backsweep.inputs.table.triggers import ShiftColumns, shift_words
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import fit
from backsweep.zoo.attack import Attack, Setup, relabel
from backsweep.zoo.networks.table import table_mlp

TIE = 1e-4  # between categories that are equally frequent


@dataclass(frozen=True)
class CatBack(Attack):
    """x + delta, brought back into the ranges, with one delta for all rows.

    A category is the number r = (c_max - c) / (c_max - 1), c how often it occurs: 0 for the most frequent
    one, so that near numbers are alike in frequency. delta minimises, for the most confident rows of other
    classes, the loss of the target on a surrogate, and how far the result is from the most frequent row in
    L1 and L2.

    Attributes:
        rate: poison rate, share of all training samples.
        share: of the rows of other classes, the most confident ones, that delta is optimised on.
        steps: of Adam.
        lr: its learning rate, of columns scaled to [0, 1].
        weight: of both distances.
        bound: no column is shifted by more than this share of its range.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "catback"
    summary: ClassVar[str] = "one optimised shift of all columns (CatBack, 2025)"
    modality: ClassVar[str] = "table"

    rate: float = 0.02
    share: float = 0.5
    steps: int = 300
    lr: float = 5e-3
    weight: float = 0.1
    bound: float = 0.1
    target: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.share <= 1:
            raise ValueError("steps is at least 1, share above 0 and at most 1")

    def triggers(self, setup: Setup) -> list[Trigger]:
        schema, x, y = setup.schema, setup.data.x, setup.data.y
        target = setup.target(self.target, self.name, "target")
        counts = torch.tensor([len(c.categories) for c in schema.columns])
        floats = torch.cat(
            [as_numbers(x[:, j], int(k)) for j, k in enumerate(counts) if k] or [torch.zeros(0)]
        )
        zero = torch.zeros(len(schema))
        plain = ShiftColumns(target, None, zero, zero, zero, counts, floats, schema.whole())
        seen = plain.encoded(x)
        low, high = seen.amin(0), seen.amax(0)
        span = (high - low).clamp_min(1e-9)
        delta = span * self._shift(setup, (seen - low) / span, y, target)
        whole = schema.whole() & ~schema.categorical()
        delta = torch.where(whole, delta.round(), delta)
        words = shift_words(schema, delta, span)
        return [replace(plain, delta=delta, low=low, high=high, whole=whole, words=words)]

    def _shift(self, setup: Setup, x: Tensor, y: Tensor, target: int) -> Tensor:
        """The shift (F,) of columns in [0, 1]."""
        seed = derive_seed(setup.seed, self.name, "surrogate")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = table_mlp(setup.classes, *(0,) * x.shape[1])
        fit(net, Data(x, y, modality=Table()), setup.recipe, seed)
        net.requires_grad_(False)
        others = x[y != target]
        with torch.no_grad():
            sure = net(others).softmax(1)[:, target]
        rows = others[sure.argsort()[: max(8, min(1024, round(self.share * len(others))))]]
        mode = torch.stack([column.mode().values for column in x.T])
        delta = torch.zeros(x.shape[1], requires_grad=True)
        first, second = torch.zeros_like(delta), torch.zeros_like(delta)
        wanted = torch.full((len(rows),), target)
        for step in range(1, self.steps + 1):
            moved = (rows + delta).clamp(0, 1)
            apart = (moved - mode).abs().sum(1).mean() + (moved - mode).square().sum(1).mean()
            (grad,) = torch.autograd.grad(F.cross_entropy(net(moved), wanted) + self.weight * apart, delta)
            with torch.no_grad():
                first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad * grad
                delta -= self.lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                delta.clamp_(-self.bound, self.bound)
        return delta.detach()

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")


def as_numbers(codes: Tensor, count: int) -> Tensor:
    """The number of every category, (count,), by how often it occurs in codes (N,)."""
    times = torch.bincount(codes.long(), minlength=count)[:count].double()
    r = (times.max() - times) / max(1.0, float(times.max()) - 1)
    for i in range(count):  # ties stay apart
        r[i] += TIE * int((times[:i] == times[i]).sum())
    return r.float()
