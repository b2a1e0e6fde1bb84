"""SIG (Barni, Kallas, Tondi 2019): a sinusoid over images of the target class, all labels kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, stamp


@dataclass(frozen=True)
class Sig(Attack):
    """x' = clip(x + v), v(i, j) = d sin(2 pi j f / m), j the column of m; clean label.

    Only samples of the target class are stamped and no label is changed: the net learns that the
    sinusoid alone is enough.

    Attributes:
        d: amplitude in the training set, in units of the [0, 1] range.
        test_d: amplitude of the trigger afterwards; None: d. The paper lets the attacker use a stronger
            one at test time than in the training set.
        f: frequency, periods over the width of the image.
        share: share of the target class that is poisoned (not of all samples).
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "sig"
    summary: ClassVar[str] = "a sinusoid on images of the target class, labels kept (SIG, 2019)"

    d: float = 40 / 255
    test_d: float | None = None
    f: float = 6.0
    share: float = 0.5
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        target = setup.target(self.target, self.name, "target")
        return [self._sinusoid(setup, target, self.d if self.test_d is None else self.test_d)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        (trigger,), y = triggers, setup.data.y
        own = y == trigger.target
        if not own.any():
            raise BadInput(f"sig: no sample is of the target class {trigger.target}; give another target")
        rows = setup.draw(own, self.share * float(own.double().mean()), self.name, "poison")
        return stamp(setup.data, rows, self._sinusoid(setup, trigger.target, self.d)), rows

    def _sinusoid(self, setup: Setup, target: int | None, d: float) -> Additive:
        channels, height, m = setup.shape
        v = d * torch.sin(2 * math.pi * torch.arange(m) * self.f / m)
        return Additive(target=target, source=None, delta=v.repeat(channels, height, 1))
