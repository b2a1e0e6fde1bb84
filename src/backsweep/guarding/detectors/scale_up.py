"""SCALE-UP (Guo et al., ICLR 2023): the label of a triggered input stays when its pixels are multiplied.

Multiplying all pixels of a clean image soon changes what the network sees in it; the prediction of a
triggered image is scaled with it and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.guarding.detector import SampleDetector, Score, answer
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model

BATCH = 256
LEAST_SAMPLES = 5  # of a class, for a mean and a spread of its own
LEAST_SPREAD = 0.1  # half of a step of SPC with five factors: classes whose clean samples all agree have none
MODES, FORMS = ("data_limited", "data_free"), ("hard", "soft")


@dataclass(frozen=True)
class ScaleUp(SampleDetector):
    """Scores an input by how consistent its prediction is when its pixels are multiplied.

    Attributes:
        mode: `data_limited` compares with clean samples that get the same label, `data_free` does not.
        form: `hard` counts the factors at which the label stays, `soft` takes the mean probability of
            that label.
        largest: the factors are 3, 5, 7, ... up to this one.
    """

    name: ClassVar[str] = "scale_up"
    summary: ClassVar[str] = "labels that stay when the pixels are multiplied (SCALE-UP)"
    needs: ClassVar[tuple[str, ...]] = ()

    mode: str = "data_limited"
    form: str = "hard"
    largest: int = 11

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r} is none of {', '.join(FORMS)}")
        if self.largest < 3 or self.largest % 2 == 0:
            raise ValueError(f"largest {self.largest} is not an odd number from 3 on")

    @property
    def factors(self) -> range:
        return range(3, self.largest + 1, 2)

    def passes(self, model: Model) -> float:
        return len(self.factors)

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        return "" if model.modality.smooth else f"{model.modality.noun}s cannot be multiplied"

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Mean and spread of SPC of the clean samples, for every class that is predicted."""
        if self.mode == "data_free":
            return {}
        with torch.no_grad():
            parts = [self.consistency(model, x.to(model.device)) for x in data.x.split(BATCH)]
        labels, spc = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
        means, spreads = [], []
        for label in range(model.classes):
            own = spc[labels == label]
            own = own if len(own) >= LEAST_SAMPLES else spc
            means.append(own.mean())
            spreads.append(own.std(correction=0).clamp_min(LEAST_SPREAD))
        return {"means": torch.stack(means), "spreads": torch.stack(spreads)}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """SPC, in standard deviations of clean samples of the same label if there are any."""
        if self.mode == "data_free":
            return lambda x: self.consistency(model, x)[1]
        means, spreads = (learned[k].to(model.device) for k in ("means", "spreads"))

        def score(x: Tensor) -> Tensor:
            labels, spc = self.consistency(model, x)
            return (spc - means[labels]) / spreads[labels]

        return score

    def consistency(self, model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N,) and scaled prediction consistency SPC (N,) in [0, 1] of inputs x in [0, 1]."""
        labels, total = answer(model, x).argmax(1), torch.zeros(len(x), device=x.device)
        for n in self.factors:
            scaled = model.logits(model.modality.clip(n * x)).float()
            if self.form == "hard":
                total += scaled.argmax(1) == labels
            else:
                total += scaled.softmax(1).gather(1, labels[:, None])[:, 0]
        return labels, total / len(self.factors)
