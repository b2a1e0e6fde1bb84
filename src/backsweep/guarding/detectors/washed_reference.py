"""Washed reference, ours: inputs on which the network and a washed copy of it disagree.

In a washed copy the later half of the weights was drawn anew and learned the network's own answers on
clean samples (`models/washing.py`). A backdoor, which clean samples never show, is not learned again:

    score(x) = - log p_w(y | x),   y what the network itself answers.

It costs a pass of the copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.disagreement import Disagreement
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.washing import washed


@dataclass(frozen=True)
class WashedReference(Disagreement):
    """Flags inputs whose class a washed copy of the network does not confirm."""

    name: ClassVar[str] = "washed_reference"
    summary: ClassVar[str] = "inputs on which a washed copy of the network disagrees (ours)"
    needs: ClassVar[tuple[str, ...]] = ("weights",)

    def reference(self, model: Model, data: Data) -> Model:
        """The washed copy."""
        return washed(model, data, derive_seed(0, self.name))

    def compared(self, log_p: Tensor, log_r: Tensor) -> Tensor:
        return -log_r[torch.arange(len(log_p), device=log_p.device), log_p.argmax(1)]
